//! How another cluster secret takes the place of the one that opens the key of the cluster's authority.
//!
//! ```text
//!  nodes say that they have a next one ─▶ every server that signs has it ── Reseal ─▶ it alone opens the key
//! ```
//! A node has both until its configuration says otherwise, so nobody has to be switched at one moment.

use super::{Cluster, Node, Other, Refusal, State, refuse};
use crate::command::{Reply, Resealed};
use crate::types::{Hash, NodeId, SecretId, SecretIds};

impl Cluster {
    /// The cluster secret by which its members sign.
    pub fn secret(&self) -> Option<SecretId> {
        SecretId::of_sealed(&self.sealed_ca_key)
    }

    /// What the cluster secret opens.
    pub fn sealed_keys(&self) -> Vec<&[u8]> {
        let other = self.rotation.as_ref().and_then(|rotation| match &rotation.other {
            Other::Coming { sealed_key, .. } => Some(sealed_key),
            Other::Going { .. } => None,
        });
        [&self.sealed_ca_key].into_iter().chain(other).map(Vec::as_slice).collect()
    }

    fn sealed_keys_mut(&mut self) -> impl Iterator<Item = &mut Vec<u8>> {
        let other = self.rotation.as_mut().and_then(|rotation| match &mut rotation.other {
            Other::Coming { sealed_key, .. } => Some(sealed_key),
            Other::Going { .. } => None,
        });
        [&mut self.sealed_ca_key].into_iter().chain(other)
    }
}

impl State {
    pub(super) fn note_secrets(&mut self, node: NodeId, secrets: Option<SecretIds>) {
        if let Some(member) = self.nodes.get_mut(&node).filter(|member| member.secrets != secrets) {
            member.secrets = secrets;
            self.dirty.nodes.insert(node);
        }
    }

    /// A person wants another secret to open what the cluster's opens.
    pub(super) fn reseal(&mut self, keys: &[Resealed]) -> Result<Reply, Refusal> {
        let cluster = self.cluster.as_ref().expect("nothing else is carried out before there is one");
        let was: Vec<Hash> = cluster.sealed_keys().into_iter().map(Hash::of).collect();
        if !was.iter().eq(keys.iter().map(|key| &key.was)) {
            return refuse("the key of the cluster's authority has changed meanwhile: try again");
        }
        let next = keys.first().and_then(|key| SecretId::of_sealed(&key.sealed));
        let Some(next) = next.filter(|next| keys.iter().all(|key| SecretId::of_sealed(&key.sealed) == Some(*next)))
        else {
            return refuse("the key of the cluster's authority is not sealed with one cluster secret");
        };
        let current = cluster.secret();
        let lacks = |member: &Node| match member.secrets {
            Some(secrets) => current.is_some_and(|current| secrets.contains(current)) && !secrets.contains(next),
            // Who has registered without one has joined otherwise, and signs nothing.
            None => member.worker.is_none(),
        };
        let lacking: Vec<_> =
            self.servers().filter(|(_, member)| lacks(member)).map(|(_, member)| member.name.to_string()).collect();
        if !lacking.is_empty() {
            return refuse(format!(
                "not every server has said that it has this next cluster secret: {}. Set cluster.next_secret_file \
                 (services.blixard.nextClusterSecretFile) there, to the same secret as here; a server that is lost is no \
                 server any more once another has taken its place",
                lacking.join(", ")
            ));
        }
        let cluster = self.cluster.as_mut().expect("it was there just now");
        for (key, Resealed { sealed, .. }) in cluster.sealed_keys_mut().zip(keys) {
            key.clone_from(sealed);
        }
        self.dirty.cluster = true;
        Ok(Reply::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{BOOT, Fixture, address, joiner, worker};
    use super::*;
    use crate::command::Command;
    use crate::types::{Level, NodeRole, RaftId};

    const OLD: SecretId = SecretId([2; 8]);
    const NEW: SecretId = SecretId([3; 8]);

    /// What was sealed with the secret of this id.
    fn sealed(with: SecretId) -> Vec<u8> {
        [&with.0[..], b"a key"].concat()
    }

    fn reseal(fixture: &mut Fixture, with: SecretId) -> Reply {
        let was = Hash::of(&fixture.state.cluster().unwrap().sealed_ca_key);
        fixture.say(Command::Reseal { keys: vec![Resealed { was, sealed: sealed(with) }] })
    }

    fn has(fixture: &mut Fixture, node: u64, secrets: Option<(SecretId, Option<SecretId>)>) {
        let secrets = secrets.map(|(current, next)| SecretIds { current, next });
        let (node, address, worker) = (NodeId(node), address(node), worker());
        let (understands, role) = (Level::NEWEST, NodeRole::Server);
        fixture.say(Command::RegisterWorker { node, address, understands, role, worker, secrets, boot: BOOT });
    }

    fn refused(reply: Reply, about: &str) {
        let Reply::Refused(why) = reply else { panic!("it was done: {reply:?}") };
        assert!(why.contains(about), "{why}");
    }

    /// Servers, all of which have the secret with which the key is sealed.
    fn fixture(servers: u64) -> Fixture {
        let mut fixture = Fixture::of_nodes(servers);
        for node in 1..=servers {
            has(&mut fixture, node, Some((OLD, None)));
        }
        fixture
    }

    fn secret(fixture: &Fixture) -> SecretId {
        fixture.state.cluster().unwrap().secret().unwrap()
    }

    #[test]
    fn another_secret_opens_the_key_once_every_server_that_signs_has_it() {
        let mut fixture = fixture(3);
        has(&mut fixture, 1, Some((OLD, Some(NEW))));
        refused(reseal(&mut fixture, NEW), "node2, node3. Set cluster.next_secret_file");
        has(&mut fixture, 2, Some((OLD, Some(SecretId([4; 8])))));
        has(&mut fixture, 3, Some((NEW, Some(OLD))));
        refused(reseal(&mut fixture, NEW), ": node2. ");
        has(&mut fixture, 2, Some((OLD, Some(NEW))));
        assert_eq!(secret(&fixture), OLD);
        assert_eq!(reseal(&mut fixture, NEW), Reply::Done);
        assert_eq!(secret(&fixture), NEW);
    }

    #[test]
    fn who_signs_nothing_or_is_no_server_is_not_waited_for() {
        let mut fixture = fixture(3);
        has(&mut fixture, 1, Some((OLD, Some(NEW))));
        has(&mut fixture, 2, None);
        // It can't sign now, either.
        has(&mut fixture, 3, Some((SecretId([4; 8]), None)));
        fixture.say(Command::Admit(joiner(4)));
        refused(reseal(&mut fixture, NEW), ": node4. ");
        has(&mut fixture, 4, Some((OLD, None)));
        fixture.remove_server(RaftId(4));
        assert_eq!(reseal(&mut fixture, NEW), Reply::Done);
    }

    #[test]
    fn what_was_sealed_anew_from_another_key_than_there_is_or_with_no_secret_is_refused() {
        let mut fixture = fixture(1);
        has(&mut fixture, 1, Some((OLD, Some(NEW))));
        let was = Hash::of(&fixture.state.cluster().unwrap().sealed_ca_key);
        let reseal = |keys| Command::Reseal { keys };
        for keys in [
            vec![],
            vec![Resealed { was: Hash::of(b"another"), sealed: sealed(NEW) }],
            vec![Resealed { was, sealed: sealed(NEW) }, Resealed { was, sealed: sealed(NEW) }],
        ] {
            refused(fixture.say(reseal(keys)), "has changed meanwhile: try again");
        }
        refused(fixture.say(reseal(vec![Resealed { was, sealed: vec![3] }])), "not sealed with one cluster secret");
        assert_eq!(secret(&fixture), OLD);
        // Two persons at once: the second one finds it done.
        let key = || Resealed { was, sealed: sealed(NEW) };
        assert_eq!(fixture.say(reseal(vec![key()])), Reply::Done);
        refused(fixture.say(reseal(vec![key()])), "has changed meanwhile");
    }

    #[test]
    fn while_the_authority_is_rotated_both_keys_are_sealed_anew_and_neither_with_a_secret_of_its_own() {
        let mut fixture = fixture(1);
        has(&mut fixture, 1, Some((OLD, Some(NEW))));
        let rotate = |with: SecretId| Command::RotateAuthority {
            certificate: b"new".to_vec(),
            sealed_key: [&with.0[..], b"other"].concat(),
        };
        refused(fixture.say(rotate(NEW)), "the cluster secret was rotated meanwhile");
        assert_eq!(fixture.say(rotate(OLD)), Reply::Done);
        refused(reseal(&mut fixture, NEW), "has changed meanwhile");
        let keys = fixture.state.cluster().unwrap().sealed_keys().into_iter();
        let keys: Vec<_> = keys.map(|key| Resealed { was: Hash::of(key), sealed: sealed(NEW) }).collect();
        let mixed = vec![keys[0].clone(), Resealed { sealed: sealed(OLD), ..keys[1].clone() }];
        refused(fixture.say(Command::Reseal { keys: mixed }), "not sealed with one cluster secret");
        assert_eq!(fixture.say(Command::Reseal { keys }), Reply::Done);
        assert_eq!(fixture.state.cluster().unwrap().sealed_keys(), [sealed(NEW), sealed(NEW)]);
    }

    #[test]
    fn what_a_node_says_of_its_secrets_again_changes_no_row() {
        let mut fixture = fixture(1);
        let before = fixture.state.clone();
        has(&mut fixture, 1, Some((OLD, None)));
        assert_eq!(fixture.state, before);
    }
}
