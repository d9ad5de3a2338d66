//! The rows of one checkpoint on their way from one server's store into another's, in chunks.
//!
//! The sender reads from one read transaction, so the store goes on meanwhile. The receiver keeps the chunks in a file of
//! their own; once that is whole it is what the store holds, by its name, at once or not at all.

use std::ops::{Bound, Range};
use std::path::PathBuf;

use blixard_core::driver::Checkpoint;
use blixard_core::state::Table;
use blixard_core::types::Hash;
use redb::{ReadTransaction, ReadableTableMetadata, WriteTransaction};
use serde::{Deserialize, Serialize};

use super::home::{Beside, Home};
use super::spool::Writer;
use super::{Store, StoreError, rows};

/// The store as it was at one checkpoint.
pub struct Reader {
    transaction: ReadTransaction,
    checkpoint: Checkpoint,
    path: PathBuf,
}

/// Rows that are hashed at once, in bytes. It is part of what the hash is of.
const HASHED_BYTES: usize = 256 << 10;

/// A row's place: its table's in [`Table::ALL`], and its key.
type Place = (u8, Vec<u8>);

/// A chunk, as it is read; [`Rows`] writes one.
#[derive(Deserialize)]
pub(super) struct Chunk<'a> {
    #[serde(borrow)]
    pub rows: Vec<Row<'a>>,
    /// How many rows there are in all; only in the last chunk.
    pub total: Option<u64>,
}

/// A row's place in two parts, and its value.
type Row<'a> = (u8, &'a [u8], &'a [u8]);

impl<'a> Chunk<'a> {
    pub fn read(bytes: &'a [u8]) -> Result<Self, ChunkError> {
        let chunk: Self = postcard::from_bytes(bytes).map_err(|_| ChunkError::Unreadable)?;
        let is_known = |(table, ..): &Row| usize::from(*table) < Table::ALL.len();
        if chunk.rows.iter().all(is_known) { Ok(chunk) } else { Err(ChunkError::Unreadable) }
    }

    pub fn rows(self) -> impl Iterator<Item = (Table, &'a [u8], &'a [u8])> {
        self.rows.into_iter().map(|(table, key, value)| (Table::ALL[usize::from(table)], key, value))
    }

    pub fn insert(&self, transaction: &WriteTransaction) -> Result<(), redb::Error> {
        for group in self.rows.chunk_by(|(one, ..), (other, ..)| one == other) {
            let mut table = transaction.open_table(rows(Table::ALL[usize::from(group[0].0)]))?;
            for (_, key, value) in group {
                table.insert(*key, *value)?;
            }
        }
        Ok(())
    }
}

/// A chunk that is being made: its rows, encoded.
#[derive(Default)]
struct Rows {
    count: u64,
    /// Bytes of keys and values.
    size: usize,
    bytes: Vec<u8>,
    /// Table of the last row, and where its key is in `bytes`.
    last: Option<(u8, Range<usize>)>,
}

impl Rows {
    fn push(&mut self, table: u8, key: &[u8], value: &[u8]) {
        self.count += 1;
        self.size += key.len() + value.len();
        self.bytes.push(table);
        append(&mut self.bytes, &key.len());
        let from = self.bytes.len();
        self.bytes.extend_from_slice(key);
        self.last = Some((table, from..self.bytes.len()));
        append(&mut self.bytes, &value.len());
        self.bytes.extend_from_slice(value);
    }

    /// The token of what follows.
    fn next(&self) -> Option<Vec<u8>> {
        self.last.clone().map(|(table, key)| token(&(table, self.bytes[key].to_vec())))
    }

    /// The whole chunk; `total` says that it is the last one.
    fn chunk(&self, total: Option<u64>) -> Vec<u8> {
        let mut chunk = Vec::with_capacity(self.bytes.len() + 24);
        append(&mut chunk, &self.count);
        chunk.extend_from_slice(&self.bytes);
        append(&mut chunk, &total);
        chunk
    }
}

fn append(bytes: &mut Vec<u8>, value: &impl Serialize) {
    let mut encoded = [0; 16];
    bytes.extend_from_slice(postcard::to_slice(value, &mut encoded).expect("a number has eleven bytes at most"));
}

/// The rows of one chunk.
///
/// # Errors
/// When the chunk can't be read.
pub fn rows_of(chunk: &[u8]) -> Result<impl Iterator<Item = (Table, &[u8], &[u8])>, ChunkError> {
    Chunk::read(chunk).map(Chunk::rows)
}

/// Why a chunk can't be put into the incoming store.
#[derive(Debug, thiserror::Error)]
pub enum ChunkError {
    #[error(
        "the snapshot has a part that this agent cannot read: it comes from a newer agent, or was damaged on its way"
    )]
    Unreadable,
    #[error("the snapshot has {found} rows where it says {total}: a part was lost on its way")]
    Incomplete { found: u64, total: u64 },
    #[error("cannot keep the snapshot")]
    Write(#[source] StoreError),
}

impl Reader {
    pub(super) fn new(transaction: ReadTransaction, checkpoint: Checkpoint, path: PathBuf) -> Self {
        Self { transaction, checkpoint, path }
    }

    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The rows behind `after` (a token of [`Incoming::resume`], empty for the beginning), about `bytes` of them; and the
    /// token to go on with, or nothing when that was the last chunk.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn chunk(&self, after: &[u8], bytes: usize) -> Result<(Vec<u8>, Option<Vec<u8>>), StoreError> {
        let after: Option<Place> = postcard::from_bytes(after).ok();
        self.read(after.as_ref(), bytes)
            .map_err(|source| StoreError::Read { path: self.path.clone(), source: Box::new(source) })
    }

    /// A SHA-256 of all rows: of equal ones, in any store, it is equal.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn hash(&self) -> Result<Hash, StoreError> {
        let (mut hashes, mut after) = (String::new(), Vec::new());
        loop {
            let (chunk, next) = self.chunk(&after, HASHED_BYTES)?;
            hashes += &Hash::of(&chunk).to_string();
            match next {
                Some(next) => after = next,
                None => return Ok(Hash::of(hashes.as_bytes())),
            }
        }
    }

    fn read(&self, after: Option<&Place>, bytes: usize) -> Result<(Vec<u8>, Option<Vec<u8>>), redb::Error> {
        let (mut chunk, mut total) = (Rows::default(), 0);
        for (number, table) in (0_u8..).zip(Table::ALL) {
            // An older agent of the same format may not have had the table.
            let opened = match self.transaction.open_table(rows(table)) {
                Err(redb::TableError::TableDoesNotExist(_)) => continue,
                opened => opened?,
            };
            total += opened.len()?;
            let from = match after {
                Some((done, _)) if *done > number => continue,
                Some((begun, key)) if *begun == number => Bound::Excluded(key.as_slice()),
                _ => Bound::Unbounded,
            };
            for row in opened.range::<&[u8]>((from, Bound::Unbounded))? {
                let (key, value) = row?;
                if chunk.size >= bytes {
                    return Ok((chunk.chunk(None), chunk.next()));
                }
                chunk.push(number, key.value(), value.value());
            }
        }
        Ok((chunk.chunk(Some(total)), None))
    }
}

/// A snapshot on its way in, beside the store that it is for.
pub struct Incoming<H: Home = Beside> {
    checkpoint: Checkpoint,
    spool: Writer<H>,
    last: Option<Place>,
    rows: u64,
}

impl<H: Home> Incoming<H> {
    /// An empty one; what an earlier one left is gone.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn begin(home: H, checkpoint: Checkpoint) -> Result<Self, StoreError> {
        Ok(Self { spool: Writer::begin(home, &checkpoint)?, checkpoint, last: None, rows: 0 })
    }

    /// What to ask for next, if the stream ends before its last chunk.
    pub fn resume(&self) -> Vec<u8> {
        self.last.as_ref().map_or(Vec::new(), token)
    }

    /// Puts the next chunk in; whether it was the last one, and all is on disk.
    ///
    /// # Errors
    /// When the chunk can't be read, rows are missing, or the disk fails.
    pub fn put(&mut self, bytes: &[u8]) -> Result<bool, ChunkError> {
        let Chunk { rows, total } = Chunk::read(bytes)?;
        self.rows += rows.len() as u64;
        if let Some(total) = total.filter(|total| *total != self.rows) {
            return Err(ChunkError::Incomplete { found: self.rows, total });
        }
        self.last = rows.last().map(|(table, key, _)| (*table, key.to_vec())).or(self.last.take());
        self.spool.put(bytes).map_err(ChunkError::Write)?;
        if total.is_some() {
            self.spool.end().map_err(ChunkError::Write)?;
        }
        Ok(total.is_some())
    }
}

impl<H: Home> Store<H> {
    /// Lets a whole snapshot overtake this store, on disk when it returns: it is what the store holds from now on. Its
    /// rows come into their tables with the next [`Store::commit`].
    ///
    /// # Errors
    /// When the disk fails, the store must not be used any more.
    pub fn install(&mut self, incoming: Incoming<H>) -> Result<(), StoreError> {
        self.overtaken = Some(incoming.spool.install(incoming.checkpoint)?);
        Ok(())
    }
}

fn token(place: &Place) -> Vec<u8> {
    postcard::to_stdvec(place).expect("bytes always encode")
}
