//! What a server held when it stopped, and whether its log and its store fit each other.

use raft::eraftpb::{Entry, EntryType, HardState};
use serde::{Deserialize, Serialize};

use super::membership::{self, Membership, UnreadableEntry};
use super::{Checkpoint, Settings, gate};
use crate::ANEW;
use crate::types::RaftId;

/// A place in the log; entries at equal positions are equal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub struct Position {
    pub index: u64,
    pub term: u64,
}

impl Position {
    pub fn of(entry: &Entry) -> Self {
        Self { index: entry.index, term: entry.term }
    }
}

/// What a driver starts from: the log's entries and hard state, the store's applied index and servers.
#[derive(Clone, Debug, Default)]
pub struct Recovered {
    /// The entry before the first of `entries`; zero when none was ever dropped.
    pub base: Position,
    pub entries: Vec<Entry>,
    pub hard_state: HardState,
    /// As of `applied`.
    pub membership: Membership,
    pub applied: u64,
}

/// The hard state with which a log begins anew behind a snapshot that the store has installed, where a crash came between
/// the two; nothing where the log goes together with it already. `held` is the term of the log's entry there, if it has one.
#[must_use]
pub fn behind_snapshot(installed: Position, held: Option<u64>, hard_state: &HardState) -> Option<HardState> {
    if held == Some(installed.term) && hard_state.commit >= installed.index {
        return None;
    }
    let HardState { term, vote, .. } = *hard_state;
    // The snapshot may be of a term that the log hasn't heard of: then there was no vote in it.
    let vote = if term < installed.term { 0 } else { vote };
    Some(HardState { term: term.max(installed.term), vote, commit: installed.index })
}

/// Why a server can't start from what it holds.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot start server {id}: it has no servers to start from")]
    NoMembership { id: RaftId },
    #[error(
        "cannot start server {id}: its store has applied up to {applied}, but its log knows of commits only up to {commit}; \
         one of the two is from another time: put back the one that was moved, or {anew}", anew = ANEW
    )]
    AppliedAheadOfLog { id: RaftId, applied: u64, commit: u64 },
    #[error(
        "cannot start server {id}: its log begins behind {base}, but its store has applied only up to {applied}; \
         one of the two is from another time: put back the one that was moved, or {anew}", anew = ANEW
    )]
    LogBeginsBehindApplied { id: RaftId, base: u64, applied: u64 },
    #[error(
        "cannot start server {id}: commit index {commit} is not in its log, which ends at {last}: the log is damaged"
    )]
    CommitBeyondLog { id: RaftId, commit: u64, last: u64 },
    #[error(
        "cannot start server {id}: its log has index {index}, term {term} where something else must stand: it is damaged"
    )]
    BrokenSequence { id: RaftId, index: u64, term: u64 },
    #[error("cannot start server {id}: its log says {number} where a term or an index must stand: it is damaged")]
    ImpossibleNumber { id: RaftId, number: u64 },
    #[error("cannot start server {id}: it holds an entry that it cannot read")]
    ReadEntry {
        id: RaftId,
        #[source]
        source: UnreadableEntry,
    },
    #[error("cannot start raft on server {id}")]
    StartRaft {
        id: RaftId,
        #[source]
        source: raft::Error,
    },
}

impl Recovered {
    /// A server that holds nothing yet, of a group that `founder` founded.
    pub fn blank(founder: RaftId) -> Self {
        Self { membership: Membership::founded_by(founder), ..Self::default() }
    }

    /// The commands behind what is applied, in order; whether a quorum had the last of them, nobody may know.
    pub fn unapplied(&self) -> impl Iterator<Item = (Position, &[u8])> {
        let behind = self.entries.iter().filter(|entry| entry.index > self.applied);
        let commands =
            behind.filter(|entry| entry.entry_type == EntryType::EntryNormal as i32 && !entry.data.is_empty());
        commands.map(|entry| (Position::of(entry), entry.data.as_slice()))
    }

    /// How many entries there are that aren't known to be committed.
    pub fn uncommitted(&self) -> u64 {
        self.last().index.saturating_sub(self.hard_state.commit)
    }

    /// A group of one server, which goes on behind all that is here, and in a term that nobody here has heard of.
    #[must_use]
    pub fn anew(&self, server: RaftId) -> Self {
        let last = self.last();
        let position = Position { index: last.index + 1, term: self.hard_state.term.max(last.term) + 1 };
        let hard_state = HardState { term: position.term, vote: 0, commit: position.index };
        Self { base: position, hard_state, applied: position.index, ..Self::blank(server) }
    }

    /// The checkpoint that the store has of it.
    pub fn checkpoint(&self) -> Checkpoint {
        Checkpoint { position: self.base, membership: self.membership.clone() }
    }

    fn last(&self) -> Position {
        self.entries.last().map_or(self.base, Position::of)
    }

    pub(super) fn validate(&self, settings: &Settings) -> Result<(), StartError> {
        let id = settings.id;
        let (base, commit, applied) = (self.base.index, self.hard_state.commit, self.applied);
        if self.membership.voters.is_empty() {
            return Err(StartError::NoMembership { id });
        }
        let numbers = [base, self.base.term, self.hard_state.term, commit];
        if let Some(&number) = numbers.iter().find(|number| **number > gate::MAX_NUMBER) {
            return Err(StartError::ImpossibleNumber { id, number });
        }
        let mut last = self.base;
        for entry in &self.entries {
            let next = Position::of(entry);
            if next.index != last.index + 1 || next.term < last.term || next.term > self.hard_state.term {
                return Err(StartError::BrokenSequence { id, index: next.index, term: next.term });
            }
            membership::of_entry(entry).map_err(|source| StartError::ReadEntry { id, source })?;
            last = next;
        }
        if applied > commit {
            return Err(StartError::AppliedAheadOfLog { id, applied, commit });
        }
        if applied < base {
            return Err(StartError::LogBeginsBehindApplied { id, base, applied });
        }
        if commit > last.index {
            return Err(StartError::CommitBeyondLog { id, commit, last: last.index });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::Driver;

    fn entry(index: u64, term: u64) -> Entry {
        Entry { index, term, ..Entry::default() }
    }

    fn recovered(applied: u64, commit: u64, base: u64, entries: Vec<Entry>) -> Recovered {
        let hard_state = HardState { term: 3, vote: 0, commit };
        let base = Position { index: base, term: u64::from(base > 0) };
        Recovered { base, entries, hard_state, applied, ..Recovered::blank(RaftId(1)) }
    }

    fn start(recovered: Recovered) -> Result<Driver, StartError> {
        Driver::new(Settings::new(RaftId(1), 0), recovered)
    }

    #[test]
    fn a_store_ahead_of_its_log_is_refused_with_both_indexes() {
        let error = start(recovered(2, 1, 0, vec![entry(1, 1), entry(2, 1)])).err().unwrap();
        assert!(matches!(error, StartError::AppliedAheadOfLog { applied: 2, commit: 1, .. }), "{error}");
    }

    #[test]
    fn a_log_that_lacks_what_the_store_needs_is_refused() {
        let error = start(recovered(3, 5, 4, vec![entry(5, 1)])).err().unwrap();
        assert!(matches!(error, StartError::LogBeginsBehindApplied { base: 4, applied: 3, .. }), "{error}");
        let error = start(recovered(1, 3, 0, vec![entry(1, 1)])).err().unwrap();
        assert!(matches!(error, StartError::CommitBeyondLog { commit: 3, last: 1, .. }), "{error}");
    }

    #[test]
    fn gaps_and_terms_out_of_order_are_refused() {
        for entries in
            [vec![entry(2, 1)], vec![entry(1, 2), entry(2, 1)], vec![entry(1, 1), entry(1, 1)], vec![entry(1, 4)]]
        {
            let error = start(recovered(0, 0, 0, entries)).err().unwrap();
            assert!(matches!(error, StartError::BrokenSequence { .. }), "{error}");
        }
    }

    #[test]
    fn numbers_that_would_overflow_are_refused() {
        let base = Position { index: u64::MAX, term: 1 };
        let far = Recovered { base, applied: u64::MAX, ..recovered(0, 0, 0, vec![]) };
        let late =
            Recovered { hard_state: HardState { term: u64::MAX, vote: 0, commit: 0 }, ..recovered(0, 0, 0, vec![]) };
        for recovered in [far, late] {
            let error = start(recovered).err().unwrap();
            assert!(matches!(error, StartError::ImpossibleNumber { number: u64::MAX, .. }), "{error}");
        }
    }

    #[test]
    fn a_group_that_begins_anew_goes_on_behind_all_that_there_was() {
        let command = |index, term| Entry { data: vec![7], ..entry(index, term) };
        let change = Entry { entry_type: EntryType::EntryConfChange.into(), ..command(6, 2) };
        let before = recovered(4, 5, 4, vec![entry(5, 1), change, command(7, 2), command(8, 2)]);
        let unapplied: Vec<_> = before.unapplied().collect();
        assert_eq!(unapplied, [7, 8].map(|index| (Position { index, term: 2 }, [7].as_slice())));
        assert_eq!(before.uncommitted(), 3);
        let anew = before.anew(RaftId(9));
        let checkpoint = anew.checkpoint();
        assert_eq!(checkpoint.position, Position { index: 9, term: 4 });
        assert_eq!(checkpoint.membership, Membership::founded_by(RaftId(9)));
        assert_eq!((anew.commit().index(), anew.unapplied().count(), anew.uncommitted()), (9, 0, 0));
        let mut driver = Driver::new(Settings::new(RaftId(9), 0), anew).unwrap();
        driver.campaign_if_alone();
        while driver.turn().is_some() {}
        assert_eq!(driver.status().term, 5, "nobody has heard of it before");
    }

    #[test]
    fn a_server_starts_from_a_log_whose_beginning_was_dropped() {
        let driver = start(recovered(5, 6, 4, vec![entry(5, 1), entry(6, 2)])).unwrap();
        let status = driver.status();
        assert_eq!((status.applied, status.commit, status.last_index, status.term), (5, 6, 6, 3));
    }
}
