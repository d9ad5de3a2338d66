//! The rows of one checkpoint on their way from one server's store into another's, in chunks.
//!
//! The sender reads from one read transaction, so the store goes on meanwhile. The receiver puts the chunks into a new
//! file; once that is whole it takes the old one's place by its name, at once or not at all.

use std::ops::Bound;
use std::path::{Path, PathBuf};

use blixard_core::driver::Checkpoint;
use blixard_core::state::Table;
use blixard_core::types::Hash;
use redb::{ReadTransaction, ReadableTableMetadata, WriteTransaction};
use serde::{Deserialize, Serialize};

use super::{META, META_CHECKPOINT, META_INSTALLED, Store, StoreError, encoded, rows};

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

#[derive(Serialize, Deserialize)]
struct Chunk<B> {
    rows: Vec<(u8, B, B)>,
    /// How many rows there are in all; only in the last chunk.
    total: Option<u64>,
}

impl<'a> Chunk<&'a [u8]> {
    fn read(bytes: &'a [u8]) -> Result<Self, ChunkError> {
        let chunk: Self = postcard::from_bytes(bytes).map_err(|_| ChunkError::Unreadable)?;
        let is_known = |(table, ..): &(u8, _, _)| usize::from(*table) < Table::ALL.len();
        if chunk.rows.iter().all(is_known) { Ok(chunk) } else { Err(ChunkError::Unreadable) }
    }
}

/// The rows of one chunk.
///
/// # Errors
/// When the chunk can't be read.
pub fn rows_of(chunk: &[u8]) -> Result<impl Iterator<Item = (Table, &[u8], &[u8])>, ChunkError> {
    let rows = Chunk::read(chunk)?.rows.into_iter();
    Ok(rows.map(|(table, key, value)| (Table::ALL[usize::from(table)], key, value)))
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
        let mut chunk = Chunk::<Vec<u8>> { rows: Vec::new(), total: None };
        let (mut size, mut total) = (0, 0);
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
                if size >= bytes {
                    let next = chunk.rows.last().map(|(table, key, _)| token(&(*table, key.clone())));
                    return Ok((to_bytes(&chunk), next));
                }
                size += key.value().len() + value.value().len();
                chunk.rows.push((number, key.value().to_vec(), value.value().to_vec()));
            }
        }
        chunk.total = Some(total);
        Ok((to_bytes(&chunk), None))
    }
}

/// A snapshot on its way in; beside the store, whose place it takes once it is whole.
pub struct Incoming {
    /// All of it, until the last chunk is in.
    transaction: Option<WriteTransaction>,
    store: Store,
    last: Option<Place>,
    rows: u64,
}

impl Incoming {
    /// An empty one, for the store at `path`; what an earlier one left is gone.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn begin(path: &Path, checkpoint: Checkpoint) -> Result<Self, StoreError> {
        let mut store = Store::unfinished(path)?;
        store.checkpoint = checkpoint;
        Ok(Self { transaction: None, store, last: None, rows: 0 })
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
        self.store(&rows, total.is_some()).map_err(ChunkError::Write)?;
        Ok(total.is_some())
    }

    fn store(&mut self, chunk: &[(u8, &[u8], &[u8])], is_last: bool) -> Result<(), StoreError> {
        let mut attempt = || {
            let transaction = match self.transaction.take() {
                Some(begun) => begun,
                None => self.store.database.begin_write()?,
            };
            for group in chunk.chunk_by(|(one, ..), (other, ..)| one == other) {
                let mut table = transaction.open_table(rows(Table::ALL[usize::from(group[0].0)]))?;
                for (_, key, value) in group {
                    table.insert(*key, *value)?;
                }
            }
            if !is_last {
                self.transaction = Some(transaction);
                return Ok(());
            }
            let mut meta = transaction.open_table(META)?;
            meta.insert(META_CHECKPOINT, encoded(&self.store.checkpoint).as_slice())?;
            meta.insert(META_INSTALLED, [].as_slice())?;
            drop(meta);
            transaction.commit()?;
            Ok(())
        };
        attempt().map_err(|source: redb::Error| StoreError::Write {
            path: self.store.path.clone(),
            source: Box::new(source),
        })
    }
}

impl Store {
    /// Lets a whole snapshot take this store's place, on disk when it returns; who this node is stays.
    ///
    /// # Errors
    /// When the disk fails, the store must not be used any more.
    pub fn install(&mut self, incoming: Incoming) -> Result<(), StoreError> {
        let mut store = incoming.store;
        if let Some(identity) = self.identity()? {
            store.set_identity(&identity)?;
        }
        store.take_place()?;
        *self = store;
        Ok(())
    }
}

fn token(place: &Place) -> Vec<u8> {
    postcard::to_stdvec(place).expect("bytes always encode")
}

fn to_bytes(chunk: &Chunk<Vec<u8>>) -> Vec<u8> {
    postcard::to_stdvec(chunk).expect("bytes always encode")
}
