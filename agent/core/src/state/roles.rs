//! Which nodes are servers: each is one by a raft id of its own, counted and never given to anybody again.

use super::nodes::not_a_member;
use super::{Node, OfNode, Refusal, State, refuse};
use crate::command::Reply;
use crate::manifest::MAX_SERVERS;
use crate::types::{NodeId, NodeRole, RaftId};

impl State {
    /// The nodes that are servers or are to be.
    pub fn servers(&self) -> impl Iterator<Item = (&NodeId, &Node)> {
        let known = self.index.servers.iter().filter_map(|id| self.nodes.get_key_value(id));
        // The entry that is carried out may have taken one's id.
        known.filter(|(_, node)| node.raft.is_some())
    }

    /// How many servers there are to be once all hosts have joined that the founder knew of, and as many of them are servers
    /// as are wanted; at least those that there are.
    pub(super) fn configured_servers(&self) -> usize {
        let listed = self.cluster.as_ref().map_or(0, |cluster| cluster.listed_servers);
        let joined = usize::try_from(self.counters.node.0).unwrap_or(usize::MAX);
        let may_serve = self.nodes.values().filter(|node| node.role != NodeRole::Worker && !node.leaving);
        let may_serve = may_serve.count() + listed.saturating_sub(joined);
        may_serve.min(self.settings().servers).max(self.servers().count())
    }

    pub fn node_of_raft(&self, raft: RaftId) -> Option<(NodeId, &Node)> {
        self.servers().find(|(_, node)| node.raft == Some(raft)).map(|(id, node)| (*id, node))
    }

    /// The last raft id that was given out.
    pub fn newest_raft(&self) -> RaftId {
        self.counters.raft
    }

    /// Whether this raft id was once this node's and isn't any more.
    pub fn is_dismissed(&self, node: NodeId, raft: RaftId) -> bool {
        raft <= self.newest_raft() && self.nodes.get(&node).is_none_or(|node| node.raft != Some(raft))
    }

    /// Whether one that joins is to be a server at once.
    pub(super) fn lacks_server(&self, role: NodeRole) -> bool {
        let wanted = match role {
            NodeRole::Auto => self.settings().servers,
            NodeRole::Server => MAX_SERVERS,
            NodeRole::Worker => 0,
        };
        self.servers().count() < wanted
    }

    pub(super) fn next_raft(&mut self) -> RaftId {
        self.counters.raft.0 += 1;
        self.dirty.counters = true;
        self.counters.raft
    }

    pub(super) fn enlist(&mut self, node: NodeId) -> Result<Reply, Refusal> {
        let member = self.nodes.get(&node).ok_or_else(|| not_a_member(node))?;
        if member.raft.is_some() {
            return refuse(format!("{} is a server already", member.name));
        }
        if member.role == NodeRole::Worker {
            return refuse(format!("{} is declared a worker", member.name));
        }
        let raft = self.next_raft();
        self.node_mut(node)?.raft = Some(raft);
        self.happened_on(node, OfNode::Enlisted);
        Ok(Reply::Done)
    }

    /// The raft group has removed this server; it may be no member's.
    pub(super) fn dismiss(&mut self, raft: RaftId) {
        if let Some(node) = self.node_of_raft(raft).map(|(node, _)| node) {
            self.nodes.get_mut(&node).expect("it was found there").raft = None;
            self.dirty.nodes.insert(node);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Fixture, manifest, vm};
    use super::*;
    use crate::command::{Command, Origin};
    use crate::types::Failover;

    #[test]
    fn who_joins_is_a_server_at_once_where_one_is_lacking() {
        let mut fixture = Fixture::of_nodes(1);
        assert_eq!(fixture.join(2, NodeRole::Worker), None);
        assert_eq!(fixture.join(3, NodeRole::Auto), Some(RaftId(2)));
        assert_eq!(fixture.join(4, NodeRole::Auto), Some(RaftId(3)));
        assert_eq!(fixture.join(5, NodeRole::Auto), None, "three are enough");
        assert_eq!(fixture.join(6, NodeRole::Server), Some(RaftId(4)), "a declared one is a spare");
        assert_eq!(fixture.join(7, NodeRole::Server), Some(RaftId(5)));
        assert_eq!(fixture.join(8, NodeRole::Server), None, "five are the most");
    }

    #[test]
    fn servers_that_are_yet_to_join_are_configured_as_if_they_had() {
        for (listed, wanted, expected) in [(3, 3, 3), (5, 5, 5), (1, 3, 1), (2, 3, 2), (3, 1, 1)] {
            let mut fixture = Fixture::founded(listed, NodeRole::Auto);
            let mut manifest = manifest(&[("a", vm("a", 1))]);
            manifest.cluster.servers = wanted;
            fixture.say(Command::OfferManifest { manifest, from: Origin::Person("test".to_owned()) });
            assert_eq!(fixture.state.configured_servers(), expected, "{listed} listed, {wanted} wanted");
            fixture.settle();
            let failover = if expected < 3 { Failover::Manual } else { Failover::Automatic };
            assert_eq!(fixture.placement("a-0").unwrap().unit.failover, failover, "{expected}");
        }
        let mut fixture = Fixture::founded(3, NodeRole::Auto);
        for node in [2, 3] {
            fixture.join(node, NodeRole::Worker);
        }
        assert_eq!(fixture.state.configured_servers(), 1, "none of them is to be a server");
    }

    #[test]
    fn each_time_a_node_becomes_a_server_it_does_so_by_a_fresh_id() {
        let mut fixture = Fixture::of_nodes(2);
        let (node, first) = (NodeId(2), RaftId(2));
        assert!(!fixture.state.is_dismissed(node, first));
        fixture.remove_server(first);
        assert!(fixture.state.is_dismissed(node, first) && fixture.state.node_of_raft(first).is_none());
        assert!(!fixture.state.is_dismissed(node, RaftId(3)), "one of which this state hasn't heard yet");
        assert_eq!(fixture.decide(Command::Enlist { node }), Reply::Done);
        assert_eq!(fixture.state.nodes()[&node].raft, Some(RaftId(3)));
        assert!(matches!(fixture.decide(Command::Enlist { node }), Reply::Refused(_)));
        assert!(fixture.state.is_dismissed(node, first), "the first never comes back");
    }

    #[test]
    fn who_is_declared_a_worker_is_never_made_a_server() {
        let mut fixture = Fixture::of_nodes(1);
        fixture.join(2, NodeRole::Worker);
        assert!(matches!(fixture.decide(Command::Enlist { node: NodeId(2) }), Reply::Refused(_)));
    }
}
