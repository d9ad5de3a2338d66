//! A snapshot as it came in: a file of chunks beside the store.
//!
//! ```text
//!  .incoming ── whole, on disk, and raft wants it ──▶ .snapshot ── the next checkpoint ──▶ the store
//! ```
//!
//! A server needs the rows to be safe before it goes on, and not yet in their tables: filling those takes several times
//! as long as the rows take to arrive. One that isn't newer than the store is of no use any more.
//!
//! The file: [`MAGIC`], the format, then records. The first is the checkpoint, the others are the chunks; the last of them
//! says how many rows there are.

use std::io;

use blixard_core::driver::Checkpoint;
use redb::StorageBackend as _;

use super::home::{Home, Name};
use super::record::{self, Head};
use super::snapshot::Chunk;
use super::{FORMAT, StoreError, encoded};

const MAGIC: &[u8] = b"blixard snapshot\n";
/// Bytes that may wait for the disk: the last of them are all that the end has to wait for.
const UNSYNCED_BYTES: usize = 4 << 20;

/// A file that is being written.
pub(super) struct Writer<H: Home> {
    home: H,
    file: H::File,
    length: u64,
    unsynced: usize,
}

/// A whole file, on disk.
pub(super) struct Spool<H> {
    home: H,
    pub checkpoint: Checkpoint,
}

impl<H: Home> Writer<H> {
    /// A file without chunks; what an earlier one left is gone.
    pub fn begin(home: H, checkpoint: &Checkpoint) -> Result<Self, StoreError> {
        let created = home.remove(Name::Incoming).and_then(|()| home.create(Name::Incoming));
        let file = created.map_err(|source| StoreError::Create { path: home.path(Name::Incoming), source })?;
        let mut spool = Self { home, file, length: 0, unsynced: 0 };
        spool.attempt(|spool| {
            spool.append(&[MAGIC, &FORMAT.to_le_bytes()].concat())?;
            spool.record(&encoded(checkpoint))
        })?;
        Ok(spool)
    }

    pub fn put(&mut self, chunk: &[u8]) -> Result<(), StoreError> {
        self.attempt(|spool| {
            spool.record(chunk)?;
            if spool.unsynced < UNSYNCED_BYTES { Ok(()) } else { spool.sync() }
        })
    }

    /// All of it is there: it is on disk when this returns.
    pub fn end(&mut self) -> Result<(), StoreError> {
        self.attempt(Self::sync)
    }

    /// From now on this is what the store holds, on disk when it returns.
    pub fn install(self, checkpoint: Checkpoint) -> Result<Spool<H>, StoreError> {
        let Self { home, .. } = self;
        let renamed = home.rename(Name::Incoming, Name::Snapshot);
        renamed.map_err(|source| StoreError::Create { path: home.path(Name::Snapshot), source })?;
        Ok(Spool { home, checkpoint })
    }

    fn record(&mut self, record: &[u8]) -> io::Result<()> {
        let head = record::head(record).ok_or_else(|| io::Error::from(io::ErrorKind::FileTooLarge))?;
        self.append(&head)?;
        self.append(record)
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let end = self.length + bytes.len() as u64;
        self.file.set_len(end)?;
        self.file.write(self.length, bytes)?;
        self.length = end;
        self.unsynced += bytes.len();
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.unsynced = 0;
        self.file.sync_data()
    }

    fn attempt(&mut self, write: impl FnOnce(&mut Self) -> io::Result<()>) -> Result<(), StoreError> {
        write(self).map_err(|source| StoreError::Write {
            path: self.home.path(Name::Incoming),
            source: Box::new(redb::Error::Io(source)),
        })
    }
}

impl<H: Home> Spool<H> {
    /// The one that has overtaken a store which holds that, if one has.
    pub fn find(home: &H, held: &Checkpoint) -> Result<Option<Self>, StoreError> {
        let Some(mut records) = Records::open(home)? else { return Ok(None) };
        let first = records.next().unwrap_or_else(|| Err(damaged(home)))?;
        let checkpoint: Checkpoint = postcard::from_bytes(&first).map_err(|_| unreadable(home))?;
        let spool = Self { home: home.clone(), checkpoint };
        if spool.checkpoint.position > held.position {
            return Ok(Some(spool));
        }
        spool.remove()?;
        Ok(None)
    }

    /// Gives every chunk, in order, to `take`.
    pub fn read(&self, mut take: impl FnMut(Chunk) -> Result<(), StoreError>) -> Result<(), StoreError> {
        let (mut rows, mut total) = (0, None);
        for record in Records::open(&self.home)?.ok_or_else(|| damaged(&self.home))?.skip(1) {
            let record = record?;
            let chunk = Chunk::read(&record).map_err(|_| unreadable(&self.home))?;
            rows += chunk.rows.len() as u64;
            total = chunk.total;
            take(chunk)?;
        }
        if total == Some(rows) { Ok(()) } else { Err(damaged(&self.home)) }
    }

    /// The store has its rows by now.
    pub fn remove(self) -> Result<(), StoreError> {
        let path = self.home.path(Name::Snapshot);
        self.home.remove(Name::Snapshot).map_err(|source| StoreError::Remove { path, source })
    }
}

/// What the records of a file hold.
struct Records<H: Home> {
    home: H,
    file: H::File,
    at: u64,
    length: u64,
}

impl<H: Home> Records<H> {
    fn open(home: &H) -> Result<Option<Self>, StoreError> {
        let path = home.path(Name::Snapshot);
        let failed = |source| StoreError::Open { path: path.clone(), source };
        let Some(file) = home.open(Name::Snapshot).map_err(failed)? else { return Ok(None) };
        let length = file.len().map_err(failed)?;
        let mut records = Self { home: home.clone(), file, at: 0, length };
        let head = records.bytes(MAGIC.len() + size_of_val(&FORMAT)).map_err(failed)?;
        let version = head.as_deref().and_then(|head| head.strip_prefix(MAGIC)).ok_or_else(|| damaged(home))?;
        match u32::from_le_bytes(version.try_into().expect("it has four bytes")) {
            FORMAT => Ok(Some(records)),
            version => Err(StoreError::OtherFormat { path, version }),
        }
    }

    /// So many bytes, unless there are fewer.
    fn bytes(&mut self, bytes: usize) -> io::Result<Option<Vec<u8>>> {
        let end = self.at + bytes as u64;
        if end > self.length {
            return Ok(None);
        }
        let mut taken = vec![0; bytes];
        self.file.read(self.at, &mut taken)?;
        self.at = end;
        Ok(Some(taken))
    }

    /// The next record, where it is what was written.
    fn record(&mut self) -> io::Result<Option<Vec<u8>>> {
        let head = self.bytes(record::HEAD_BYTES)?;
        let head = head.and_then(|head| Head::read(head.try_into().expect("it has so many")));
        let Some(head) = head else { return Ok(None) };
        Ok(self.bytes(head.bytes)?.filter(|record| head.is_of(record)))
    }
}

impl<H: Home> Iterator for Records<H> {
    type Item = Result<Vec<u8>, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at == self.length {
            return None;
        }
        let record = self.record();
        let failed = |source| StoreError::Read {
            path: self.home.path(Name::Snapshot),
            source: Box::new(redb::Error::Io(source)),
        };
        Some(record.map_err(failed).and_then(|record| record.ok_or_else(|| damaged(&self.home))))
    }
}

fn damaged(home: &impl Home) -> StoreError {
    let source = redb::Error::Corrupted("a part of the snapshot is not what was written".to_owned());
    StoreError::Damaged { path: home.path(Name::Snapshot), source: Box::new(source) }
}

/// Its checksums are right, so it is what somebody has written.
fn unreadable(home: &impl Home) -> StoreError {
    StoreError::NewerSnapshot { path: home.path(Name::Snapshot) }
}
