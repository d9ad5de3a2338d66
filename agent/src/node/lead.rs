//! What only a leader does: it decides, and proposes what it has decided, for its own term.

use std::time::{Duration, Instant};

use blixard_core::command::{Answer, Command};
use blixard_core::driver::{Role, Status};
use blixard_core::types::{NodeId, RaftId, Term};
use blixard_core::{membership, schedule, state};
use tokio::sync::oneshot;

use super::{Node, SILENT_TICKS, TICK, Waiting};
use crate::boot_time;

/// How often the leader looks who has fallen silent, which takes the longer the more nodes there are.
const LISTEN_TICKS: u64 = 50;

/// How often it looks which servers there are to be.
const LOOK_TICKS: u64 = 10;

/// How long the founder of a cluster waits for the other configured servers before it places anything.
const FOUNDING_TICKS: u64 = 1000;

/// How long a leader that stops waits for another to take over.
const HAND_OVER_TICKS: u64 = 100;

/// What a node that is to stop does next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Leave {
    End,
    Wait,
    /// Once; then it waits until the other leads.
    HandOver(RaftId),
}

/// What a node does that was told to stop so many ticks ago.
///
/// Raft counts anew who is active each time it has checked its quorum: when nobody is, the next answers tell who is. A
/// leader that gets none is deposed by the next check.
pub(super) fn leave(status: &Status, ticks: u64) -> Leave {
    let voters = &status.membership.voters;
    if status.soft.role != Role::Leader || voters.len() < 2 || ticks >= HAND_OVER_TICKS {
        return Leave::End;
    }
    match membership::successor(status.peers.iter().filter(|peer| voters.contains(&peer.id))) {
        Some(peer) if ticks > 0 => Leave::HandOver(peer),
        _ => Leave::Wait,
    }
}

/// What a leader remembers within its term.
pub(super) struct Lead {
    /// Something has changed since the scheduler last looked.
    pub dirty: bool,
    pub handing_over: bool,
    /// Decisions that aren't applied yet: the next ones have to see what they did.
    undecided: Vec<oneshot::Receiver<Result<Answer, super::Attempt>>>,
    /// When the leader looks next who has fallen silent or come, in ticks.
    listen_at: u64,
    /// When it looks next which servers there are to be, in ticks.
    pub look_at: u64,
    /// When the states are to be compared next, in ticks.
    check_at: u64,
}

impl Lead {
    /// What the leader before didn't get to is to be looked at.
    pub fn new(check_at: u64) -> Self {
        Self { dirty: true, handing_over: false, undecided: Vec::new(), listen_at: 0, look_at: 0, check_at }
    }
}

impl Node {
    pub(super) fn lead(&mut self) {
        if !self.may_decide() || self.lead.handing_over {
            return;
        }
        self.lead
            .undecided
            .retain_mut(|decision| matches!(decision.try_recv(), Err(oneshot::error::TryRecvError::Empty)));
        if !self.lead.undecided.is_empty() {
            return;
        }
        if self.known.look().state.cluster().is_none() {
            if let Some(founding) = self.founding.clone() {
                self.decide(founding);
            }
            return;
        }
        self.end_leases();
        if self.ticks >= self.lead.listen_at {
            self.lead.listen_at = self.ticks + LISTEN_TICKS;
            let decisions = self.liveness.decide(&self.known.look().state, self.own, self.ticks, SILENT_TICKS);
            for decision in decisions {
                tracing::info!(?decision, "a worker's status changes");
                self.decide(decision);
            }
        }
        if self.ticks >= self.lead.look_at {
            self.lead.look_at = self.ticks + LOOK_TICKS;
            self.change_servers();
            let level = self.known.look().state.next_level();
            if let Some(level) = level {
                tracing::info!(%level, "every node understands a newer feature level");
                self.decide(Command::RaiseLevel { level });
                return;
            }
        }
        if self.ticks >= self.lead.check_at {
            self.lead.check_at = self.ticks + self.check_ticks;
            if self.has_changed_since_check() {
                self.decide(Command::CheckState);
            }
        }
        if self.awaits_servers() {
            return;
        }
        if std::mem::take(&mut self.lead.dirty) {
            let decisions = schedule::schedule(&self.known.look().state);
            for decision in decisions {
                tracing::info!(?decision, "the scheduler decides");
                self.decide(decision);
            }
        }
    }

    /// The next step towards the servers that are wanted, and to forget who was to go and is no server any more.
    fn change_servers(&mut self) {
        let status = self.driver.status();
        let (step, gone) = {
            let known = self.known.look();
            let gone: Vec<_> = membership::gone(&known.state, &status.membership).collect();
            let seconds = known.state.settings().replace_servers_after_seconds;
            let is_lost = |node| self.liveness.is_silent_for(node, self.ticks, ticks_of(seconds));
            let is_lost = |node| node != self.own && is_lost(node);
            let own = known.standing.raft.expect("who leads is a server");
            (membership::next_step(&known.state, own, &status, is_lost), gone)
        };
        match step {
            // Refused while another is under way, or the learner falls behind: it is tried again.
            Some(membership::Step::Change(change)) => {
                if let Err(error) = self.driver.propose_membership(change, Vec::new()) {
                    tracing::debug!(%change, %error, "a change of the servers waits");
                }
            }
            Some(membership::Step::HandOver(peer)) => {
                let handed = self.driver.transfer_leader(peer);
                tracing::info!(%peer, ok = handed.is_ok(), "this node is to go: leadership is handed over");
            }
            Some(membership::Step::Enlist(node)) => {
                tracing::info!(%node, "a node is to be a server");
                self.decide(Command::Enlist { node });
            }
            None => {}
        }
        for node in gone {
            tracing::info!(%node, "a removed node is forgotten");
            self.decide(Command::ForgetNode { node });
        }
    }

    /// Begins to hand leadership over at a person's word; to whom, or why to nobody.
    pub(super) fn transfer(&mut self, to: Option<NodeId>) -> Result<RaftId, String> {
        let status = self.driver.status();
        if status.soft.role != Role::Leader {
            return Err("this node leads no more: try again".to_owned());
        }
        let peer = membership::heir(&self.known.look().state, to, &status)?;
        let handed = self.driver.transfer_leader(peer);
        handed.map_err(|error| crate::error_chain(&error))?;
        tracing::info!(%peer, "leadership is handed over, as a person wants it");
        Ok(peer)
    }

    /// Why a leader refuses to do this now; who answers, and what was granted, is in its memory alone.
    pub(super) fn objection(&mut self, command: &Command) -> Option<String> {
        if !self.leads() {
            return None;
        }
        let known = self.known.look();
        if let Some(why) = self.grants.objection(&known.state, command, boot_time::now()) {
            return Some(why);
        }
        let Command::RemoveNode { node, .. } = command else { return None };
        let is_heard = |node| node == self.own || self.liveness.answers(node, self.ticks, SILENT_TICKS);
        membership::objection(&known.state, *node, &known.standing.voters, is_heard)
    }

    /// Whether there were entries other than the last check's own.
    fn has_changed_since_check(&self) -> bool {
        let known = self.known.look();
        let check = known.state.check();
        self.applied > check.map_or(0, |check| check.at + check.hashes.len() as u64)
    }

    /// The founder gives the other servers time to join, and to arm, or it would place everything on itself.
    fn awaits_servers(&mut self) -> bool {
        if self.founding.is_none() {
            return false;
        }
        let is_ready = |node: &&state::Node| {
            let worker = node.worker.as_ref();
            worker.is_some_and(|worker| worker.no_fence.is_some() || node.lease.arming().is_some())
        };
        let lacks_some = {
            let known = self.known.look();
            let registered = known.state.nodes().values().filter(is_ready).count();
            known.state.cluster().is_some_and(|cluster| registered < cluster.listed_servers)
        };
        let waits = lacks_some && self.ticks < FOUNDING_TICKS;
        if !waits {
            self.founding = None;
            self.lead.dirty = true;
        }
        waits
    }

    pub(super) fn decide(&mut self, command: Command) {
        let term = Term(self.driver.term());
        let (answer, answered) = oneshot::channel();
        // Decided anew after that; a decision that commits late is checked by `apply` all the same.
        let deadline = Instant::now() + Duration::from_secs(5);
        match self.append(command, Some(term), None, Waiting { deadline, answer }) {
            Ok(()) => self.lead.undecided.push(answered),
            Err((_, error)) => {
                tracing::debug!(%error, "a decision waits");
                self.lead.dirty = true;
            }
        }
    }
}

/// So many of raft's ticks are so many seconds.
fn ticks_of(seconds: u32) -> u64 {
    let ticks = Duration::from_secs(seconds.into()).as_millis() / TICK.as_millis();
    u64::try_from(ticks).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use blixard_core::driver::{Membership, Peer, Soft};

    use super::*;

    /// Of a leader with two other voters, the second further on, and a learner that is further still.
    fn status(active: [bool; 2]) -> Status {
        let peer = |id, matched, recently_active| Peer { id: RaftId(id), matched, recently_active, caught_up: true };
        Status {
            soft: Soft { role: Role::Leader, leader: Some(RaftId(1)) },
            term: 1,
            commit: 9,
            applied: 9,
            first_index: 1,
            last_index: 9,
            membership: Membership {
                voters: BTreeSet::from([1, 2, 3].map(RaftId)),
                learners: BTreeSet::from([RaftId(4)]),
            },
            peers: vec![peer(2, 7, active[0]), peer(3, 8, active[1]), peer(4, 9, true)],
        }
    }

    #[test]
    fn leadership_goes_to_the_active_voter_that_lacks_least() {
        assert_eq!(leave(&status([true, true]), 1), Leave::HandOver(RaftId(3)));
        assert_eq!(leave(&status([true, false]), 1), Leave::HandOver(RaftId(2)));
    }

    #[test]
    fn a_leader_that_stops_waits_until_it_knows_who_is_active_but_not_for_ever() {
        assert_eq!(leave(&status([false, false]), 1), Leave::Wait);
        assert_eq!(leave(&status([false, false]), HAND_OVER_TICKS), Leave::End);
        assert_eq!(leave(&status([true, true]), HAND_OVER_TICKS), Leave::End);
    }

    #[test]
    fn who_does_not_lead_or_is_alone_ends_at_once() {
        let mut follower = status([false, false]);
        follower.soft.role = Role::Follower;
        assert_eq!(leave(&follower, 0), Leave::End);
        let mut alone = status([false, false]);
        alone.membership.voters = BTreeSet::from([RaftId(1)]);
        assert_eq!(leave(&alone, 0), Leave::End);
    }
}
