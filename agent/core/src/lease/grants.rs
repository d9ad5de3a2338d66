//! When the leader last granted each node its lease, and what follows: who may go on, whose instances may start elsewhere.
//!
//! The other half of each deadline is on the node, counted from before it asked. What keeps the two apart:
//! * who is granted something has asked before a quorum confirmed this leader, so no later leader's wait began before;
//! * a new leader waits as if it had granted everybody everything when it began;
//! * a command that ends an epoch is preceded by a mark: nothing is granted between the decision and what it does.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::command::Command;
use crate::state::{Arming, State, Takeover};
use crate::types::{BootTime, NodeEpoch, NodeId};

/// How long a node that has armed may wait until its lease is counted, and a decision until it is made, or made again.
const LOOK: Duration = Duration::from_secs(1);

/// What a leader has granted in its term.
#[derive(Clone, Debug, Default)]
pub struct Grants {
    known: BTreeMap<NodeId, Grant>,
    /// When this leader began to lead.
    since: BootTime,
    /// When it looks again: until then nobody's lease ends, and later grants only put that off.
    look_at: BootTime,
}

#[derive(Clone, Copy, Debug)]
struct Grant {
    epoch: NodeEpoch,
    /// When it was granted last, or, where it never was, when it was seen to be armed.
    at: BootTime,
    /// Nothing is granted for this epoch any more: it is about to end.
    marked: bool,
}

/// Why a lease isn't renewed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Denial {
    #[error("node {0} is not a member of this cluster")]
    NotAMember(NodeId),
    #[error("node {node} is at epoch {current}, and not at {epoch} any more")]
    OtherEpoch { node: NodeId, epoch: NodeEpoch, current: NodeEpoch },
    #[error("epoch {epoch} of node {node} has ended")]
    Ended { node: NodeId, epoch: NodeEpoch },
    #[error("epoch {epoch} of node {node} is about to end: it was not renewed in time")]
    Expiring { node: NodeId, epoch: NodeEpoch },
}

impl Grants {
    /// A new term begins: whatever leaders before have granted may have been granted just now.
    pub fn restart(&mut self, now: BootTime) {
        *self = Self { since: now, look_at: now, ..Self::default() };
    }

    /// Renews the lease of a node.
    ///
    /// The caller has applied an entry of its own term, and a round of reads that began after the node's request came in
    /// has confirmed that it leads.
    ///
    /// # Errors
    /// Why not; the node has to arm anew.
    pub fn grant(&mut self, state: &State, node: NodeId, epoch: NodeEpoch, now: BootTime) -> Result<(), Denial> {
        let lease = state.nodes().get(&node).ok_or(Denial::NotAMember(node))?.lease;
        if lease.epoch != epoch {
            return Err(Denial::OtherEpoch { node, epoch, current: lease.epoch });
        }
        if lease.arming().is_none() {
            return Err(Denial::Ended { node, epoch });
        }
        let known = self.known.get(&node).filter(|known| known.epoch == epoch);
        if known.is_some_and(|known| known.marked) {
            return Err(Denial::Expiring { node, epoch });
        }
        self.known.insert(node, Grant { epoch, at: now, marked: false });
        Ok(())
    }

    /// What is to be decided about leases now: to freeze takeover or to let it go on; and, where that stays as it is, to end
    /// the epochs of those that have been granted nothing for as long as their fences may take.
    ///
    /// `is_silent` says who doesn't answer. Who was granted nothing for as long as a lease lasts is silent, too, whatever else
    /// is known of it: that is less than any wait, so no epoch ends that the brake hasn't weighed.
    pub fn decide(&mut self, state: &State, is_silent: impl Fn(NodeId) -> bool, now: BootTime) -> Vec<Command> {
        if now < self.look_at {
            return Vec::new();
        }
        match takeover(state, |node| is_silent(node) || self.is_over(state, node, now)) {
            Some(brake) => vec![brake],
            None => self.expired(state, now),
        }
    }

    /// Whether a node's lease has ended, by this clock and as far as this leader knows.
    fn is_over(&self, state: &State, node: NodeId, now: BootTime) -> bool {
        let lease = state.nodes().get(&node).map(|member| member.lease);
        let (Some(lease), Some(grant)) = (lease, self.known.get(&node)) else { return false };
        let is_over = |arming: &Arming| now >= grant.at.after(arming.terms.lease());
        grant.epoch == lease.epoch && lease.unended().is_some_and(is_over)
    }

    /// Each is marked, and decided again until it is carried out; none while takeover is frozen.
    fn expired(&mut self, state: &State, now: BootTime) -> Vec<Command> {
        let mut decisions = Vec::new();
        self.look_at = now.after(LOOK);
        if matches!(state.takeover(), Takeover::Frozen { .. }) {
            return decisions;
        }
        self.known.retain(|node, _| state.nodes().contains_key(node));
        for (node, epoch, arming) in unended(state) {
            let fresh = Grant { epoch, at: now, marked: false };
            let grant = self.known.entry(node).or_insert(fresh);
            if grant.epoch != epoch {
                *grant = fresh;
            }
            let ends = grant.at.after(arming.terms.wait());
            grant.marked |= now >= ends;
            if grant.marked {
                decisions.push(Command::Fence { node, epoch });
            } else {
                self.look_at = self.look_at.min(ends);
            }
        }
        decisions
    }

    /// Why the leader doesn't take this command now, which would end the epoch of a node that may still act. Where nothing
    /// stands against it, it is to be proposed at once: the node is granted nothing more.
    ///
    /// The caller has applied an entry of its own term, or it may not know what epoch that is.
    pub fn objection(&mut self, state: &State, command: &Command, now: BootTime) -> Option<String> {
        let (node, shown) = match *command {
            Command::Arm { node, expected, nonce, machine } => (node, Some((expected, nonce, machine))),
            Command::ConfirmDead { node, .. } | Command::RemoveNode { node, dead: true, .. } => (node, None),
            _ => return None,
        };
        let member = state.nodes().get(&node)?;
        let (name, epoch, arming) = (&member.name, member.lease.epoch, member.lease.unended()?);
        if let Some((expected, nonce, machine)) = shown {
            if member.lease.is_armed_by(expected, nonce) {
                return None;
            }
            if expected != epoch {
                return Some(format!("{name} is at epoch {epoch}, so arming it after {expected} is stale"));
            }
            // A fence on the same machine has stopped what ran there. One elsewhere, from a copy of the disk, has not.
            if machine.is_some() && machine == arming.machine {
                return None;
            }
        }
        let known = self.known.get(&node).filter(|known| known.epoch == epoch);
        let at = known.map_or(self.since, |known| known.at);
        let left = now.until(at.after(arming.terms.wait()));
        if left > Duration::ZERO {
            let seconds = left.as_millis().div_ceil(1000);
            return Some(format!(
                "{name} may still have a lease, and run what is placed on it: try again in {seconds} s"
            ));
        }
        self.known.insert(node, Grant { epoch, at, marked: true });
        None
    }
}

/// The decision to freeze takeover, or to let it go on: frozen while more than a third of the nodes that answer or have a
/// lease don't answer. Then it is likelier the network that is lost than all of them.
fn takeover(state: &State, is_silent: impl Fn(NodeId) -> bool) -> Option<Command> {
    let silent = unended(state).filter(|(node, ..)| is_silent(*node)).count();
    let workers = state.nodes().iter().filter(|(_, member)| member.worker.is_some());
    let answering = workers.filter(|(node, _)| !is_silent(**node)).count();
    let is_frozen = silent * 3 > silent + answering;
    let is_news = match state.takeover() {
        Takeover::Free => is_frozen,
        Takeover::Frozen { .. } | Takeover::Resumed => !is_frozen,
    };
    is_news.then_some(Command::SetTakeover { is_frozen })
}

fn unended(state: &State) -> impl Iterator<Item = (NodeId, NodeEpoch, &Arming)> {
    state.nodes().iter().filter_map(|(id, member)| Some((*id, member.lease.epoch, member.lease.unended()?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Origin;
    use crate::manifest::Manifest;
    use crate::state::tests::{Fixture, NEXT_BOOT};
    use crate::types::{Hash, LeaseTerms, Nonce};

    fn at(seconds: u64) -> BootTime {
        BootTime(seconds * 1_000_000_000)
    }

    /// `wait` of the default terms, in seconds.
    const WAIT: u64 = 16;

    /// Node 1 arms again, on this machine.
    fn arm(expected: u64, machine: Option<&str>) -> Command {
        let machine = machine.map(|machine| Hash::of(machine.as_bytes()));
        let (node, nonce) = (NodeId(1), Nonce(u128::from(expected).to_be_bytes()));
        Command::Arm { node, expected: NodeEpoch(expected), nonce, machine }
    }

    fn fence(node: u64, epoch: u64) -> Command {
        Command::Fence { node: NodeId(node), epoch: NodeEpoch(epoch) }
    }

    /// So many nodes, all armed at epoch 1, and a leader since the tenth second.
    fn armed_nodes(count: u64) -> (Fixture, Grants) {
        let (fixture, mut grants) = (Fixture::of_nodes(count), Grants::default());
        grants.restart(at(10));
        (fixture, grants)
    }

    fn grant(grants: &mut Grants, fixture: &Fixture, node: u64, seconds: u64) -> Result<(), Denial> {
        grants.grant(&fixture.state, NodeId(node), NodeEpoch(1), at(seconds))
    }

    #[test]
    fn who_is_armed_by_that_epoch_is_granted_its_lease_and_nobody_else() {
        let (mut fixture, mut grants) = armed_nodes(2);
        assert_eq!(grant(&mut grants, &fixture, 2, 11), Ok(()));
        assert_eq!(grant(&mut grants, &fixture, 3, 11), Err(Denial::NotAMember(NodeId(3))));
        fixture.arm(2);
        let (node, epoch) = (NodeId(2), NodeEpoch(1));
        assert_eq!(
            grant(&mut grants, &fixture, 2, 12),
            Err(Denial::OtherEpoch { node, epoch, current: NodeEpoch(2) }),
            "an old epoch"
        );
        assert_eq!(grants.grant(&fixture.state, node, NodeEpoch(2), at(12)), Ok(()));
        fixture.decide(fence(1, 1));
        assert_eq!(grant(&mut grants, &fixture, 1, 13), Err(Denial::Ended { node: NodeId(1), epoch }));
    }

    #[test]
    fn a_lease_ends_when_nothing_was_granted_for_as_long_as_the_wait() {
        let (fixture, mut grants) = armed_nodes(2);
        for second in 10..40 {
            grant(&mut grants, &fixture, 1, second).unwrap();
            let expected = if second < 15 + WAIT { vec![] } else { vec![fence(2, 1)] };
            assert_eq!(grants.expired(&fixture.state, at(second)), expected, "after {second} s");
            if second <= 15 {
                grant(&mut grants, &fixture, 2, second).unwrap();
            }
        }
    }

    #[test]
    fn whose_epoch_is_about_to_end_is_granted_nothing_more_in_this_term() {
        let (fixture, mut grants) = armed_nodes(1);
        grant(&mut grants, &fixture, 1, 10).unwrap();
        assert_eq!(grants.expired(&fixture.state, at(10 + WAIT)), [fence(1, 1)]);
        let denial = Denial::Expiring { node: NodeId(1), epoch: NodeEpoch(1) };
        assert_eq!(grant(&mut grants, &fixture, 1, 11 + WAIT), Err(denial));
        assert_eq!(grants.expired(&fixture.state, at(12 + WAIT)), [fence(1, 1)], "until it is carried out");
        grants.restart(at(13 + WAIT));
        assert_eq!(grant(&mut grants, &fixture, 1, 13 + WAIT), Ok(()), "that decision died with its leader");
    }

    #[test]
    fn a_new_leader_waits_as_if_everybody_was_granted_a_lease_when_it_began() {
        let (fixture, mut grants) = armed_nodes(1);
        grant(&mut grants, &fixture, 1, 10).unwrap();
        grants.restart(at(20));
        assert_eq!(grants.expired(&fixture.state, at(20)), []);
        assert_eq!(grants.expired(&fixture.state, at(19 + WAIT)), []);
        assert_eq!(grants.expired(&fixture.state, at(20 + WAIT)), [fence(1, 1)]);
    }

    #[test]
    fn who_arms_has_the_whole_wait_for_its_first_renewal() {
        let (mut fixture, mut grants) = armed_nodes(1);
        grants.expired(&fixture.state, at(20));
        fixture.join(2, crate::types::NodeRole::Server);
        grant(&mut grants, &fixture, 1, 20).unwrap();
        for second in 20..20 + WAIT {
            assert_eq!(grants.expired(&fixture.state, at(second)), [], "after {second} s");
        }
    }

    #[test]
    fn while_takeover_is_frozen_no_epoch_ends_and_afterwards_it_does() {
        let (mut fixture, mut grants) = armed_nodes(1);
        fixture.decide(Command::SetTakeover { is_frozen: true });
        assert_eq!(grants.expired(&fixture.state, at(90)), []);
        assert_eq!(grant(&mut grants, &fixture, 1, 90), Ok(()), "who returns goes on");
        fixture.say(Command::ResumeTakeover);
        assert_eq!(grants.expired(&fixture.state, at(90)), []);
        assert_eq!(grants.expired(&fixture.state, at(90 + WAIT)), [fence(1, 1)]);
    }

    #[test]
    fn another_machine_under_the_same_name_waits_and_the_same_one_does_not() {
        let (mut fixture, mut grants) = armed_nodes(1);
        fixture.say(arm(1, Some("its machine")));
        grants.grant(&fixture.state, NodeId(1), NodeEpoch(2), at(11)).unwrap();
        let mut objection = |machine, second| grants.objection(&fixture.state, &arm(2, Some(machine)), at(second));
        assert_eq!(objection("its machine", 12), None);
        let why = objection("a clone", 12).expect("it waits");
        assert!(why.contains("node1") && why.contains("in 15 s"), "{why}");
        assert!(objection("a clone", 10 + WAIT).is_some());
        assert_eq!(objection("a clone", 11 + WAIT), None);
    }

    #[test]
    fn whose_host_has_booted_is_granted_nothing_and_its_epoch_ends_like_any_other() {
        let (mut fixture, mut grants) = armed_nodes(2);
        fixture.say(arm(1, Some("its machine")));
        grants.grant(&fixture.state, NodeId(1), NodeEpoch(2), at(12)).unwrap();
        fixture.start_agent(1, NEXT_BOOT);
        let denial = Denial::Ended { node: NodeId(1), epoch: NodeEpoch(2) };
        assert_eq!(grants.grant(&fixture.state, NodeId(1), NodeEpoch(2), at(13)), Err(denial));
        let mut objection = |machine| grants.objection(&fixture.state, &arm(2, Some(machine)), at(14)).is_some();
        assert_eq!(["its machine", "a clone"].map(&mut objection), [false, true]);
        assert!(takeover(&fixture.state, |node| node == NodeId(1)).is_some(), "while it is silent it counts");
        grant(&mut grants, &fixture, 2, 11 + WAIT).unwrap();
        assert_eq!(grants.expired(&fixture.state, at(11 + WAIT)), []);
        assert_eq!(grants.expired(&fixture.state, at(12 + WAIT)), [fence(1, 2)]);
    }

    #[test]
    fn machines_that_do_not_say_which_they_are_are_not_the_same() {
        let (mut fixture, mut grants) = armed_nodes(1);
        fixture.say(arm(1, None));
        assert!(grants.objection(&fixture.state, &arm(2, None), at(11)).is_some());
        assert_eq!(grants.objection(&fixture.state, &arm(2, None), at(10 + WAIT)), None);
    }

    #[test]
    fn once_another_machine_may_arm_the_one_before_is_granted_nothing_more() {
        let (fixture, mut grants) = armed_nodes(1);
        assert!(grants.objection(&fixture.state, &arm(0, Some("a clone")), at(90)).is_some(), "it is late");
        assert_eq!(grant(&mut grants, &fixture, 1, 10), Ok(()));
        assert_eq!(grants.objection(&fixture.state, &arm(1, Some("a clone")), at(90)), None);
        assert!(matches!(grant(&mut grants, &fixture, 1, 91), Err(Denial::Expiring { .. })));
    }

    #[test]
    fn nobody_is_confirmed_dead_who_may_still_have_a_lease() {
        let (mut fixture, mut grants) = armed_nodes(3);
        let confirm = |node| Command::ConfirmDead { node: NodeId(node), abandon_volumes: false };
        let bury = |node| Command::RemoveNode { node: NodeId(node), dead: true, abandon_volumes: false };
        let leave = Command::RemoveNode { node: NodeId(2), dead: false, abandon_volumes: false };
        grant(&mut grants, &fixture, 2, 20).unwrap();
        assert_eq!(grants.objection(&fixture.state, &leave, at(21)), None);
        for command in [confirm(2), bury(2), confirm(3)] {
            let objection = grants.objection(&fixture.state, &command, at(21));
            assert!(objection.is_some_and(|why| why.contains("may still")), "{command:?}");
        }
        fixture.decide(fence(3, 1));
        assert_eq!(grants.objection(&fixture.state, &confirm(3), at(21)), None, "its fence has acted");
        assert_eq!(grant(&mut grants, &fixture, 2, 21), Ok(()), "an objection changes nothing");
        assert_eq!(grants.objection(&fixture.state, &confirm(2), at(21 + WAIT)), None);
        assert!(matches!(grant(&mut grants, &fixture, 2, 22 + WAIT), Err(Denial::Expiring { .. })));
    }

    #[test]
    fn takeover_is_frozen_while_more_than_a_third_is_silent() {
        let (mut fixture, _) = armed_nodes(6);
        let decided = |fixture: &Fixture, silent: u64| takeover(&fixture.state, |node| node.0 <= silent);
        assert_eq!(decided(&fixture, 2), None);
        let frozen = decided(&fixture, 3).expect("a decision");
        assert_eq!(frozen, Command::SetTakeover { is_frozen: true });
        fixture.decide(frozen);
        assert_eq!(decided(&fixture, 4), None, "it is frozen already");
        assert_eq!(decided(&fixture, 2), Some(Command::SetTakeover { is_frozen: false }));
        fixture.say(Command::ResumeTakeover);
        assert_eq!(decided(&fixture, 3), None, "a person has decided otherwise");
        for node in 2..=3 {
            fixture.decide(fence(node, 1));
        }
        assert_eq!(decided(&fixture, 3), Some(Command::SetTakeover { is_frozen: false }), "who is fenced is no news");
    }

    #[test]
    fn no_epoch_ends_that_the_brake_has_not_weighed_however_short_leases_are() {
        let shortest = LeaseTerms::new(1003, 1, 2000, 3024).expect("they fit");
        for terms in [shortest, LeaseTerms::FAST, LeaseTerms::DEFAULT, LeaseTerms::RELAXED] {
            let (mut fixture, mut grants) = armed_nodes(6);
            let mut declared = Manifest::new(BTreeMap::new()).unwrap();
            declared.cluster.lease = terms;
            fixture.say(Command::OfferManifest { manifest: declared, from: Origin::Person("a person".to_owned()) });
            (1..=6).for_each(|node| _ = fixture.arm(node));
            let mut now = at(10);
            let decided = loop {
                for node in 4..=6 {
                    grants.grant(&fixture.state, NodeId(node), NodeEpoch(2), now).unwrap();
                }
                // Whoever listens has heard everybody just now.
                let decided = grants.decide(&fixture.state, |_| false, now);
                if !decided.is_empty() {
                    break decided;
                }
                now = now.after(Duration::from_millis(10));
            };
            assert_eq!(decided, [Command::SetTakeover { is_frozen: true }], "{terms}");
            assert!(now < at(10).after(terms.wait()), "{terms}");
            fixture.decide(decided[0].clone());
            for node in 1..=3 {
                assert_eq!(
                    grants.grant(&fixture.state, NodeId(node), NodeEpoch(2), now),
                    Ok(()),
                    "who returns goes on"
                );
            }
            let later = now.after(LOOK);
            assert_eq!(grants.decide(&fixture.state, |_| false, later), [Command::SetTakeover { is_frozen: false }]);
        }
    }

    #[test]
    fn an_arming_that_comes_again_is_not_objected_to() {
        let (mut fixture, mut grants) = armed_nodes(2);
        fixture.say(arm(1, None));
        assert_eq!(grants.objection(&fixture.state, &arm(1, None), at(11)), None, "it was carried out");
        assert_eq!(grants.grant(&fixture.state, NodeId(1), NodeEpoch(2), at(11)), Ok(()), "and it marks nobody");
        fixture.arm(1);
        assert!(grants.objection(&fixture.state, &arm(1, None), at(11)).is_some_and(|why| why.contains("stale")));
    }

    #[test]
    fn who_has_no_lease_counts_for_the_brake_while_it_answers() {
        let mut fixture = Fixture::of_nodes(4);
        for node in 3..=4 {
            fixture.decide(fence(node, 1));
        }
        assert_eq!(takeover(&fixture.state, |node| node.0 == 1), None, "one of four");
        assert!(takeover(&fixture.state, |node| node.0 != 2).is_some(), "one of two: nobody knows since when");
    }

    #[test]
    fn nobody_is_looked_at_before_somebodys_lease_may_end() {
        let (fixture, mut grants) = armed_nodes(1);
        grants.expired(&fixture.state, at(10));
        let looks = |grants: &Grants| grants.look_at;
        assert_eq!(looks(&grants), at(11));
        grants.decide(&fixture.state, |_| false, BootTime(10_500_000_000));
        assert_eq!(looks(&grants), at(11), "it is too early");
        grants.expired(&fixture.state, BootTime(9_500_000_000 + WAIT * 1_000_000_000));
        assert_eq!(looks(&grants), at(10 + WAIT), "earlier than a second later");
    }
}
