//! What raft may read back of the log: the newest entries, in memory, and where a snapshot can be had.

use std::cell::Cell;
use std::collections::VecDeque;

use raft::eraftpb::{Entry, Snapshot, SnapshotMetadata};
use raft::{Error, GetEntriesContext, RaftState, Result, Storage, StorageError};
use raft_prost::Message as _;

use super::Checkpoint;
use super::recovered::{Position, Recovered};
use crate::types::RaftId;

/// What an entry takes besides its command.
const ENTRY_OVERHEAD: u64 = size_of::<Entry>() as u64;

/// The log, as raft's `Storage`; it may be ahead of the disk.
pub(super) struct Mirror {
    /// The entry before the first one kept, of which only the position is known.
    base: Position,
    entries: VecDeque<Entry>,
    /// What `entries` take.
    bytes: u64,
    /// The newest state that the store holds durably: what a snapshot is made of.
    checkpoint: Option<Checkpoint>,
    /// Somebody needs a snapshot that this checkpoint is too old for.
    wants_checkpoint: Cell<bool>,
    /// Read once, when raft starts.
    initial: RaftState,
}

impl Mirror {
    pub(super) fn new(recovered: Recovered) -> Self {
        let initial = RaftState::new(recovered.hard_state, recovered.membership.to_raft());
        let entries = VecDeque::from(recovered.entries);
        let bytes = entries.iter().map(size_of_entry).sum();
        Self { base: recovered.base, entries, bytes, checkpoint: None, wants_checkpoint: Cell::new(false), initial }
    }

    /// Adds entries; what stood at their indexes and behind is dropped.
    pub(super) fn append(&mut self, entries: Vec<Entry>) {
        let Some(first) = entries.first() else { return };
        assert!(first.index > self.base.index, "entry {} is compacted", first.index);
        let keep = self.offset(first.index);
        assert!(keep <= self.entries.len(), "the log has a gap before {}", first.index);
        self.bytes -= self.entries.drain(keep..).map(|entry| size_of_entry(&entry)).sum::<u64>();
        self.bytes += entries.iter().map(size_of_entry).sum::<u64>();
        self.entries.extend(entries);
    }

    /// Forgets everything up to `base` and whatever else there was.
    pub(super) fn restart(&mut self, base: Position) {
        self.entries.clear();
        (self.base, self.bytes) = (base, 0);
    }

    /// What the store holds durably by now.
    pub(super) fn checkpointed(&mut self, checkpoint: Checkpoint) {
        self.wants_checkpoint.set(false);
        self.checkpoint = Some(checkpoint);
    }

    pub(super) fn wants_checkpoint(&self) -> bool {
        self.wants_checkpoint.get()
    }

    /// Bytes of the entries in memory.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Index of the first entry that is kept.
    pub(super) fn first(&self) -> u64 {
        self.base.index + 1
    }

    /// Drops the oldest entries while more than `keep` bytes are there, up to `limit` at most.
    pub(super) fn compact(&mut self, keep: u64, limit: u64) {
        while self.bytes > keep && self.entries.front().is_some_and(|entry| entry.index <= limit) {
            let entry = self.entries.pop_front().expect("it was there just now");
            self.bytes -= size_of_entry(&entry);
            self.base = Position::of(&entry);
        }
        // A queue keeps the room of when it was longest.
        if self.entries.capacity() / 4 > self.entries.len() {
            self.entries.shrink_to(self.entries.len() * 2);
        }
    }

    fn offset(&self, index: u64) -> usize {
        usize::try_from(index - self.base.index - 1).expect("as many entries as fit in memory")
    }

    fn last(&self) -> u64 {
        self.entries.back().map_or(self.base.index, |entry| entry.index)
    }
}

fn size_of_entry(entry: &Entry) -> u64 {
    (entry.data.len() + entry.context.len()) as u64 + ENTRY_OVERHEAD
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
        Ok(self.first())
    }

    fn last_index(&self) -> Result<u64> {
        Ok(self.last())
    }

    /// Where the store stands; its rows travel on their own way.
    fn snapshot(&self, request_index: u64, to: u64) -> Result<Snapshot> {
        // Raft refuses a snapshot whose servers it isn't one of.
        let knows = |members: &Checkpoint| {
            let membership = &members.membership;
            membership.voters.contains(&RaftId(to)) || membership.learners.contains(&RaftId(to))
        };
        let fits = |checkpoint: &&Checkpoint| {
            let index = checkpoint.position.index;
            index >= request_index && index >= self.base.index && index > 0 && knows(checkpoint)
        };
        let Some(Checkpoint { position, membership }) = self.checkpoint.as_ref().filter(fits) else {
            self.wants_checkpoint.set(true);
            return Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        };
        let conf_state = Some(membership.to_raft());
        let metadata = SnapshotMetadata { conf_state, index: position.index, term: position.term };
        Ok(Snapshot { data: Vec::new(), metadata: Some(metadata) })
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

    fn checkpoint(index: u64) -> Checkpoint {
        Checkpoint { position: Position { index, term: 3 }, membership: Membership::founded_by(RaftId(1)) }
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
        let bytes = mirror.bytes();
        mirror.append(vec![entry(6, 4)]);
        assert_eq!((mirror.last_index(), mirror.term(6)), (Ok(6), Ok(4)));
        assert_eq!(mirror.bytes(), bytes / 2);
    }

    #[test]
    fn nothing_is_dropped_that_is_small_enough_or_behind_the_limit() {
        let mut mirror = mirror();
        mirror.compact(mirror.bytes(), 8);
        assert_eq!(mirror.first_index(), Ok(5), "it is small enough");
        mirror.compact(0, 6);
        assert_eq!((mirror.first_index(), mirror.term(6)), (Ok(7), Ok(3)), "the seventh is behind the limit");
        mirror.compact(0, 8);
        assert_eq!((mirror.first_index(), mirror.last_index(), mirror.term(8)), (Ok(9), Ok(8), Ok(3)));
    }

    #[test]
    fn a_checkpoint_that_the_log_goes_on_too_far_behind_is_no_snapshot() {
        let mut mirror = mirror();
        mirror.checkpointed(checkpoint(6));
        mirror.compact(0, 6);
        assert!(mirror.snapshot(0, 1).is_ok(), "the log goes on right behind it");
        mirror.compact(0, 7);
        assert!(mirror.snapshot(0, 1).is_err() && mirror.wants_checkpoint(), "the seventh would be lacking");
    }

    #[test]
    fn a_log_that_was_long_gives_its_memory_back() {
        let mut mirror = mirror();
        mirror.append((9..10_000).map(|index| entry(index, 3)).collect());
        mirror.compact(1_000, u64::MAX);
        assert!(mirror.entries.len() > 1 && mirror.entries.capacity() < 100, "{}", mirror.entries.capacity());
    }

    #[test]
    fn a_snapshot_is_offered_only_to_a_server_that_it_knows() {
        let mut mirror = mirror();
        assert!(mirror.snapshot(0, 1).is_err() && mirror.wants_checkpoint());
        mirror.checkpointed(checkpoint(7));
        assert!(!mirror.wants_checkpoint());
        let snapshot = mirror.snapshot(0, 1).unwrap().metadata.unwrap();
        assert_eq!((snapshot.index, snapshot.term, snapshot.conf_state.unwrap().voters), (7, 3, vec![1]));
        assert!(!mirror.wants_checkpoint());
        for (request, to) in [(0, 2), (8, 1)] {
            assert!(mirror.snapshot(request, to).is_err() && mirror.wants_checkpoint());
        }
    }
}
