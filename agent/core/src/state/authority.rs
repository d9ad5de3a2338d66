//! How another certificate authority takes the place of the cluster's, while no two members ever refuse each other.
//!
//! ```text
//!  RotateAuthority ─▶ Coming: all are to trust both ── all do ─▶ Going: all are to show a certificate of the new one
//!                     the old one issues                         the new one issues      │ all do
//!                                                                                        ▼
//!                                                                      the old one is trusted no more
//! ```
//! A node says [`Command::Rotated`] once it does what it is to, and has that on disk. A node that admits or renews others may
//! lag behind, but by one step at most, since it has said so itself of the step before: what it issues is trusted.
//!
//! [`Command::Rotated`]: crate::command::Command::Rotated

use serde::{Deserialize, Serialize};

use super::nodes::not_a_member;
use super::{Cluster, Refusal, State, refuse};
use crate::command::Reply;
use crate::types::{Hash, NodeId, RotationStep, SecretId};

/// One authority takes the other's place.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Rotation {
    /// The log entry with which it began.
    pub began: u64,
    pub other: Other,
}

/// The authority beside the one that issues certificates; each certificate is DER.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Other {
    /// It is to take the place of the one that issues.
    Coming { certificate: Vec<u8>, sealed_key: Vec<u8> },
    /// It issues no more, and there are members with certificates of it.
    Going { certificate: Vec<u8> },
}

impl Cluster {
    /// The certificates (DER) of the authorities that members trust: first that of the one that issues.
    pub fn authorities(&self) -> Vec<&[u8]> {
        let other = self.rotation.as_ref().map(|rotation| match &rotation.other {
            Other::Coming { certificate, .. } | Other::Going { certificate } => certificate,
        });
        std::iter::once(&self.ca_certificate).chain(other).map(Vec::as_slice).collect()
    }

    /// The sealed key of the authority whose certificate has this hash, if it is known.
    pub fn sealed_key_of(&self, authority: Hash) -> Option<&[u8]> {
        let other = self.rotation.as_ref().and_then(|rotation| match &rotation.other {
            Other::Coming { certificate, sealed_key } => Some((certificate, sealed_key)),
            Other::Going { .. } => None,
        });
        let known = std::iter::once((&self.ca_certificate, &self.sealed_ca_key)).chain(other);
        known.into_iter().find(|(certificate, _)| Hash::of(certificate) == authority).map(|(_, key)| key.as_slice())
    }

    /// What nodes are to have done, if there is a rotation.
    pub fn rotation_step(&self) -> Option<RotationStep> {
        let Rotation { began, other } = self.rotation.as_ref()?;
        Some(RotationStep { began: *began, is_reissued: matches!(other, Other::Going { .. }) })
    }
}

impl State {
    /// The nodes that a rotation of the authority waits for.
    pub fn not_rotated(&self) -> impl Iterator<Item = NodeId> {
        let wanted = self.cluster.as_ref().and_then(Cluster::rotation_step);
        self.nodes.iter().filter(move |(_, node)| node.rotated < wanted).map(|(id, _)| *id)
    }

    /// A person wants another authority.
    pub(super) fn rotate_authority(
        &mut self,
        index: u64,
        certificate: &[u8],
        sealed_key: &[u8],
    ) -> Result<Reply, Refusal> {
        let cluster = self.cluster.as_mut().expect("nothing else is carried out before there is one");
        if cluster.rotation.is_some() {
            return refuse("the cluster's authority is being rotated: `blixard status` says for whom that waits");
        }
        if cluster.ca_certificate == certificate {
            return refuse("this is the cluster's authority already");
        }
        if SecretId::of_sealed(sealed_key) != cluster.secret() {
            return refuse("the cluster secret was rotated meanwhile: try again");
        }
        let (certificate, sealed_key) = (certificate.to_vec(), sealed_key.to_vec());
        cluster.rotation = Some(Rotation { began: index, other: Other::Coming { certificate, sealed_key } });
        self.dirty.cluster = true;
        Ok(Reply::Done)
    }

    /// A node has come so far with the rotation, and keeps that over a restart.
    pub(super) fn note_rotated(&mut self, node: NodeId, step: RotationStep) -> Result<Reply, Refusal> {
        let member = self.nodes.get_mut(&node).ok_or_else(|| not_a_member(node))?;
        if member.rotated < Some(step) {
            member.rotated = Some(step);
            self.dirty.nodes.insert(node);
            self.go_on_rotating();
        }
        Ok(Reply::Done)
    }

    /// Takes the next step if nobody is waited for.
    pub(super) fn go_on_rotating(&mut self) {
        if self.not_rotated().next().is_some() {
            return;
        }
        let cluster = self.cluster.as_mut().expect("nothing else is carried out before there is one");
        let Some(Rotation { began, other }) = cluster.rotation.take() else { return };
        if let Other::Coming { certificate, sealed_key } = other {
            let certificate = std::mem::replace(&mut cluster.ca_certificate, certificate);
            cluster.sealed_ca_key = sealed_key;
            cluster.rotation = Some(Rotation { began, other: Other::Going { certificate } });
        }
        self.dirty.cluster = true;
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Fixture, joiner};
    use super::super::{Beginner, Renewal};
    use super::*;
    use crate::command::Command;
    use crate::types::{NodeRole, Timestamp};

    const OLD: &[u8] = &[1];
    const NEW: &[u8] = b"new";
    const SEALED: &[u8] = &[2; 10];

    fn rotate(fixture: &mut Fixture, to: &[u8]) -> Reply {
        fixture.say(Command::RotateAuthority { certificate: to.to_vec(), sealed_key: SEALED.to_vec() })
    }

    fn report(fixture: &mut Fixture, node: u64, step: RotationStep) {
        assert_eq!(fixture.say(Command::Rotated { node: NodeId(node), step }), Reply::Done);
    }

    fn cluster(fixture: &Fixture) -> &Cluster {
        fixture.state.cluster().unwrap()
    }

    fn waits_for(fixture: &Fixture) -> Vec<u64> {
        fixture.state.not_rotated().map(|node| node.0).collect()
    }

    /// All nodes but the last do what they are to, each in turn; what the cluster says they are to do.
    fn all_but_the_last(fixture: &mut Fixture, of: u64, authorities: &[&[u8]]) -> RotationStep {
        let step = cluster(fixture).rotation_step().unwrap();
        for node in 1..=of {
            assert_eq!(
                (cluster(fixture).authorities(), waits_for(fixture)),
                (authorities.to_vec(), (node..=of).collect())
            );
            if node < of {
                report(fixture, node, step);
            }
        }
        step
    }

    #[test]
    fn each_step_waits_until_all_nodes_have_taken_the_one_before() {
        let mut fixture = Fixture::of_nodes(3);
        assert_eq!((cluster(&fixture).authorities(), waits_for(&fixture)), (vec![OLD], vec![]));
        assert_eq!(rotate(&mut fixture, NEW), Reply::Done);
        let key_of =
            |fixture: &Fixture, authority| cluster(fixture).sealed_key_of(Hash::of(authority)).map(<[u8]>::to_vec);
        assert_eq!((key_of(&fixture, OLD), key_of(&fixture, NEW)), (Some(vec![2; 9]), Some(SEALED.to_vec())));
        let trusting = all_but_the_last(&mut fixture, 3, &[OLD, NEW]);
        report(&mut fixture, 3, trusting);
        assert_eq!((key_of(&fixture, OLD), key_of(&fixture, NEW)), (None, Some(SEALED.to_vec())));
        let reissued = all_but_the_last(&mut fixture, 3, &[NEW, OLD]);
        // What is heard late, or again, is nothing new.
        report(&mut fixture, 3, trusting);
        report(&mut fixture, 1, trusting);
        assert_eq!(waits_for(&fixture), [3]);
        report(&mut fixture, 3, reissued);
        assert_eq!((cluster(&fixture).authorities(), cluster(&fixture).rotation.clone()), (vec![NEW], None));
    }

    #[test]
    fn what_a_node_did_in_one_rotation_counts_for_nothing_in_the_next() {
        let mut fixture = Fixture::of_nodes(1);
        for to in [NEW, OLD] {
            rotate(&mut fixture, to);
            for _ in 0..2 {
                assert_eq!(waits_for(&fixture), [1]);
                let step = cluster(&fixture).rotation_step().unwrap();
                report(&mut fixture, 1, step);
            }
            assert_eq!(cluster(&fixture).authorities(), [to]);
        }
    }

    #[test]
    fn one_rotation_at_a_time_and_to_another_authority() {
        let mut fixture = Fixture::of_nodes(1);
        assert!(matches!(rotate(&mut fixture, OLD), Reply::Refused(why) if why.contains("already")));
        rotate(&mut fixture, NEW);
        let Reply::Refused(why) = rotate(&mut fixture, b"newer") else { panic!("two at once") };
        assert!(why.contains("being rotated") && why.contains("blixard status"), "{why}");
    }

    #[test]
    fn an_epoch_begins_with_the_authority_that_issues() {
        for is_going in [false, true] {
            let mut fixture = Fixture::of_nodes(2);
            rotate(&mut fixture, NEW);
            let step = cluster(&fixture).rotation_step().unwrap();
            for node in (1..=2).filter(|_| is_going) {
                report(&mut fixture, node, step);
            }
            let first = Beginner::Survivor(NodeId(1));
            fixture.state.begin_epoch(Renewal::Recovered, first, 7, Timestamp(1)).unwrap();
            assert_eq!(cluster(&fixture).authorities(), [if is_going { NEW } else { OLD }]);
        }
    }

    #[test]
    fn who_joins_meanwhile_is_waited_for_and_who_leaves_is_not() {
        let mut fixture = Fixture::of_nodes(2);
        rotate(&mut fixture, NEW);
        let step = cluster(&fixture).rotation_step().unwrap();
        report(&mut fixture, 1, step);
        fixture.join(3, NodeRole::Worker);
        report(&mut fixture, 2, step);
        assert_eq!(waits_for(&fixture), [3]);
        fixture.decide(Command::SetWorkerAlive { node: NodeId(3), alive: false });
        fixture.say(Command::RemoveNode { node: NodeId(3), dead: true, abandon_volumes: false });
        assert_eq!((cluster(&fixture).authorities(), waits_for(&fixture)), (vec![NEW, OLD], vec![1, 2]));
        let late = fixture.say(Command::Rotated { node: NodeId(3), step });
        assert!(matches!(late, Reply::Refused(why) if why.contains("not a member")));
        fixture.say(Command::Admit(joiner(4)));
        assert_eq!(waits_for(&fixture), [1, 2, 4]);
    }
}
