//! Nodes: who is a member, what it has to give, and whether it answers.

use super::{Node, Refusal, State, WorkerStatus, refuse};
use crate::command::{NewNode, Reply, Worker};
use crate::types::{Address, NodeId, RaftId, Timestamp};

/// Most members, so that no joiner can fill the memory.
const MAX_NODES: usize = 10_000;

impl State {
    pub(super) fn admit(&mut self, new: &NewNode, at: Timestamp) -> Result<Reply, Refusal> {
        if let Some((node, known)) = self.node_named(&new.name) {
            if known.key == new.key {
                let reply = Reply::Admitted { node, raft: known.raft };
                if known.address != new.address {
                    self.node_mut(node)?.address.clone_from(&new.address);
                }
                return Ok(reply);
            }
            return refuse(format!(
                "the name {} is taken by another host, at {}: give this one another name; \
                 a host that has lost its data needs another one, too",
                new.name, known.address
            ));
        }
        if self.nodes.len() >= MAX_NODES {
            return refuse(format!("the cluster has {MAX_NODES} nodes, which is the most"));
        }
        self.counters.node.0 += 1;
        self.counters.raft.0 += 1;
        self.dirty.counters = true;
        let (node, raft) = (self.counters.node, self.counters.raft);
        self.nodes.insert(
            node,
            Node {
                name: new.name.clone(),
                address: new.address.clone(),
                key: new.key,
                raft,
                joined_at: at,
                worker: None,
            },
        );
        self.worker_status.insert(node, WorkerStatus { alive: true, since: at });
        self.dirty.nodes.insert(node);
        self.dirty.worker_status.insert(node);
        Ok(Reply::Admitted { node, raft })
    }

    pub(super) fn register_worker(
        &mut self,
        node: NodeId,
        address: &Address,
        worker: &Worker,
        at: Timestamp,
    ) -> Result<Reply, Refusal> {
        let member = self.nodes.get_mut(&node).ok_or_else(|| not_a_member(node))?;
        if member.address != *address {
            member.address.clone_from(address);
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
        }
        Ok(Reply::Done)
    }

    pub fn node_of_raft(&self, raft: RaftId) -> Option<(NodeId, &Node)> {
        self.nodes.iter().find(|(_, node)| node.raft == raft).map(|(id, node)| (*id, node))
    }

    fn node_mut(&mut self, node: NodeId) -> Result<&mut Node, Refusal> {
        self.dirty.nodes.insert(node);
        self.nodes.get_mut(&node).ok_or_else(|| not_a_member(node))
    }
}

pub(super) fn not_a_member(node: NodeId) -> Refusal {
    Refusal(format!("node {node} is not a member of this cluster"))
}
