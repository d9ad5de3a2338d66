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
            let generation = state.instances().get(&instance).map(|instance| instance.generation);
            let verdicts = state.desired(&instance).map(|spec| Rooms::new(state).explain(state, &instance, &spec));
            let verdict = verdicts.into_iter().flatten().find(|(node, _)| *node == to);
            (generation, verdict.and_then(|(_, obstacle)| obstacle))
        })?;
        let generation = generation
            .ok_or_else(|| Status::not_found(format!("there is no instance {instance}: see `blixard vm ls`")))?;
        // What it has there, and whether it is open, is seen to where the command is carried out.
        let suits = |obstacle: &Obstacle| {
            matches!(obstacle, Obstacle::Volumes { .. } | Obstacle::Cordoned | Obstacle::Draining)
        };
        if let Some(obstacle) = obstacle.filter(|obstacle| !suits(obstacle)) {
            return Err(Status::failed_precondition(format!("{} won't do for {instance}: {obstacle}", request.to)));
        }
        let abandon_volumes = request.abandon_volumes;
        let index = self.change(Command::Move { instance, to, abandon_volumes }).await?;
        Ok(proto::MoveReply { index, generation: generation.0 })
    }
}
