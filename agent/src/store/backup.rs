//! A backup: the rows of one checkpoint in a file of their own, all of them or worth nothing.
//!
//! The file: [`MAGIC`], the format, then records: what the backup is of, the chunks as a snapshot has them, the last of
//! which says how many rows there are, and a SHA-256 over those of all records before it. Nothing follows.

use std::io::{self, Read};
use std::ops::ControlFlow;

use blixard_core::driver::Position;
use blixard_core::state::Table;
use blixard_core::types::{Hash, Level, NodeName, Timestamp};
use serde::{Deserialize, Serialize};

use super::record::{self, Head};
use super::snapshot::{Chunk, Reader};
use super::{FORMAT, StoreError};

const MAGIC: &[u8] = b"blixard backup\n";
/// Bytes of rows in one chunk.
const CHUNK_BYTES: usize = 256 << 10;

/// What a backup is of.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BackupHead {
    /// Whoever restores it has to understand this level.
    pub level: Level,
    /// The last log entry that is in it.
    pub position: Position,
    /// By the clock of the node that made it.
    pub taken_at: Timestamp,
    pub by: NodeName,
}

/// Why a file can't be restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("cannot read it")]
    Read(#[source] io::Error),
    #[error("it is no backup of blixard")]
    Foreign,
    #[error("it has format {version}, and this agent reads only {FORMAT}: it was made by a newer agent; use that one")]
    OtherFormat { version: u32 },
    #[error("it ends before its end: it was cut short")]
    CutShort,
    #[error("it is damaged: the record at byte {offset} is not what was written")]
    Damaged { offset: u64 },
    #[error("the record at byte {offset} cannot be read: it was made by a newer agent; use that one")]
    Newer { offset: u64 },
}

/// Gives a backup of these rows to `put`, piece by piece, until that has enough.
///
/// # Errors
/// When the store can't be read.
pub fn write(
    reader: &Reader,
    head: &BackupHead,
    mut put: impl FnMut(Vec<u8>) -> ControlFlow<()>,
) -> Result<(), StoreError> {
    let mut digest = Digest::default();
    let mut record = |record: &[u8]| {
        digest.add(record);
        framed(record)
    };
    let begin = [MAGIC, &FORMAT.to_le_bytes(), &record(&encoded(head))].concat();
    if put(begin).is_break() {
        return Ok(());
    }
    let mut after = Vec::new();
    loop {
        let (chunk, next) = reader.chunk(&after, CHUNK_BYTES)?;
        if put(record(&chunk)).is_break() {
            return Ok(());
        }
        match next {
            Some(next) => after = next,
            None => break,
        }
    }
    let _ = put(framed(&encoded(&digest.end())));
    Ok(())
}

/// Reads all of a backup and says what it is of; its rows are worth nothing where that fails.
///
/// # Errors
/// The first thing that isn't as it was written.
pub fn read(
    file: impl Read,
    begin: impl FnOnce(&BackupHead),
    mut take: impl FnMut((Table, &[u8], &[u8])),
) -> Result<BackupHead, BackupError> {
    let mut file = Records { file, offset: 0 };
    let magic = file.bytes(MAGIC.len())?;
    if magic.as_deref() != Some(MAGIC) {
        return Err(BackupError::Foreign);
    }
    let version = file.bytes(size_of_val(&FORMAT))?.ok_or(BackupError::CutShort)?;
    match u32::from_le_bytes(version.try_into().expect("it has four bytes")) {
        FORMAT => {}
        version => return Err(BackupError::OtherFormat { version }),
    }
    let mut digest = Digest::default();
    let (offset, record) = file.record()?;
    let head: BackupHead = postcard::from_bytes(&record).map_err(|_| BackupError::Newer { offset })?;
    digest.add(&record);
    begin(&head);
    let mut rows = 0;
    loop {
        let (offset, record) = file.record()?;
        let chunk = Chunk::read(&record).map_err(|_| BackupError::Newer { offset })?;
        digest.add(&record);
        rows += chunk.rows.len() as u64;
        let total = chunk.total;
        chunk.rows().for_each(&mut take);
        match total {
            Some(total) if total == rows => break,
            Some(_) => return Err(BackupError::Damaged { offset }),
            None => {}
        }
    }
    let (offset, end) = file.record()?;
    if end != encoded(&digest.end()) || file.bytes(1)?.is_some() {
        return Err(BackupError::Damaged { offset });
    }
    Ok(head)
}

/// The hash of all records so far, by theirs.
#[derive(Default)]
struct Digest(String);

impl Digest {
    fn add(&mut self, record: &[u8]) {
        self.0 += &Hash::of(record).to_string();
    }

    fn end(self) -> Hash {
        Hash::of(self.0.as_bytes())
    }
}

fn encoded(value: &impl Serialize) -> Vec<u8> {
    postcard::to_stdvec(value).expect("it has no part that postcard refuses")
}

fn framed(record: &[u8]) -> Vec<u8> {
    let head = record::head(record).expect("a chunk has one row that is too large at most, and rows are smaller");
    [&head, record].concat()
}

struct Records<F> {
    file: F,
    offset: u64,
}

impl<F: Read> Records<F> {
    /// So many bytes, unless there are fewer.
    fn bytes(&mut self, bytes: usize) -> Result<Option<Vec<u8>>, BackupError> {
        let mut taken = Vec::new();
        let read = (&mut self.file).take(bytes as u64).read_to_end(&mut taken).map_err(BackupError::Read)?;
        self.offset += read as u64;
        Ok((read == bytes).then_some(taken))
    }

    /// The next record, and where it begins.
    fn record(&mut self) -> Result<(u64, Vec<u8>), BackupError> {
        let offset = self.offset;
        let head = self.bytes(record::HEAD_BYTES)?.ok_or(BackupError::CutShort)?;
        let head = Head::read(head.try_into().expect("it has so many")).ok_or(BackupError::Damaged { offset })?;
        let record = self.bytes(head.bytes)?.ok_or(BackupError::CutShort)?;
        if head.is_of(&record) { Ok((offset, record)) } else { Err(BackupError::Damaged { offset }) }
    }
}
