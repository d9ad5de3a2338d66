//! A snapshot as it came in: a file of chunks beside the store.
//!
//! ```text
//!  state.redb.incoming ── whole, on disk, raft wants it ──▶ state.redb.snapshot ── the next checkpoint ──▶ state.redb
//! ```
//!
//! A server needs the rows to be safe before it goes on, and not yet in their tables: filling those takes several times
//! as long as the rows take to arrive. A file behind the store in age is of no use any more.
//!
//! The file: [`MAGIC`], then records of a length and a CRC-32C (each four bytes, the least first) and so many bytes. The
//! first record is the checkpoint, the others are the chunks; the last one of them says how many rows there are in all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use blixard_core::driver::Checkpoint;

use super::snapshot::Chunk;
use super::{StoreError, beside, encoded, remove, sync_directory};

const MAGIC: &[u8] = b"blixard snapshot 1\n";
/// More than any chunk has: a longer record is a damaged one.
const MAX_RECORD_BYTES: u32 = 64 << 20;
/// Bytes that may wait for the disk: the last of them are all that the end has to wait for.
const UNSYNCED_BYTES: usize = 4 << 20;

/// A file that is being written.
pub(super) struct Writer {
    store: PathBuf,
    file: File,
    unsynced: usize,
}

/// A whole file, on disk.
pub(super) struct Spool {
    path: PathBuf,
    pub checkpoint: Checkpoint,
}

fn incoming(store: &Path) -> PathBuf {
    beside(store, ".incoming")
}

fn whole(store: &Path) -> PathBuf {
    beside(store, ".snapshot")
}

impl Writer {
    /// A file without chunks, for the store at `store`; what an earlier one left is gone.
    pub fn begin(store: &Path, checkpoint: &Checkpoint) -> Result<Self, StoreError> {
        Self::remove(store)?;
        let path = incoming(store);
        let file = OpenOptions::new().write(true).create_new(true).open(&path);
        let file = file.map_err(|source| StoreError::Create { path, source })?;
        let mut spool = Self { store: store.to_owned(), file, unsynced: 0 };
        spool.attempt(|spool| spool.file.write_all(MAGIC))?;
        spool.put(&encoded(checkpoint))?;
        Ok(spool)
    }

    /// Removes what is not whole.
    pub fn remove(store: &Path) -> Result<(), StoreError> {
        remove(&incoming(store))
    }

    pub fn put(&mut self, record: &[u8]) -> Result<(), StoreError> {
        self.attempt(|spool| {
            let bytes = u32::try_from(record.len()).ok().filter(|bytes| *bytes <= MAX_RECORD_BYTES);
            let bytes = bytes.ok_or_else(|| io::Error::from(io::ErrorKind::FileTooLarge))?;
            spool.file.write_all(&bytes.to_le_bytes())?;
            spool.file.write_all(&crc32c::crc32c(record).to_le_bytes())?;
            spool.file.write_all(record)?;
            spool.unsynced += record.len();
            if spool.unsynced < UNSYNCED_BYTES { Ok(()) } else { spool.sync() }
        })
    }

    /// All of it is there: it is on disk when this returns.
    pub fn end(&mut self) -> Result<(), StoreError> {
        self.attempt(Self::sync)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.unsynced = 0;
        self.file.sync_data()
    }

    /// From now on this is what the store holds, on disk when it returns.
    pub fn install(self, checkpoint: Checkpoint) -> Result<Spool, StoreError> {
        let path = whole(&self.store);
        let renamed = fs::rename(incoming(&self.store), &path).and_then(|()| sync_directory(&self.store));
        renamed.map_err(|source| StoreError::Create { path: path.clone(), source })?;
        Ok(Spool { path, checkpoint })
    }

    fn attempt(&mut self, write: impl FnOnce(&mut Self) -> io::Result<()>) -> Result<(), StoreError> {
        write(self).map_err(|source| StoreError::Write {
            path: incoming(&self.store),
            source: Box::new(redb::Error::Io(source)),
        })
    }
}

impl Spool {
    /// The one beside this store, which isn't older than what the store holds.
    pub fn find(store: &Path, held: &Checkpoint) -> Result<Option<Self>, StoreError> {
        let path = whole(store);
        let mut records = match Records::open(&path) {
            Ok(records) => records,
            Err(StoreError::Open { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let first = records.next().unwrap_or_else(|| Err(damaged(&path)))?;
        let checkpoint: Checkpoint = postcard::from_bytes(&first).map_err(|_| damaged(&path))?;
        let spool = Self { path, checkpoint };
        if spool.checkpoint.position > held.position {
            return Ok(Some(spool));
        }
        spool.remove()?;
        Ok(None)
    }

    /// Gives every chunk, in order, to `take`.
    pub fn read(&self, mut take: impl FnMut(Chunk) -> Result<(), StoreError>) -> Result<(), StoreError> {
        let (mut rows, mut total) = (0, None);
        for record in Records::open(&self.path)?.skip(1) {
            let record = record?;
            let chunk = Chunk::read(&record).map_err(|_| damaged(&self.path))?;
            rows += chunk.rows.len() as u64;
            total = chunk.total;
            take(chunk)?;
        }
        if total == Some(rows) { Ok(()) } else { Err(damaged(&self.path)) }
    }

    /// The store has its rows by now.
    pub fn remove(self) -> Result<(), StoreError> {
        remove(&self.path)
    }
}

/// What the records of a file hold.
struct Records {
    path: PathBuf,
    file: BufReader<File>,
    /// Bytes that it has yet.
    left: u64,
}

impl Records {
    fn open(path: &Path) -> Result<Self, StoreError> {
        let failed = |source| StoreError::Open { path: path.to_owned(), source };
        let mut file = File::open(path).map_err(failed)?;
        // As of the store itself: what is read comes from the disk.
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).map_err(|error| failed(error.into()))?;
        let bytes = file.metadata().map_err(failed)?.len();
        let mut magic = [0; MAGIC.len()];
        match file.read_exact(&mut magic) {
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => return Err(failed(error)),
            _ if magic != MAGIC => return Err(damaged(path)),
            _ => {}
        }
        Ok(Self { path: path.to_owned(), file: BufReader::new(file), left: bytes - MAGIC.len() as u64 })
    }

    fn record(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut head = [0; 8];
        self.file.read_exact(&mut head)?;
        let [bytes, checksum] = [0, 4].map(|at| u32::from_le_bytes(std::array::from_fn(|byte| head[at + byte])));
        let Some(left) = self.left.checked_sub(8 + u64::from(bytes)).filter(|_| bytes <= MAX_RECORD_BYTES) else {
            return Ok(None);
        };
        self.left = left;
        let mut record = vec![0; bytes as usize];
        self.file.read_exact(&mut record)?;
        Ok(Some(record).filter(|record| crc32c::crc32c(record) == checksum))
    }
}

impl Iterator for Records {
    type Item = Result<Vec<u8>, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        Some(match self.record() {
            Ok(Some(record)) => Ok(record),
            Err(source) if source.kind() != io::ErrorKind::UnexpectedEof => {
                Err(StoreError::Read { path: self.path.clone(), source: Box::new(redb::Error::Io(source)) })
            }
            Ok(None) | Err(_) => Err(damaged(&self.path)),
        })
    }
}

fn damaged(path: &Path) -> StoreError {
    let source = redb::Error::Corrupted("a record of the snapshot is not what was written".to_owned());
    StoreError::Damaged { path: path.to_owned(), source: Box::new(source) }
}
