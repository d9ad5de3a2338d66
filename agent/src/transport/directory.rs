//! Where the members of the cluster are found, and which of them are servers.

use std::collections::BTreeMap;

use blixard_core::types::{Address, InvalidValue, NodeId, NodeName, RaftId};

use super::gate::Refused;
use super::proto;

/// Where a member is found.
///
/// On the wire it goes with its node's id.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Member {
    pub name: NodeName,
    pub address: Address,
    /// By which it is a server, if it is one.
    pub raft: Option<RaftId>,
}

impl Member {
    pub(super) fn encode(&self, node: NodeId) -> proto::Member {
        let Self { name, address, raft } = self;
        let raft = raft.map_or(0, |raft| raft.0);
        proto::Member { node: node.0, name: name.to_string(), address: address.to_string(), raft }
    }

    pub(super) fn decode(member: &proto::Member) -> Result<(NodeId, Self), InvalidValue> {
        let (name, address) = (member.name.parse()?, member.address.parse()?);
        Ok((NodeId(member.node), Self { name, address, raft: raft(member.raft) }))
    }
}

/// A raft id as it goes over the wire: 0 is none.
pub(super) fn raft(id: u64) -> Option<RaftId> {
    (id != 0).then_some(RaftId(id))
}

/// Members of the cluster, this node too; what isn't in it is neither called nor listened to. A server's has all of them,
/// those of others only the servers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Directory {
    /// Apart from the others, which may be ten thousand.
    servers: BTreeMap<NodeId, Member>,
    others: BTreeMap<NodeId, Member>,
    /// The last id that was given out: up to it, who is no member was removed. 0 where not all members are in it.
    pub newest: NodeId,
    /// The last raft id that was given out: up to it, one that is no member's was given up.
    pub newest_raft: RaftId,
}

impl Directory {
    /// Of some members, all servers among them.
    pub fn of(members: impl IntoIterator<Item = (NodeId, Member)>) -> Self {
        let mut directory = Self::default();
        members.into_iter().for_each(|(node, member)| directory.enter(node, member));
        directory.newest_raft = directory.servers().filter_map(|(_, member)| member.raft).max().unwrap_or_default();
        directory
    }

    /// In the place of what was known of this node.
    pub fn enter(&mut self, node: NodeId, member: Member) {
        self.servers.remove(&node);
        self.others.remove(&node);
        let members = if member.raft.is_some() { &mut self.servers } else { &mut self.others };
        members.insert(node, member);
    }

    pub fn get(&self, node: NodeId) -> Option<&Member> {
        self.servers.get(&node).or_else(|| self.others.get(&node))
    }

    /// The servers first.
    pub fn members(&self) -> impl Iterator<Item = (NodeId, &Member)> {
        self.servers().chain(self.others.iter().map(|(node, member)| (*node, member)))
    }

    pub fn servers(&self) -> impl Iterator<Item = (NodeId, &Member)> {
        self.servers.iter().map(|(node, member)| (*node, member))
    }

    /// The node of this server.
    pub fn node_of(&self, raft: RaftId) -> Option<NodeId> {
        self.servers().find(|(_, member)| member.raft == Some(raft)).map(|(node, _)| node)
    }

    /// Of its members only the servers, and of these not the ones that are believed by their own word: what isn't in it, and
    /// isn't newer, is spent.
    #[must_use]
    pub fn only_servers(&self) -> Self {
        let is_given_out = |(_, member): &(NodeId, &Member)| member.raft.is_some_and(|raft| raft <= self.newest_raft);
        Self::of(self.servers().filter(is_given_out).map(|(node, member)| (node, member.clone())))
    }

    /// Of its members only the servers, and one more.
    #[must_use]
    pub fn servers_and(&self, node: NodeId) -> Self {
        let one = self.others.get(&node).map(|member| (node, member.clone()));
        Self::of(self.servers().map(|(node, member)| (node, member.clone())).chain(one))
    }

    /// # Errors
    /// Why `node` isn't one.
    pub(super) fn member(&self, node: NodeId) -> Result<&Member, Refused> {
        let absent =
            if node <= self.newest { Refused::Removed { peer: node } } else { Refused::Stranger { peer: node } };
        self.get(node).ok_or(absent)
    }

    pub(super) fn is_removed(&self, node: NodeId) -> bool {
        matches!(self.member(node), Err(Refused::Removed { .. }))
    }

    /// Whether this member is no server by this raft id any more.
    pub(super) fn is_dismissed(&self, node: NodeId, raft: RaftId) -> bool {
        raft <= self.newest_raft && self.get(node).is_some_and(|member| member.raft != Some(raft))
    }

    /// Whether nobody is a server by this raft id any more.
    pub fn is_spent(&self, raft: RaftId) -> bool {
        raft <= self.newest_raft && self.node_of(raft).is_none()
    }

    /// Whether what a member says of itself is newer than what is known of it: it has joined since, or became a server. A raft
    /// id that was given out by then is nobody's news.
    pub fn is_news(&self, node: NodeId, member: &Member) -> bool {
        match member.raft {
            Some(raft) => raft > self.newest_raft,
            None => node > self.newest,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(raft: u64) -> Member {
        Member { name: "a".parse().unwrap(), address: "a:1".parse().unwrap(), raft: super::raft(raft) }
    }

    fn directory() -> Directory {
        let members = [(1, 1), (2, 5), (4, 0)].map(|(node, raft)| (NodeId(node), member(raft)));
        Directory { newest: NodeId(4), ..Directory::of(members) }
    }

    #[test]
    fn up_to_the_newest_ids_who_is_absent_is_gone_and_beyond_them_is_news() {
        let directory = directory();
        assert!(
            directory.is_removed(NodeId(3)) && !directory.is_removed(NodeId(5)) && !directory.is_removed(NodeId(2))
        );
        let dismissed = |node, raft| directory.is_dismissed(NodeId(node), RaftId(raft));
        assert!(dismissed(2, 2) && dismissed(4, 3), "ids that they had before");
        assert!(!dismissed(2, 5) && !dismissed(2, 6), "its own, and one that isn't known here yet");
        assert!(!dismissed(3, 2) && !dismissed(9, 2), "who is no member hears that");
        let spent = |raft| directory.is_spent(RaftId(raft));
        assert!(spent(2) && spent(4) && !spent(1) && !spent(5) && !spent(6));
        let mut introduced = directory.clone();
        introduced.enter(NodeId(5), member(9));
        assert!(!introduced.only_servers().is_spent(RaftId(8)), "of whom nobody has introduced itself yet");
        let news = |node, raft| directory.is_news(NodeId(node), &member(raft));
        assert!(news(5, 0) && news(4, 6) && !news(4, 3) && !news(2, 5) && !news(4, 0));
        assert!(!news(5, 1), "nobody comes by a server's id");
    }

    #[test]
    fn who_becomes_a_server_or_none_is_in_it_once() {
        let mut directory = directory();
        directory.enter(NodeId(4), member(6));
        directory.enter(NodeId(2), member(0));
        let of = |members: &mut dyn Iterator<Item = (NodeId, &Member)>| members.map(|(id, _)| id.0).collect::<Vec<_>>();
        assert_eq!((of(&mut directory.servers()), of(&mut directory.members())), (vec![1, 4], vec![1, 4, 2]));
        assert_eq!((directory.node_of(RaftId(6)), directory.node_of(RaftId(5))), (Some(NodeId(4)), None));
    }

    #[test]
    fn who_is_no_server_is_told_of_the_servers_and_itself() {
        let few = directory().servers_and(NodeId(4));
        assert_eq!(few.members().count(), 3);
        assert_eq!(directory().servers_and(NodeId(2)), directory().only_servers());
        assert!(!few.is_removed(NodeId(3)), "who isn't in it may be a worker");
    }

    #[test]
    fn a_member_goes_over_the_wire_as_it_is() {
        for raft in [0, 7] {
            let member = member(raft);
            assert_eq!(Member::decode(&member.encode(NodeId(3))).unwrap(), (NodeId(3), member));
        }
    }
}
