//! Who waits for which proposal, and what became of it.

use std::collections::BTreeMap;

use super::{Committed, Content, Position};
use crate::types::RaftId;

/// Proposals that were appended here and whose outcome isn't known; `T` finds the one who waits.
///
/// A new leader may overwrite a proposal or commit it, so losing leadership settles nothing: only the entry that is applied
/// at its index does. Those that never get that far end at their own deadline, with their outcome unknown.
#[derive(Debug)]
pub struct Proposals<T> {
    waiting: BTreeMap<Position, T>,
}

/// Why a proposal was not taken; nothing was appended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    #[error("cannot propose here: the leader is {}", match leader { Some(id) => format!("server {id}"), None => "not known yet".to_owned() })]
    NotLeader { leader: Option<RaftId> },
    #[error("cannot propose: leadership is being handed over, or too much waits for a quorum; try again")]
    Busy,
    #[error("cannot propose an empty command")]
    Empty,
    #[error("cannot propose a command of {bytes} bytes: at most {max} fit in one log entry")]
    TooLong { bytes: usize, max: usize },
    #[error("cannot change the servers: another change is not applied yet; try again")]
    ChangePending,
    #[error("cannot remove server {id}: it leads; hand leadership over first and let the next leader remove it")]
    RemovesLeader { id: RaftId },
    #[error("cannot promote server {id}: it is not a learner that keeps up with the log; try again once it does")]
    NotCaughtUp { id: RaftId },
}

/// What became of a proposal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is the entry being applied.
    Applied,
    /// Another leader's entry took its place: it never took effect, and never will.
    Superseded,
    /// It committed as an empty entry, as raft does with a membership change that comes at a wrong moment: it never took effect.
    Emptied,
}

impl<T> Default for Proposals<T> {
    fn default() -> Self {
        Self { waiting: BTreeMap::new() }
    }
}

impl<T> Proposals<T> {
    /// Remembers who waits for the proposal that was appended at `position`.
    pub fn track(&mut self, position: Position, waiting: T) {
        self.waiting.insert(position, waiting);
    }

    /// Everyone who can be told something once `committed` is applied, which is the caller's to do, index by index.
    pub fn settle(&mut self, committed: &Committed) -> Vec<(T, Fate)> {
        let behind = Position { index: committed.position.index + 1, term: 0 };
        let rest = self.waiting.split_off(&behind);
        let settled = std::mem::replace(&mut self.waiting, rest);
        let fate = |position| match (position == committed.position, &committed.content) {
            (false, _) => Fate::Superseded,
            (true, Content::Nothing) => Fate::Emptied,
            (true, _) => Fate::Applied,
        };
        settled.into_iter().map(|(position, waiting)| (waiting, fate(position))).collect()
    }

    /// Takes out everyone up to `index`: a snapshot took the place of those entries, and their outcome is unknown.
    pub fn pass_over(&mut self, index: u64) -> Vec<T> {
        let rest = self.waiting.split_off(&Position { index: index + 1, term: 0 });
        std::mem::replace(&mut self.waiting, rest).into_values().collect()
    }

    /// Takes out those whose deadline has passed, as `expired` says; their outcome is unknown.
    pub fn expire(&mut self, expired: impl Fn(&T) -> bool) -> Vec<T> {
        let waiting = std::mem::take(&mut self.waiting);
        let (gone, kept): (BTreeMap<_, _>, _) = waiting.into_iter().partition(|(_, waiting)| expired(waiting));
        self.waiting = kept;
        gone.into_values().collect()
    }

    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(index: u64, term: u64) -> Position {
        Position { index, term }
    }

    fn command(index: u64, term: u64) -> Committed {
        Committed { position: at(index, term), content: Content::Command(vec![1]) }
    }

    #[test]
    fn a_proposal_is_applied_only_by_an_entry_of_its_own_term() {
        let mut proposals = Proposals::default();
        proposals.track(at(5, 2), "first");
        proposals.track(at(6, 2), "second");
        proposals.track(at(5, 4), "third");
        assert_eq!(proposals.settle(&command(4, 2)), []);
        assert_eq!(proposals.settle(&command(5, 4)), [("first", Fate::Superseded), ("third", Fate::Applied)]);
        assert_eq!(proposals.settle(&command(6, 3)), [("second", Fate::Superseded)]);
        assert!(proposals.is_empty());
    }

    #[test]
    fn a_membership_change_that_raft_emptied_did_not_happen() {
        let mut proposals = Proposals::default();
        proposals.track(at(5, 2), ());
        let emptied = Committed { position: at(5, 2), content: Content::Nothing };
        assert_eq!(proposals.settle(&emptied), [((), Fate::Emptied)]);
    }

    #[test]
    fn what_expires_is_not_settled_later() {
        let mut proposals = Proposals::default();
        proposals.track(at(5, 2), 10);
        proposals.track(at(6, 2), 20);
        assert_eq!(proposals.expire(|deadline| *deadline <= 10), [10]);
        assert_eq!(proposals.settle(&command(5, 2)), []);
        assert_eq!(proposals.len(), 1);
    }
}
