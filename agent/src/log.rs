//! Raft's entries and hard state on disk: append-only segments, one fdatasync a batch.
//!
//! A batch is one frame, so a crash keeps it whole or not at all; a later frame wins over an earlier one. A segment that
//! doesn't begin where the one before it ended begins the log anew: a snapshot took the place of everything before. Only
//! the newest segment can have a torn tail. When the log opens, that one is written anew and synced before anyone reads
//! of it: after a failed fsync the page cache may show what the disk doesn't hold.

mod disk;
mod segment;

use std::io;
use std::path::{Path, PathBuf};

use blixard_core::ANEW;
use blixard_core::driver::wire::DecodeError;
use blixard_core::driver::{LogStore, Position, behind_snapshot};
use raft::eraftpb::{Entry, HardState};

pub use disk::{Directory, Disk, DiskFile};
use segment::{Defect, Header, Item};

/// A batch that begins behind this offset begins a new segment.
pub const SEGMENT_BYTES: u64 = 4 << 20;

/// The log, open for appending; it holds the directory's lock.
pub struct Log<D: Disk = Directory> {
    disk: D,
    segment_bytes: u64,
    /// Segments that will not be written again, oldest first.
    closed: Vec<Closed>,
    current: Current<D::File>,
    last: Position,
    hard_state: HardState,
    /// A write failed: what the disk holds is unknown until the log is opened again.
    failed: bool,
}

struct Closed {
    sequence: u64,
    highest_index: u64,
}

struct Current<F> {
    file: F,
    header: Header,
    len: u64,
    highest_index: u64,
}

/// What a log held when it was opened.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Replay {
    /// The entry before the first of `entries`; zero when none was ever dropped.
    pub base: Position,
    pub entries: Vec<Entry>,
    pub hard_state: HardState,
}

#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("cannot use the raft log in {}: see that the agent's user may write there, and that the disk works and has room", path.display())]
    OpenDirectory {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot use the raft log in {}: another agent has it open; stop that one first", path.display())]
    Locked { path: PathBuf },
    #[error("cannot read the raft log file {}", path.display())]
    ReadSegment {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot write the raft log file {}: see that the disk works, is writable and has room, then start the agent again", path.display())]
    WriteSegment {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "cannot write to the raft log: an earlier write to it failed; start the agent again once the disk works and has room"
    )]
    WriteAfterFailure,
    #[error(
        "{} is no raft log file of blixard, or is damaged at its beginning: see whether node.data_dir is right; if it is, \
         {anew}", path.display(), anew = ANEW
    )]
    ForeignFile { path: PathBuf },
    #[error("{} has log format {version}, and this agent reads up to {}: start the newer agent that wrote it", path.display(), segment::FORMAT)]
    NewerFormat { path: PathBuf, version: u32 },
    #[error(
        "the raft log file {} is damaged at byte {offset}, and it is no torn end of a last write: {anew}; an old copy in its place would have forgotten what this host promised the others", path.display(), anew = ANEW
    )]
    Damaged { path: PathBuf, offset: u64 },
    #[error(
        "the raft log file {} is missing, and later ones are there: put it back if it was moved, or \
         {anew}", path.display(), anew = ANEW
    )]
    MissingSegment { path: PathBuf },
    #[error("cannot use the record at byte {offset} of {}", path.display())]
    DecodeRecord {
        path: PathBuf,
        offset: u64,
        #[source]
        source: DecodeError,
    },
}

impl Log {
    /// Opens the log in `dir`, which is made when it is missing.
    ///
    /// # Errors
    /// When another agent has it open, or what is there can't be the whole log; nothing is changed then.
    pub fn open(dir: &Path) -> Result<(Self, Replay), LogError> {
        Self::open_on(Directory::open(dir)?, SEGMENT_BYTES)
    }
}

impl<D: Disk> Log<D> {
    /// Opens the log on any disk, with segments of a size of its own.
    ///
    /// # Errors
    /// As [`Log::open`].
    pub fn open_on(disk: D, segment_bytes: u64) -> Result<(Self, Replay), LogError> {
        let sequences = sequences(&disk)?;
        let mut replayed = Replayed::default();
        for (position, &sequence) in sequences.iter().enumerate() {
            let is_last = position + 1 == sequences.len();
            replayed.read(&disk, sequence, is_last)?;
        }
        let Replayed { replay, closed, tail } = replayed;
        let last = replay.last();
        let tail = tail.unwrap_or_else(|| {
            let header = Header { sequence: 1, salt: disk.salt(), base: Position::default() };
            Tail { header, bytes: header.encode(), closed: Closed { sequence: 1, highest_index: 0 } }
        });
        let Tail { header, bytes, closed: Closed { highest_index, .. } } = tail;
        let file = write_whole(&disk, header.sequence, &bytes)?;
        let current = Current { file, header, len: bytes.len() as u64, highest_index };
        let hard_state = replay.hard_state.clone();
        Ok((Self { disk, segment_bytes, closed, current, last, hard_state, failed: false }, replay))
    }

    /// Begins anew behind a snapshot that the store has installed, where a crash kept the log from it; term and vote stay.
    ///
    /// # Errors
    /// As [`LogStore::write`].
    pub fn catch_up(&mut self, replay: &mut Replay, installed: Position) -> Result<(), LogError> {
        let held = replay.term_at(installed.index);
        let Some(hard_state) = behind_snapshot(installed, held, &replay.hard_state) else { return Ok(()) };
        self.restart(installed, &hard_state)?;
        *replay = Replay { base: installed, entries: Vec::new(), hard_state };
        Ok(())
    }

    /// Removes segments that hold nothing at `index` or behind; the store must hold everything before it durably.
    ///
    /// # Errors
    /// As [`LogStore::write`].
    pub fn release_before(&mut self, index: u64) -> Result<(), LogError> {
        let kept = self.closed.iter().position(|segment| segment.highest_index >= index).unwrap_or(self.closed.len());
        self.attempt(|log| log.remove(kept))
    }

    /// Removes the oldest segments, each on disk before the next, so that a crash leaves no gap.
    fn remove(&mut self, count: usize) -> Result<(), LogError> {
        for segment in self.closed.drain(..count) {
            let name = segment::name(segment.sequence);
            let removed = self.disk.remove(&name).and_then(|()| self.disk.sync());
            removed.map_err(|source| LogError::WriteSegment { path: self.disk.path(&name), source })?;
        }
        Ok(())
    }

    /// Does what writes; after one failure nothing is written any more.
    fn attempt<T>(&mut self, write: impl FnOnce(&mut Self) -> Result<T, LogError>) -> Result<T, LogError> {
        if self.failed {
            return Err(LogError::WriteAfterFailure);
        }
        self.failed = true;
        let written = write(self)?;
        self.failed = false;
        Ok(written)
    }

    /// Begins a segment whose first entry follows the log's last one.
    fn roll(&mut self) -> Result<(), LogError> {
        let sequence = self.current.header.sequence + 1;
        let header = Header { sequence, salt: self.disk.salt(), base: self.last };
        let mut bytes = header.encode();
        // Older segments may go, and the hard state must not go with them.
        header.append_frame(&mut bytes, &[], Some(&self.hard_state));
        let file = write_whole(&self.disk, sequence, &bytes)?;
        let next = Current { file, header, len: bytes.len() as u64, highest_index: self.last.index };
        let full = std::mem::replace(&mut self.current, next);
        self.closed.push(Closed { sequence: full.header.sequence, highest_index: full.highest_index });
        Ok(())
    }

    fn append(&mut self, entries: &[Entry], hard_state: Option<&HardState>) -> Result<(), LogError> {
        if self.current.len >= self.segment_bytes {
            self.roll()?;
        }
        let Current { file, header, len, highest_index } = &mut self.current;
        let mut frame = Vec::new();
        header.append_frame_at(*len, &mut frame, entries, hard_state);
        file.append(&frame).and_then(|()| file.sync()).map_err(|source| {
            let path = self.disk.path(&segment::name(header.sequence));
            LogError::WriteSegment { path, source }
        })?;
        *len += frame.len() as u64;
        if let Some(entry) = entries.last() {
            self.last = Position::of(entry);
            *highest_index = self.last.index.max(*highest_index);
        }
        if let Some(hard_state) = hard_state {
            self.hard_state = hard_state.clone();
        }
        Ok(())
    }
}

impl<D: Disk> LogStore for Log<D> {
    type Error = LogError;

    fn write(&mut self, entries: &[Entry], hard_state: Option<&HardState>) -> Result<(), LogError> {
        if let Some(entry) = entries.first() {
            assert!((1..=self.last.index + 1).contains(&entry.index), "entry {} leaves a gap in the log", entry.index);
        }
        self.attempt(|log| log.append(entries, hard_state))
    }

    fn restart(&mut self, base: Position, hard_state: &HardState) -> Result<(), LogError> {
        self.attempt(|log| {
            (log.last, log.hard_state) = (base, hard_state.clone());
            log.roll()?;
            let forgotten = log.closed.len();
            log.remove(forgotten)
        })
    }
}

/// The numbers of the segments, in order; a gap between them is an error.
fn sequences<D: Disk>(disk: &D) -> Result<Vec<u64>, LogError> {
    let names = disk.names().map_err(|source| LogError::OpenDirectory { path: disk.path(""), source })?;
    let mut sequences = Vec::new();
    for name in names.iter().filter(|name| name.ends_with(segment::SUFFIX)) {
        let sequence = segment::sequence_of(name);
        sequences.push(sequence.ok_or_else(|| LogError::ForeignFile { path: disk.path(name) })?);
    }
    sequences.sort_unstable();
    match sequences.windows(2).find(|pair| pair[0] + 1 != pair[1]) {
        Some(gap) => Err(LogError::MissingSegment { path: disk.path(&segment::name(gap[0] + 1)) }),
        None => Ok(sequences),
    }
}

/// A segment with these bytes, on disk under its own name or not at all.
fn write_whole<D: Disk>(disk: &D, sequence: u64, bytes: &[u8]) -> Result<D::File, LogError> {
    let name = segment::name(sequence);
    let write = || {
        let mut file = disk.create(segment::UNFINISHED)?;
        file.append(bytes)?;
        file.sync()?;
        disk.rename(segment::UNFINISHED, &name)?;
        disk.sync()?;
        Ok(file)
    };
    write().map_err(|source| LogError::WriteSegment { path: disk.path(&name), source })
}

#[derive(Default)]
struct Replayed {
    replay: Replay,
    closed: Vec<Closed>,
    tail: Option<Tail>,
}

/// The newest segment, up to the end of its last valid frame.
struct Tail {
    header: Header,
    bytes: Vec<u8>,
    closed: Closed,
}

impl Replayed {
    fn read<D: Disk>(&mut self, disk: &D, sequence: u64, is_last: bool) -> Result<(), LogError> {
        let name = segment::name(sequence);
        let path = || disk.path(&name);
        let mut bytes = disk.read(&name).map_err(|source| LogError::ReadSegment { path: path(), source })?;
        let header = Header::decode(&bytes).map_err(|defect| match defect {
            Defect::Foreign => LogError::ForeignFile { path: path() },
            Defect::NewerFormat { version } => LogError::NewerFormat { path: path(), version },
            Defect::Damaged { offset } => LogError::Damaged { path: path(), offset },
        })?;
        let damaged = |offset| LogError::Damaged { path: path(), offset };
        if header.sequence != sequence {
            return Err(damaged(0));
        }
        self.closed.extend(self.tail.take().map(|tail| tail.closed));
        if self.closed.is_empty() || header.base != self.replay.last() {
            // The log begins here: by the first segment that is left, or by a snapshot that took the place of all before.
            self.replay.entries.clear();
            self.replay.base = header.base;
            self.closed.iter_mut().for_each(|segment| segment.highest_index = 0);
        }
        let mut offset = segment::HEADER_BYTES;
        let mut highest_index = header.base.index;
        while let Some((payload, next)) = header.frame_at(&bytes, offset) {
            let items = segment::items(payload).map_err(|source| LogError::DecodeRecord {
                path: path(),
                offset: offset as u64,
                source,
            })?;
            for item in items {
                match item {
                    Item::HardState(hard_state) => self.replay.hard_state = hard_state,
                    Item::Entry(entry) => {
                        highest_index = highest_index.max(entry.index);
                        self.replay.put(entry).ok_or_else(|| damaged(offset as u64))?;
                    }
                }
            }
            offset = next;
        }
        let torn = offset < bytes.len();
        if torn && (!is_last || header.has_frame_behind(&bytes, offset)) {
            return Err(damaged(offset as u64));
        }
        bytes.truncate(offset);
        self.tail = Some(Tail { header, bytes, closed: Closed { sequence, highest_index } });
        Ok(())
    }
}

impl Replay {
    fn last(&self) -> Position {
        self.entries.last().map_or(self.base, Position::of)
    }

    fn term_at(&self, index: u64) -> Option<u64> {
        let behind = index.checked_sub(self.base.index)?;
        match usize::try_from(behind).ok()? {
            0 => Some(self.base.term),
            place => self.entries.get(place - 1).map(|entry| entry.term),
        }
    }

    /// Takes the next entry of the log, or refuses one that leaves a gap.
    fn put(&mut self, entry: Entry) -> Option<()> {
        if entry.index <= self.base.index {
            // Written after a segment before this one had held a longer log; that segment is gone, so this is released too.
            self.entries.clear();
            self.base = Position::of(&entry);
            return Some(());
        }
        let keep = usize::try_from(entry.index - self.base.index - 1).ok()?;
        if keep > self.entries.len() {
            return None;
        }
        self.entries.truncate(keep);
        self.entries.push(entry);
        Some(())
    }
}
