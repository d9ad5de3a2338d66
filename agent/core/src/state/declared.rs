//! Hosts whose public key the head declares: each is let in by that key, and by nothing else.
//!
//! The key is asked for when a host joins, and at no other time. It vouches for the node's own key, which is a fresh one
//! whenever a host is made anew: so that one doesn't get the ids, and the promises, of the one that it was before.

use super::{Refusal, State, refuse};
use crate::command::{NewNode, Reply};
use crate::types::{ClusterEpoch, NodeName, PublicKey, Timestamp};

impl State {
    pub(super) fn admit_declared(
        &mut self,
        key: &PublicKey,
        host: &NewNode,
        was_in: Option<ClusterEpoch>,
        at: Timestamp,
    ) -> Result<Reply, Refusal> {
        self.check_key(&host.name, key).map_err(Refusal)?;
        match was_in {
            Some(was_in) => self.rejoin(host, was_in, |bound| bound),
            None => self.admit(host, at),
        }
    }

    /// Whether this is the key that is declared for a host of this name.
    ///
    /// # Errors
    /// Why it is not let in by it.
    pub fn check_key(&self, name: &NodeName, key: &PublicKey) -> Result<(), String> {
        match self.declared_nodes().get(name) {
            Some(declared) if declared.public_key == *key => Ok(()),
            Some(_) => Err(format!(
                "the manifest declares another key for {name} than {key}, which this host has: correct node.key_file on it, \
                 or nodes.{name}.publicKey in the manifest"
            )),
            None => Err(format!(
                "the manifest declares no key for {name}: set nodes.{name}.publicKey to {key} in it, and apply it"
            )),
        }
    }

    /// Refuses a host that has shown something else than the key that is declared for it.
    pub(super) fn check_undeclared(&self, name: &NodeName) -> Result<(), Refusal> {
        match self.declared_nodes().get(name) {
            Some(_) => refuse(format!(
                "the manifest declares a key for {name}, which is let in by that alone: set node.key_file on it, and no other \
                 credential, or remove nodes.{name} from the manifest"
            )),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Beginner;
    use super::super::tests::{Fixture, joiner, manifest};
    use super::*;
    use crate::command::{Command, Origin};
    use crate::manifest::DeclaredNode;
    use crate::types::{Hash, NodeId, RaftId, TokenId};

    const KEY: PublicKey = PublicKey::from_bytes([1; 32]);
    const OTHER: PublicKey = PublicKey::from_bytes([2; 32]);

    /// Makes a manifest the head that declares these keys, of node2 and so on.
    fn declare(fixture: &mut Fixture, keys: &[(u64, PublicKey)]) {
        let mut manifest = manifest(&[]);
        let declared = |(node, key): &(u64, PublicKey)| (joiner(*node).name, DeclaredNode { public_key: *key });
        manifest.nodes = keys.iter().map(declared).collect();
        fixture.say(Command::OfferManifest { manifest, from: Origin::Person("test".to_owned()) });
    }

    fn by_key(key: PublicKey, host: NewNode) -> Command {
        Command::AdmitDeclared { key, host, was_in: None }
    }

    /// The same host after all of its disk was lost.
    fn made_anew(node: u64) -> NewNode {
        NewNode { key: Hash::of(b"made anew"), ..joiner(node) }
    }

    fn admitted(node: u64) -> Reply {
        Reply::Admitted { node: NodeId(node), raft: Some(RaftId(node)) }
    }

    #[track_caller]
    fn refused(reply: Reply, about: &[&str]) {
        let Reply::Refused(why) = reply else { panic!("it was done: {reply:?}") };
        assert!(about.iter().all(|part| why.contains(part)), "{why}");
    }

    #[test]
    fn a_declared_host_is_let_in_by_its_key_and_gets_the_same_answer_again() {
        let mut fixture = Fixture::of_nodes(1);
        declare(&mut fixture, &[(2, KEY)]);
        assert_eq!(fixture.say(by_key(KEY, joiner(2))), admitted(2));
        assert_eq!(fixture.say(by_key(KEY, joiner(2))), admitted(2), "its answer was lost");
        assert_eq!(fixture.state.nodes()[&NodeId(2)].key, joiner(2).key);
    }

    #[test]
    fn a_host_with_a_key_that_is_not_declared_for_its_name_is_refused() {
        let mut fixture = Fixture::of_nodes(1);
        refused(fixture.say(by_key(KEY, joiner(2))), &["no key for node2", &format!("publicKey to {KEY}")]);
        declare(&mut fixture, &[(2, KEY), (3, OTHER)]);
        refused(fixture.say(by_key(OTHER, joiner(2))), &["another key for node2", &OTHER.to_string(), "node.key_file"]);
        refused(fixture.say(by_key(KEY, joiner(4))), &["no key for node4"]);
        assert_eq!(fixture.state.nodes().len(), 1);
    }

    #[test]
    fn whose_key_is_declared_is_let_in_by_no_secret_and_no_token_not_even_a_member_that_asks_again() {
        let mut fixture = Fixture::of_nodes(1);
        let (token, secret) = (TokenId(7), Hash::of(b"secret"));
        fixture.say(Command::CreateToken { token, secret, ttl_ms: 3_600_000, role: None });
        let expires = fixture.state.tokens()[&token].expires;
        let redeem = |host, was_in| Command::Redeem { token, secret, expires, host, was_in };
        assert_eq!(fixture.say(Command::Admit(joiner(2))), admitted(2));
        assert_eq!(fixture.say(redeem(joiner(3), None)), admitted(3));
        declare(&mut fixture, &[(2, KEY), (3, OTHER), (4, PublicKey::from_bytes([3; 32]))]);
        for node in [2, 4] {
            refused(fixture.say(Command::Admit(joiner(node))), &[&format!("node{node}"), "by that alone"]);
        }
        refused(fixture.say(redeem(joiner(3), None)), &["node3", "by that alone"]);
        assert_eq!(fixture.say(by_key(KEY, joiner(2))), admitted(2), "by its key it is the member that it was");
        let first = ClusterEpoch::FIRST;
        fixture.begin_epoch(Beginner::Survivor(NodeId(1))).unwrap();
        refused(fixture.say(Command::Rejoin { host: joiner(2), was_in: first }), &["node2", "by that alone"]);
        refused(fixture.say(redeem(joiner(3), Some(first))), &["node3", "by that alone"]);
    }

    #[test]
    fn a_host_that_is_refused_for_its_name_has_not_used_its_token_up() {
        let mut fixture = Fixture::of_nodes(1);
        let (token, secret) = (TokenId(7), Hash::of(b"secret"));
        fixture.say(Command::CreateToken { token, secret, ttl_ms: 3_600_000, role: None });
        declare(&mut fixture, &[(2, KEY)]);
        let expires = fixture.state.tokens()[&token].expires;
        let redeem = |node| Command::Redeem { token, secret, expires, host: joiner(node), was_in: None };
        refused(fixture.say(redeem(2)), &["node2", "by that alone"]);
        assert!(matches!(fixture.say(redeem(3)), Reply::Admitted { node: NodeId(2), .. }));
    }

    #[test]
    fn a_declared_host_that_was_made_anew_takes_the_old_ones_place_only_where_a_person_says_so() {
        let mut fixture = Fixture::of_nodes(1);
        declare(&mut fixture, &[(2, KEY)]);
        fixture.say(by_key(KEY, joiner(2)));
        refused(fixture.say(by_key(KEY, made_anew(2))), &["node2 is taken", "blixard node replace node2"]);
        fixture.decide(Command::SetWorkerAlive { node: NodeId(2), alive: false });
        fixture.say(Command::RemoveNode { node: NodeId(2), dead: true, abandon_volumes: false });
        let reply = fixture.say(by_key(KEY, made_anew(2)));
        assert!(matches!(reply, Reply::Admitted { node: NodeId(3), raft } if raft > Some(RaftId(2))), "{reply:?}");
    }

    #[test]
    fn the_key_that_the_head_declares_now_is_the_one_and_members_stay() {
        let mut fixture = Fixture::of_nodes(1);
        declare(&mut fixture, &[(2, KEY)]);
        fixture.say(by_key(KEY, joiner(2)));
        declare(&mut fixture, &[(2, OTHER), (3, KEY)]);
        assert!(fixture.state.nodes().contains_key(&NodeId(2)));
        refused(fixture.say(by_key(KEY, joiner(2))), &["another key for node2"]);
        assert_eq!(fixture.say(by_key(KEY, joiner(3))), admitted(3));
        fixture.say(Command::RollBackManifest { from: "test".to_owned() });
        refused(fixture.say(by_key(OTHER, joiner(2))), &["another key for node2"]);
        let head = fixture.state.head().unwrap();
        assert_eq!(head.diff, ["remove the key of node3", "change the key of node2"]);
    }

    #[test]
    fn a_declared_member_of_an_earlier_epoch_rejoins_by_its_key() {
        let mut fixture = Fixture::of_nodes(1);
        declare(&mut fixture, &[(2, KEY)]);
        fixture.say(by_key(KEY, joiner(2)));
        fixture.begin_epoch(Beginner::Survivor(NodeId(1))).unwrap();
        let rejoin = |key, host| Command::AdmitDeclared { key, host, was_in: Some(ClusterEpoch::FIRST) };
        refused(fixture.say(rejoin(OTHER, joiner(2))), &["another key for node2"]);
        refused(fixture.say(rejoin(KEY, made_anew(2))), &["node2", "is no member"]);
        let reply = fixture.say(rejoin(KEY, joiner(2)));
        assert!(matches!(reply, Reply::Admitted { node: NodeId(2), raft } if raft > Some(RaftId(2))), "{reply:?}");
    }
}
