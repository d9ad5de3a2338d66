//! What raft may read back of the log: every entry since the last compaction, in memory.

use std::collections::VecDeque;

use raft::eraftpb::{Entry, Snapshot};
use raft::{Error, GetEntriesContext, RaftState, Result, Storage, StorageError};
use raft_prost::Message as _;

use super::recovered::{Position, Recovered};

/// The durable log, as raft's `Storage`.
pub(super) struct Mirror {
    /// The entry before the first one kept, of which only the position is known.
    base: Position,
    entries: VecDeque<Entry>,
    /// Read once, when raft starts.
    initial: RaftState,
}

impl Mirror {
    pub(super) fn new(recovered: Recovered) -> Self {
        let initial = RaftState::new(recovered.hard_state, recovered.membership.to_raft());
        Self { base: recovered.base, entries: recovered.entries.into(), initial }
    }

    /// Adds entries that the log holds by now; what stood at their indexes and behind is dropped.
    pub(super) fn append(&mut self, entries: Vec<Entry>) {
        let Some(first) = entries.first() else { return };
        assert!(first.index > self.base.index, "entry {} is compacted", first.index);
        let keep = self.offset(first.index);
        assert!(keep <= self.entries.len(), "the log has a gap before {}", first.index);
        self.entries.truncate(keep);
        self.entries.extend(entries);
    }

    fn offset(&self, index: u64) -> usize {
        usize::try_from(index - self.base.index - 1).expect("as many entries as fit in memory")
    }

    fn last(&self) -> u64 {
        self.entries.back().map_or(self.base.index, |entry| entry.index)
    }
}

impl Storage for Mirror {
    fn initial_state(&self) -> Result<RaftState> {
        Ok(self.initial.clone())
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _: GetEntriesContext,
    ) -> Result<Vec<Entry>> {
        if low <= self.base.index {
            return Err(Error::Store(StorageError::Compacted));
        }
        if high > self.last() + 1 {
            return Err(Error::Store(StorageError::Unavailable));
        }
        let max_size = max_size.into().unwrap_or(u64::MAX);
        let mut size = 0;
        let fits = |entry: &&Entry| {
            let first = size == 0;
            size += entry.encoded_len() as u64;
            first || size <= max_size
        };
        Ok(self.entries.range(self.offset(low)..self.offset(high)).take_while(fits).cloned().collect())
    }

    fn term(&self, index: u64) -> Result<u64> {
        if index == self.base.index {
            return Ok(self.base.term);
        }
        if index < self.base.index {
            return Err(Error::Store(StorageError::Compacted));
        }
        let entry = self.entries.get(self.offset(index)).ok_or(Error::Store(StorageError::Unavailable))?;
        Ok(entry.term)
    }

    fn first_index(&self) -> Result<u64> {
        Ok(self.base.index + 1)
    }

    fn last_index(&self) -> Result<u64> {
        Ok(self.last())
    }

    /// Nothing is compacted while the driver runs, so no follower needs more than entries.
    fn snapshot(&self, _request_index: u64, _to: u64) -> Result<Snapshot> {
        Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::Membership;
    use raft::eraftpb::HardState;

    fn entry(index: u64, term: u64) -> Entry {
        Entry { index, term, data: vec![0; 100], ..Entry::default() }
    }

    fn mirror() -> Mirror {
        let mut mirror = Mirror::new(Recovered {
            base: Position { index: 4, term: 2 },
            entries: vec![entry(5, 2), entry(6, 3)],
            hard_state: HardState::default(),
            membership: Membership::default(),
            applied: 4,
        });
        mirror.append(vec![entry(7, 3), entry(8, 3)]);
        mirror
    }

    fn read(mirror: &Mirror, low: u64, high: u64, max: u64) -> Result<Vec<u64>> {
        let entries = mirror.entries(low, high, max, GetEntriesContext::empty(false))?;
        Ok(entries.iter().map(|entry| entry.index).collect())
    }

    #[test]
    fn a_read_returns_one_entry_at_least_and_no_more_than_fit() {
        assert_eq!(read(&mirror(), 5, 9, u64::MAX).unwrap(), [5, 6, 7, 8]);
        assert_eq!(read(&mirror(), 6, 9, 0).unwrap(), [6]);
        assert_eq!(read(&mirror(), 5, 9, 250).unwrap(), [5, 6]);
    }

    #[test]
    fn what_was_compacted_or_never_written_is_an_error_of_its_own() {
        assert_eq!(read(&mirror(), 4, 6, 0), Err(Error::Store(StorageError::Compacted)));
        assert_eq!(read(&mirror(), 5, 10, 0), Err(Error::Store(StorageError::Unavailable)));
        assert_eq!(mirror().term(3), Err(Error::Store(StorageError::Compacted)));
        assert_eq!(mirror().term(4), Ok(2));
        assert_eq!(mirror().term(9), Err(Error::Store(StorageError::Unavailable)));
    }

    #[test]
    fn an_append_over_existing_entries_drops_those_behind_it() {
        let mut mirror = mirror();
        mirror.append(vec![entry(6, 4)]);
        assert_eq!((mirror.last_index(), mirror.term(6)), (Ok(6), Ok(4)));
    }
}
