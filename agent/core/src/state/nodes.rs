//! Nodes: who is a member, what it has to give, and whether it answers.

use super::{Lease, Node, OfNode, Refusal, State, WorkerStatus, refuse};
use crate::command::{NewNode, Reply, Worker};
use crate::types::{Address, Availability, Level, NodeId, NodeRole, Timestamp};

/// Most members, so that no joiner can fill the memory.
const MAX_NODES: usize = 10_000;

impl State {
    pub(super) fn admit(&mut self, new: &NewNode, at: Timestamp) -> Result<Reply, Refusal> {
        self.check_level(&new.name, new.understands)?;
        if let Some((node, known)) = self.node_named(&new.name) {
            if known.key == new.key {
                let reply = Reply::Admitted { node, raft: known.raft };
                if known.address != new.address {
                    self.node_mut(node)?.address.clone_from(&new.address);
                }
                return Ok(reply);
            }
            return refuse(format!(
                "the name {} is taken by another host, at {}: give this one another name, or, if it is that host made \
                 anew, let it take the place of the old one: `blixard node replace {}`",
                new.name, known.address, new.name
            ));
        }
        if self.nodes.len() >= MAX_NODES {
            return refuse(format!("the cluster has {MAX_NODES} nodes, which is the most"));
        }
        let raft = self.lacks_server(new.role).then(|| self.next_raft());
        self.counters.node.0 += 1;
        self.dirty.counters = true;
        let node = self.counters.node;
        self.nodes.insert(
            node,
            Node {
                name: new.name.clone(),
                address: new.address.clone(),
                key: new.key,
                raft,
                role: new.role,
                bound: None,
                joined_at: at,
                understands: new.understands,
                worker: None,
                leaving: false,
                availability: Availability::Active,
                boot: None,
                rotated: None,
                secrets: None,
                lease: Lease::default(),
            },
        );
        self.worker_status.insert(node, WorkerStatus { alive: true, since: at });
        self.dirty.nodes.insert(node);
        self.dirty.worker_status.insert(node);
        self.happened_on(node, OfNode::Joined);
        Ok(Reply::Admitted { node, raft })
    }

    pub(super) fn register_worker(
        &mut self,
        node: NodeId,
        address: &Address,
        understands: Level,
        role: NodeRole,
        worker: &Worker,
        at: Timestamp,
    ) -> Result<Reply, Refusal> {
        let member = self.nodes.get(&node).ok_or_else(|| not_a_member(node))?;
        self.check_level(&member.name, understands)?;
        let member = self.nodes.get_mut(&node).expect("it was there just now");
        let role = member.bound.unwrap_or(role);
        if (&member.address, member.understands, member.role) != (address, understands, role) {
            member.address.clone_from(address);
            (member.understands, member.role) = (understands, role);
            self.dirty.nodes.insert(node);
        }
        if member.worker.as_ref() != Some(worker) {
            member.worker = Some(worker.clone());
            self.dirty.workers.insert(node);
        }
        self.set_worker_alive(node, true, at)
    }

    pub(super) fn set_worker_alive(&mut self, node: NodeId, alive: bool, at: Timestamp) -> Result<Reply, Refusal> {
        let status = self.worker_status.get_mut(&node).ok_or_else(|| not_a_member(node))?;
        if status.alive != alive {
            *status = WorkerStatus { alive, since: at };
            self.dirty.worker_status.insert(node);
            self.happened_on(node, if alive { OfNode::Back } else { OfNode::Silent });
        }
        Ok(Reply::Done)
    }

    /// A node's name, or, where it is no member any more, its number.
    pub fn name_of(&self, node: NodeId) -> String {
        self.nodes.get(&node).map_or_else(|| format!("node {node}"), |member| member.name.to_string())
    }

    pub(super) fn node_mut(&mut self, node: NodeId) -> Result<&mut Node, Refusal> {
        self.dirty.nodes.insert(node);
        self.nodes.get_mut(&node).ok_or_else(|| not_a_member(node))
    }
}

pub(super) fn not_a_member(node: NodeId) -> Refusal {
    Refusal(format!("node {node} is not a member of this cluster"))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{BOOT, Fixture, address, joiner, register, worker};
    use super::*;
    use crate::command::Command;
    use crate::types::{Hash, RaftId, Resources};

    #[test]
    fn a_name_that_is_taken_is_refused_to_another_host() {
        let mut fixture = Fixture::of_nodes(2);
        let same = fixture.say(Command::Admit(joiner(2)));
        assert_eq!(same, Reply::Admitted { node: NodeId(2), raft: Some(RaftId(2)) }, "the same host asks again");
        let other = NewNode { key: Hash::of(b"another key"), ..joiner(2) };
        let Reply::Refused(why) = fixture.say(Command::Admit(other)) else { panic!("it was admitted") };
        assert!(why.contains("node2") && why.contains("taken"), "{why}");
    }

    #[test]
    fn a_changed_capacity_is_taken_over() {
        let mut fixture = Fixture::of_nodes(1);
        let larger = Worker { resources: Resources { cpus: 8, ..worker().resources }, ..worker() };
        let Command::RegisterWorker { node, understands, worker, .. } = register(1, larger) else { unreachable!() };
        let role = NodeRole::Worker;
        let (moved, capacity) = (address(9), worker.clone());
        fixture.say(Command::RegisterWorker {
            node,
            address: moved,
            understands,
            role,
            worker: capacity,
            secrets: None,
            boot: BOOT,
        });
        let member = &fixture.state.nodes()[&node];
        assert_eq!((&member.worker, &member.address), (&Some(worker), &address(9)), "a changed address, too");
        assert_eq!(member.role, role, "and a changed role");
    }
}
