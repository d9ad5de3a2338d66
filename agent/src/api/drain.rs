//! Nodes that are opened or closed to instances, and instances that are moved.

use blixard_core::command::Command;
use blixard_core::schedule::{Obstacle, Rooms};
use blixard_core::types::{Availability, InstanceId, InvalidValue};
use tonic::Status;

use super::{Api, proto};

impl Api {
    pub(super) async fn open_or_close(
        &self,
        request: proto::SetAvailabilityRequest,
    ) -> Result<proto::SetAvailabilityReply, Status> {
        let availability = match request.availability() {
            proto::Availability::Active => Availability::Active,
            proto::Availability::Cordoned => Availability::Cordoned,
            proto::Availability::Draining => Availability::Draining,
            proto::Availability::Rebooting => Availability::Rebooting,
        };
        let node = self.find_node(&request.name).await?;
        let abandon_volumes = request.abandon_volumes;
        let index = self.change(Command::SetAvailability { node, availability, abandon_volumes }).await?;
        Ok(proto::SetAvailabilityReply { index })
    }

    pub(super) async fn move_instance(&self, request: proto::MoveRequest) -> Result<proto::MoveReply, Status> {
        let invalid = |error: InvalidValue| Status::invalid_argument(error.to_string());
        let instance: InstanceId = request.instance.parse().map_err(invalid)?;
        let to = self.find_node(&request.to).await?;
        let (generation, obstacle) = self.read(|state, _| {
            let known = state.instances().get(&instance);
            // It takes room where it is, so of that node the question makes no sense.
            let is_there = known.and_then(|known| known.placement.as_ref()).is_some_and(|placed| placed.node == to);
            let spec = state.desired(&instance).filter(|_| !is_there);
            let obstacle = spec.and_then(|spec| Rooms::new(state).obstacle(state, to, &spec));
            (known.map(|known| known.generation), obstacle)
        })?;
        let generation = generation
            .ok_or_else(|| Status::not_found(format!("there is no instance {instance}: see `blixard vm ls`")))?;
        // Whether it is open is seen to where the command is carried out.
        let suits =
            |obstacle: &Obstacle| matches!(obstacle, Obstacle::Cordoned | Obstacle::Draining | Obstacle::Rebooting);
        if let Some(obstacle) = obstacle.filter(|obstacle| !suits(obstacle)) {
            return Err(Status::failed_precondition(format!("{} won't do for {instance}: {obstacle}", request.to)));
        }
        let abandon_volumes = request.abandon_volumes;
        let index = self.change(Command::Move { instance, to, abandon_volumes }).await?;
        Ok(proto::MoveReply { index, generation: generation.0 })
    }
}
