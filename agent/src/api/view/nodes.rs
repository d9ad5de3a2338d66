//! Nodes as status shows them.

use blixard_core::schedule::keeps;
use blixard_core::state::{Absence, Node, Placement, State};
use blixard_core::types::{InstanceId, NodeId};

use super::super::proto;
use super::{amount, count, failover};
use crate::node::Standing;

pub fn node(state: &State, standing: &Standing, id: NodeId, member: &Node) -> proto::Node {
    let role = match member.raft {
        _ if state.absent().get(&id) == Some(&Absence::Away) => "absent",
        None => "worker",
        Some(raft) if standing.leader == Some(raft) => "leader",
        Some(raft) if standing.voters.contains(&raft) => "follower",
        Some(_) => "learner",
    };
    let status = state.worker_status(id);
    let worker = member.worker.as_ref().map(|worker| {
        let free = worker.resources.saturating_sub(state.used(id));
        let total = worker.resources;
        proto::Worker {
            cpus: amount(free.cpus.into(), total.cpus.into()),
            memory_mib: amount(free.memory_mib, total.memory_mib),
            disk_mib: amount(free.disk_mib, total.disk_mib),
            system: worker.system.clone(),
            kvm: worker.kvm,
            hypervisors: worker.hypervisors.iter().map(ToString::to_string).collect(),
            labels: worker.labels.iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
            no_fence: worker.no_fence.clone().unwrap_or_default(),
        }
    });
    proto::Node {
        name: member.name.to_string(),
        id: id.0,
        address: member.address.to_string(),
        role: role.to_owned(),
        alive: status.is_some_and(|status| status.alive),
        since: status.map_or(0, |status| status.since.0),
        worker,
        leaving: member.leaving,
        availability: member.availability.to_string(),
        held: count(state.held_by(id)),
        lease: failover::lease(member).to_owned(),
        epoch: member.lease.epoch.0,
    }
}

/// Why an instance is on a node still that is emptied.
pub fn kept(state: &State, id: &InstanceId, placement: &Placement) -> Option<String> {
    // Asked of every instance that is shown, and true of few.
    let other = state.is_emptied(placement.node).then(|| keeps(state, id))??;
    Some(format!("it leaves {} once {other} runs", state.name_of(placement.node)))
}
