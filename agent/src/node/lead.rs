//! What only a leader does: it decides, and proposes what it has decided, for its own term.

use std::time::{Duration, Instant};

use blixard_core::command::{Answer, Command};
use blixard_core::driver::Role;
use blixard_core::types::Term;
use blixard_core::{membership, schedule};
use tokio::sync::oneshot;

use super::{Node, SILENT_TICKS, Waiting};

/// How often the leader looks who has fallen silent.
const LIVENESS_TICKS: u64 = 10;

/// How long the founder of a cluster waits for the other configured servers before it places anything.
const FOUNDING_TICKS: u64 = 1000;

/// What a leader remembers within its term.
pub(super) struct Lead {
    /// Something has changed since the scheduler last looked.
    pub dirty: bool,
    pub handing_over: bool,
    /// Decisions that aren't applied yet: the next ones have to see what they did.
    undecided: Vec<oneshot::Receiver<Result<Answer, super::Attempt>>>,
    looked_at: u64,
    /// When the states are to be compared next, in ticks.
    check_at: u64,
}

impl Lead {
    /// What the leader before didn't get to is to be looked at.
    pub fn new(check_at: u64) -> Self {
        Self { dirty: true, handing_over: false, undecided: Vec::new(), looked_at: 0, check_at }
    }
}

impl Node {
    pub(super) fn lead(&mut self) {
        if self.driver.soft().role != Role::Leader || self.lead.handing_over {
            return;
        }
        // Before it has applied an entry of its own term it may not know what the last leader did.
        if self.applied_term != Term(self.driver.term()) {
            return;
        }
        self.lead
            .undecided
            .retain_mut(|decision| matches!(decision.try_recv(), Err(oneshot::error::TryRecvError::Empty)));
        if !self.lead.undecided.is_empty() {
            return;
        }
        if self.state.cluster().is_none() {
            if let Some(founding) = self.founding.clone() {
                self.decide(founding.command);
            }
            return;
        }
        if self.ticks.saturating_sub(self.lead.looked_at) >= LIVENESS_TICKS {
            self.lead.looked_at = self.ticks;
            for decision in self.liveness.decide(&self.state, self.own, self.ticks, SILENT_TICKS) {
                tracing::info!(?decision, "a worker's status changes");
                self.decide(decision);
            }
            if let Some(change) = membership::next_change(&self.state, &self.driver.status()) {
                // Refused while another is under way, or the learner falls behind: it is tried again.
                if let Err(error) = self.driver.propose_membership(change, Vec::new()) {
                    tracing::debug!(%change, %error, "a change of the servers waits");
                }
            }
        }
        if let Some(level) = self.state.next_level() {
            tracing::info!(%level, "every node understands a newer feature level");
            self.decide(Command::RaiseLevel { level });
            return;
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
            for decision in schedule::schedule(&self.state) {
                tracing::info!(?decision, "the scheduler decides");
                self.decide(decision);
            }
        }
    }

    /// Whether there were entries other than the last check's own.
    fn has_changed_since_check(&self) -> bool {
        let check = self.state.check();
        self.applied > check.map_or(0, |check| check.at + check.hashes.len() as u64)
    }

    /// The founder gives the other servers time to join, or it would place everything on itself.
    fn awaits_servers(&mut self) -> bool {
        let Some(founding) = &self.founding else { return false };
        let registered = self.state.nodes().values().filter(|node| node.worker.is_some()).count();
        let waits = registered < founding.servers && self.ticks < FOUNDING_TICKS;
        if !waits {
            self.founding = None;
            self.lead.dirty = true;
        }
        waits
    }

    fn decide(&mut self, command: Command) {
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
