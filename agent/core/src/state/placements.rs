//! Placements: decided by the leader, checked here, and ended by the node that confirms the stop.

use super::nodes::not_a_member;
use super::{Instance, OfInstance, PlacedBecause, Placement, Refusal, State, StopBecause, refuse};
use crate::command::{InstancePhase, MAX_MESSAGE_CHARS, Reply, TaskReport, VmReport};
use crate::types::{Failover, Generation, InstanceId, NodeEpoch, NodeId, Resources, Timestamp};

impl State {
    pub(super) fn place(
        &mut self,
        id: &InstanceId,
        node: NodeId,
        generation: Generation,
        at: Timestamp,
    ) -> Result<Reply, Refusal> {
        let Some(spec) = self.desired(id) else { return refuse(format!("{id} is not to run")) };
        self.check_absent()?;
        let instance = self.instances.get(id).cloned().expect("what is declared has an instance");
        if generation.0 != instance.generation.0 + 1 {
            return refuse(format!("{id} is at generation {}, so {generation} is stale", instance.generation));
        }
        let before = instance.placement;
        if let Some(before) = before.as_ref().filter(|before| before.stopping || before.node != node) {
            return refuse(format!("{id} may still run on node {}: it has to stop there first", before.node));
        }
        if let Some(home) = self.volumes_on(id).filter(|home| *home != node) {
            return refuse(format!("the volumes of {id} are on node {home}"));
        }
        let failover = before.as_ref().map_or_else(|| self.failover(&spec), |before| before.unit.failover);
        let epoch = self.nodes.get(&node).ok_or_else(|| not_a_member(node))?.lease.epoch;
        if failover == Failover::Automatic {
            self.check_armed(node, before.as_ref().map_or(epoch, |before| before.epoch))?;
        }
        let request = spec.request();
        let reserved = before.as_ref().map_or(request, |before| before.reserved.max(request));
        let held = before.as_ref().map_or(Resources::default(), |before| before.reserved);
        if before.is_none() {
            self.check_open(node)?;
        }
        self.check_room(node, reserved.saturating_sub(held))?;
        let because = if before.is_some() { PlacedBecause::Changed } else { self.placed_because(id) };
        let unit = spec.unit(id, generation, failover).expect("it is declared, so it has a runner");
        let placement = Placement {
            node,
            unit,
            epoch,
            request,
            reserved,
            constraints: spec.constraints(),
            stopping: false,
            placed_at: at,
            phase: InstancePhase::Starting,
            phase_since: at,
            restarts: 0,
            message: String::new(),
        };
        let volumes_on = (request.disk_mib > 0).then_some(node);
        self.instances.insert(
            id.clone(),
            Instance { generation, placement: Some(Box::new(placement)), volumes_on, bound_for: None },
        );
        self.dirty.instances.insert(id.clone());
        self.happened_to(id, node, OfInstance::Placed { generation, failover, because });
        Ok(Reply::Done)
    }

    pub(super) fn unplace(&mut self, id: &InstanceId, generation: Generation, at: Timestamp) -> Result<Reply, Refusal> {
        let placement = self.instances.get(id).and_then(|instance| instance.placement.as_ref());
        match placement {
            Some(placement) if placement.unit.generation == generation => {
                let because = match self.nodes.get(&placement.node) {
                    Some(node) if node.leaving => StopBecause::Leaving,
                    Some(node) if node.availability.is_emptied() => StopBecause::Draining,
                    _ => StopBecause::Unsuitable,
                };
                self.begin_stop(id, because, at);
                Ok(Reply::Done)
            }
            Some(placement) => {
                refuse(format!("{id} is at generation {}, so {generation} is stale", placement.unit.generation))
            }
            None => refuse(format!("{id} is placed nowhere")),
        }
    }

    pub(super) fn report(
        &mut self,
        node: NodeId,
        vms: &[VmReport],
        tasks: &[TaskReport],
        at: Timestamp,
    ) -> Result<Reply, Refusal> {
        if !self.nodes.contains_key(&node) {
            return Err(not_a_member(node));
        }
        for report in vms {
            self.report_vm(node, report, at);
        }
        for report in tasks {
            self.report_task(node, report, at);
        }
        Ok(Reply::Done)
    }

    /// A report of another generation, or from where it isn't placed, changes nothing: it is about the past.
    fn report_vm(&mut self, node: NodeId, report: &VmReport, at: Timestamp) {
        let Some(instance) = self.instances.get_mut(&report.instance) else { return };
        let Some(placement) = instance.placement.as_mut() else { return };
        if placement.node != node || placement.unit.generation != report.generation {
            return;
        }
        if report.phase == InstancePhase::Stopped {
            if placement.stopping {
                self.free(&report.instance, OfInstance::Stopped);
            }
            return;
        }
        let told = told(placement, report);
        let message: String = report.message.chars().take(MAX_MESSAGE_CHARS).collect();
        let before = (placement.phase, placement.restarts, placement.reserved);
        if placement.phase != report.phase {
            placement.phase_since = at;
        }
        placement.phase = report.phase;
        placement.restarts = report.restarts;
        // While it starts, what ran before it may still be there.
        if report.phase != InstancePhase::Starting {
            placement.reserved = placement.request;
        }
        if before != (placement.phase, placement.restarts, placement.reserved) || placement.message != message {
            placement.message = message;
            self.dirty.instances.insert(report.instance.clone());
        }
        told.into_iter().flatten().for_each(|what| self.happened_to(&report.instance, node, what));
    }

    /// Brings what is placed of it to a stop, and forgets it once that is so, unless its VM is only to be stopped.
    pub(super) fn stop_instance(&mut self, id: &InstanceId, at: Timestamp) {
        let because = if self.is_declared(id) { StopBecause::Asked } else { StopBecause::Undeclared };
        self.begin_stop(id, because, at);
        self.drop_if_removed(id);
    }

    /// What is placed of it is to stop, unless it is to already. Of what has outlived its epoch it is known that it has.
    pub(super) fn begin_stop(&mut self, id: &InstanceId, because: StopBecause, at: Timestamp) {
        let placement = self.instances.get(id).and_then(|instance| instance.placement.as_ref());
        let Some(placement) = placement.filter(|placement| !placement.stopping) else { return };
        if self.has_outlived_its_epoch(placement) {
            return self.free(id, OfInstance::Stopped);
        }
        let placement = self.instances.get_mut(id).and_then(|instance| instance.placement.as_mut());
        let placement = placement.expect("it was there just now");
        placement.stopping = true;
        placement.phase_since = at;
        let node = placement.node;
        self.dirty.instances.insert(id.clone());
        self.happened_to(id, node, OfInstance::Stopping(because));
    }

    /// An instance that is neither declared nor placed is gone.
    pub(super) fn drop_if_removed(&mut self, id: &InstanceId) {
        let Some(instance) = self.instances.get(id) else { return };
        if instance.placement.is_none() && !self.is_declared(id) {
            if instance.generation > self.counters.generation_floor {
                self.counters.generation_floor = instance.generation;
                self.dirty.counters = true;
            }
            self.instances.remove(id);
            self.dirty.instances.insert(id.clone());
        }
    }

    /// Refuses a node whose fence doesn't stop what was placed on it in this epoch.
    fn check_armed(&self, node: NodeId, epoch: NodeEpoch) -> Result<(), Refusal> {
        let member = self.nodes.get(&node).ok_or_else(|| not_a_member(node))?;
        match member.lease.arming() {
            Some(_) if member.lease.epoch == epoch => Ok(()),
            Some(_) => refuse(format!("{} is armed at epoch {}, and not at {epoch}", member.name, member.lease.epoch)),
            None => refuse(format!("the fence of {} is not armed", member.name)),
        }
    }

    /// Refuses a node that isn't there, doesn't answer, or has less than `growth` free on top of what is placed on it.
    pub(super) fn check_room(&self, node: NodeId, growth: Resources) -> Result<(), Refusal> {
        let member = self.nodes.get(&node).ok_or_else(|| not_a_member(node))?;
        let Some(worker) = &member.worker else { return refuse(format!("node {} has not registered", member.name)) };
        if member.leaving {
            return refuse(format!("node {} is being removed", member.name));
        }
        if !self.worker_status(node).is_some_and(|status| status.alive) {
            return refuse(format!("node {} does not answer", member.name));
        }
        if !growth.fits_in(worker.resources.saturating_sub(self.used(node))) {
            return refuse(format!("node {} has no room for it", member.name));
        }
        Ok(())
    }
}

/// What a report says of an instance that is worth telling: once each time that twice as many restarts are reported, so that one
/// which ends again and again leaves room for the rest.
fn told(before: &Placement, report: &VmReport) -> [Option<OfInstance>; 2] {
    let times = report.restarts;
    let is_first_run = before.phase == InstancePhase::Starting && before.phase_since == before.placed_at;
    let restarted = times.checked_ilog2() > before.restarts.checked_ilog2();
    let turned = match report.phase {
        phase if phase == before.phase => None,
        InstancePhase::Running => is_first_run.then_some(OfInstance::Started),
        InstancePhase::Ended(exit) => Some(OfInstance::Ended(exit)),
        InstancePhase::Starting | InstancePhase::Stopped => None,
    };
    [restarted.then_some(OfInstance::Restarted { times }), turned]
}
