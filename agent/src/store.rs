//! The cluster's state on this server's disk: redb, one table per kind of row.
//!
//! Each commit is a checkpoint: the rows, the last entry that is in them and the servers as of it, in one transaction, on
//! disk when it returns. What was applied since the last one, the log brings back. A checkpoint asks for a [`CommitOnDisk`]
//! at least as high as what was applied, so no store is ever ahead of its log, but for one that a snapshot has overtaken:
//! that one lies beside it, and its rows come into their tables with the next checkpoint.

mod backup;
mod home;
mod record;
mod snapshot;
mod spool;

use std::io;
use std::path::{Path, PathBuf};

use blixard_core::ANEW;
use blixard_core::driver::{Checkpoint, CommitOnDisk};
use blixard_core::state::{Change, Table};
use redb::{
    Builder, Database, DatabaseError, ReadableDatabase, ReadableTable, StorageBackend, StorageError, TableDefinition,
    WriteTransaction,
};

pub use backup::{BackupError, BackupHead, read as read_backup, write as write_backup};
pub use home::{Beside, Home, Name};
pub use snapshot::{ChunkError, Incoming, Reader, rows_of};
use spool::Spool;

/// Layout of the tables and of the snapshot beside them; what is in the rows is versioned with the cluster's state.
const FORMAT: u32 = 1;
const REDB_MAGIC: &[u8] = b"redb\x1a\x0a\xa9\x0d\x0a";
/// Pages that redb keeps in memory: the state itself is there already, so few are read again.
const CACHE_BYTES: usize = 2 << 20;
const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
const META_FORMAT: &str = "format";
const META_CHECKPOINT: &str = "checkpoint";
const META_IDENTITY: &str = "identity";

/// The open store; it holds the file's lock.
pub struct Store<H: Home = Beside> {
    home: H,
    database: Database,
    checkpoint: Checkpoint,
    /// A snapshot that is newer than what the database holds.
    overtaken: Option<Spool<H>>,
}

/// Everything a store holds, with its rows in an `R`: a state that is made of them one by one needn't keep them beside it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Loaded<R> {
    pub rows: R,
    /// The last log entry that is in the rows, and the servers as of then.
    pub checkpoint: Checkpoint,
    /// The rows came by a snapshot, and the log may not have begun anew behind it yet.
    pub installed: bool,
    /// What [`Store::set_identity`] was last given.
    pub identity: Option<Vec<u8>>,
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot create the store {}: it is there already; move it away if this server shall begin anew", path.display())]
    CreateOverExisting { path: PathBuf },
    #[error("cannot create the store {}: see that the agent's user may write to its directory, and that the disk works and has room", path.display())]
    Create {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot open the store {}: see that the agent's user may read and write it, and that the disk works and has room", path.display())]
    Open {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot open the store {}: another agent has it open; stop that one first", path.display())]
    Locked { path: PathBuf },
    #[error(
        "{} is no store of blixard, or is damaged at its beginning: see whether node.data_dir is right; if it is, \
         {anew}", path.display(), anew = ANEW
    )]
    ForeignFile { path: PathBuf },
    #[error("{} has store format {version}, and this agent reads only {FORMAT}: start the agent that wrote it", path.display())]
    OtherFormat { path: PathBuf, version: u32 },
    #[error(
        "the store {} is damaged: {anew}; \
         an old copy in its place would have forgotten what this host promised the others", path.display(), anew = ANEW
    )]
    Damaged {
        path: PathBuf,
        #[source]
        source: Box<redb::Error>,
    },
    #[error(
        "the store {} is damaged: its row {row:?} is missing or cannot be read; {anew}", path.display(), anew = ANEW
    )]
    DamagedRow { path: PathBuf, row: &'static str },
    #[error("cannot read the store {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: Box<redb::Error>,
    },
    #[error("cannot write to the store {}: see that the disk works, is writable and has room, then start the agent again", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: Box<redb::Error>,
    },
    #[error("cannot remove {}: see that the agent's user may write to its directory, and that the disk works", path.display())]
    Remove {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot read the snapshot {}: it was written by a newer agent; start that one", path.display())]
    NewerSnapshot { path: PathBuf },
    #[error(
        "the snapshot {} is there and the store that it belongs to isn't: put that back if it was moved, or \
         {anew}", path.display(), anew = ANEW
    )]
    SnapshotAlone { path: PathBuf },
    #[error(
        "cannot make the store durable up to {applied}: the raft log holds commits only up to {commit}; record them first"
    )]
    AheadOfLog { applied: u64, commit: u64 },
}

impl Store {
    /// A new, empty store; the file gets its name only once it is whole and on disk.
    ///
    /// # Errors
    /// When there is one already, or the directory can't be written.
    pub fn create(path: &Path) -> Result<Self, StoreError> {
        Self::create_in(Beside::path_of(path))
    }

    /// The store at `path`, or nothing when there is none.
    ///
    /// # Errors
    /// When what is there isn't a whole store of this format, or another process has it open.
    pub fn open(path: &Path) -> Result<Option<Self>, StoreError> {
        Self::open_in(Beside::path_of(path))
    }
}

impl<H: Home> Store<H> {
    /// As [`Store::create`], anywhere.
    ///
    /// # Errors
    /// The same.
    pub fn create_in(home: H) -> Result<Self, StoreError> {
        let path = home.path(Name::Store);
        match home.open(Name::Store) {
            Ok(None) => {}
            Ok(Some(_)) => return Err(StoreError::CreateOverExisting { path }),
            Err(source) => return Err(StoreError::Create { path, source }),
        }
        let mut store = Self::unfinished(home)?;
        store.take_place()?;
        Ok(store)
    }

    /// As [`Store::open`], anywhere.
    ///
    /// # Errors
    /// The same.
    pub fn open_in(home: H) -> Result<Option<Self>, StoreError> {
        let path = home.path(Name::Store);
        let failed = |source| StoreError::Open { path: path.clone(), source };
        let Some(file) = home.open(Name::Store).map_err(failed)? else {
            return match home.open(Name::Snapshot) {
                Ok(None) => Ok(None),
                Ok(Some(_)) => Err(StoreError::SnapshotAlone { path: home.path(Name::Snapshot) }),
                Err(source) => Err(StoreError::Open { path: home.path(Name::Snapshot), source }),
            };
        };
        let mut magic = [0; REDB_MAGIC.len()];
        let is_long = file.len().map_err(failed)? > REDB_MAGIC.len() as u64;
        if is_long {
            file.read(0, &mut magic).map_err(failed)?;
        }
        if magic != REDB_MAGIC {
            return Err(StoreError::ForeignFile { path });
        }
        let mut store = Self::on(file, home)?;
        let version = store.meta(META_FORMAT)?.and_then(|bytes| Some(u32::from_le_bytes(bytes.try_into().ok()?)));
        match version {
            None => return Err(StoreError::ForeignFile { path }),
            Some(FORMAT) => {}
            Some(version) => return Err(StoreError::OtherFormat { path, version }),
        }
        store.checkpoint = store.load_checkpoint()?;
        // The agent may have ended right behind a rename, and the log will begin behind what is found by these names.
        store.home.sync().map_err(failed)?;
        store.overtaken = Spool::find(&store.home, &store.checkpoint)?;
        Ok(Some(store))
    }

    /// A new, empty store that doesn't have its name yet; what an earlier one left there is gone.
    fn unfinished(home: H) -> Result<Self, StoreError> {
        let created = home.remove(Name::Unfinished).and_then(|()| home.create(Name::Unfinished));
        let file = created.map_err(|source| StoreError::Create { path: home.path(Name::Unfinished), source })?;
        let mut store = Self::on(file, home)?;
        store.write(|transaction| {
            let mut meta = transaction.open_table(META)?;
            meta.insert(META_FORMAT, FORMAT.to_le_bytes().as_slice())?;
            meta.insert(META_CHECKPOINT, encoded(&Checkpoint::default()).as_slice())?;
            for table in Table::ALL {
                transaction.open_table(rows(table))?;
            }
            Ok(())
        })?;
        Ok(store)
    }

    /// Removes what a creation or a snapshot that broke off has left beside the store.
    ///
    /// # Errors
    /// When the directory can't be written.
    pub fn remove_unfinished(home: &H) -> Result<(), StoreError> {
        [Name::Unfinished, Name::Incoming].into_iter().try_for_each(|name| {
            home.remove(name).map_err(|source| StoreError::Remove { path: home.path(name), source })
        })
    }

    /// Gives an unfinished store its name, in place of whatever has it.
    fn take_place(&mut self) -> Result<(), StoreError> {
        let renamed = self.home.rename(Name::Unfinished, Name::Store);
        renamed.map_err(|source| StoreError::Create { path: self.path(), source })
    }

    fn on(file: H::File, home: H) -> Result<Self, StoreError> {
        // A page that was altered would otherwise be trusted, or panic.
        let mut builder = Builder::new();
        let database = builder.set_check_integrity_on_open(true).set_cache_size(CACHE_BYTES).create_with_backend(file);
        let database = database.map_err(|source| opened(&home.path(Name::Store), source))?;
        Ok(Self { home, database, checkpoint: Checkpoint::default(), overtaken: None })
    }

    /// Where it is.
    pub fn home(&self) -> &H {
        &self.home
    }

    fn path(&self) -> PathBuf {
        self.home.path(Name::Store)
    }

    /// Reads everything.
    ///
    /// # Errors
    /// When the file can't be read, or a row is damaged.
    pub fn load<R: Default + for<'a> Extend<(Table, &'a [u8], &'a [u8])>>(&self) -> Result<Loaded<R>, StoreError> {
        let mut loaded = Loaded {
            checkpoint: self.checkpoint().clone(),
            installed: self.overtaken.is_some(),
            identity: self.identity()?,
            rows: R::default(),
        };
        if let Some(snapshot) = &self.overtaken {
            snapshot.read(|chunk| {
                loaded.rows.extend(chunk.rows());
                Ok(())
            })?;
            return Ok(loaded);
        }
        let read = || {
            let transaction = self.database.begin_read()?;
            for table in Table::ALL {
                // An older agent of the same format may not have had the table.
                let opened = match transaction.open_table(rows(table)) {
                    Err(redb::TableError::TableDoesNotExist(_)) => continue,
                    opened => opened?,
                };
                for row in opened.iter()? {
                    let (key, value) = row?;
                    loaded.rows.extend([(table, key.value(), value.value())]);
                }
            }
            Ok(loaded)
        };
        read().map_err(|source| self.unread(source))
    }

    /// What [`Store::set_identity`] was last given.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn identity(&self) -> Result<Option<Vec<u8>>, StoreError> {
        self.meta(META_IDENTITY)
    }

    /// The last log entry that is in the rows, and the servers as of then.
    pub fn checkpoint(&self) -> &Checkpoint {
        self.overtaken.as_ref().map_or(&self.checkpoint, |snapshot| &snapshot.checkpoint)
    }

    /// What is in the store now, to be read while it goes on; nothing while a snapshot's rows aren't in their tables.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn reader(&self) -> Result<Option<Reader>, StoreError> {
        if self.overtaken.is_some() {
            return Ok(None);
        }
        let transaction = self.database.begin_read().map_err(|source| self.unread(source.into()))?;
        Ok(Some(Reader::new(transaction, self.checkpoint.clone(), self.path())))
    }

    /// Writes what the entries up to `checkpoint` have changed, a key at most once, all of it or nothing; on disk when it
    /// returns.
    ///
    /// # Errors
    /// When the disk fails, the store must not be used any more. [`StoreError::AheadOfLog`] has written nothing.
    pub fn commit(
        &mut self,
        changes: &[Change],
        checkpoint: &Checkpoint,
        commit: CommitOnDisk,
    ) -> Result<(), StoreError> {
        let before = self.checkpoint().position;
        assert!(checkpoint.position >= before, "entries are applied in order: {checkpoint:?} after {before:?}");
        Self::check_order(checkpoint, commit)?;
        match self.overtaken.take() {
            Some(snapshot) => return self.take_in(snapshot, changes, checkpoint),
            None => self.write(|transaction| put(transaction, changes, checkpoint))?,
        }
        self.checkpoint = checkpoint.clone();
        Ok(())
    }

    /// Lets a store take this one's place that has a snapshot's rows and these changes, and who this node is.
    fn take_in(&mut self, snapshot: Spool<H>, changes: &[Change], checkpoint: &Checkpoint) -> Result<(), StoreError> {
        let identity = self.identity()?;
        let fill = || {
            let next = Self::unfinished(self.home.clone())?;
            let begun = next.database.begin_write();
            let transaction = begun.map_err(|source| next.unwritten(source.into()))?;
            snapshot.read(|chunk| chunk.insert(&transaction).map_err(|source| next.unwritten(source)))?;
            let rest = || {
                put(&transaction, changes, checkpoint)?;
                if let Some(identity) = identity {
                    transaction.open_table(META)?.insert(META_IDENTITY, identity.as_slice())?;
                }
                transaction.commit()?;
                Ok(())
            };
            rest().map_err(|source| next.unwritten(source))?;
            Ok(next)
        };
        let mut next = fill().inspect_err(|_| {
            // It may be what has filled the disk, and others want to write there. The next start would remove it, too.
            let _ = self.home.remove(Name::Unfinished);
        })?;
        next.take_place()?;
        next.checkpoint = checkpoint.clone();
        *self = next;
        snapshot.remove()
    }

    /// Keeps who this node is, on disk when it returns.
    ///
    /// # Errors
    /// When the disk fails, the store must not be used any more.
    pub fn set_identity(&mut self, identity: &[u8]) -> Result<(), StoreError> {
        self.write(|transaction| {
            transaction.open_table(META)?.insert(META_IDENTITY, identity)?;
            Ok(())
        })
    }

    /// A store in this one's place that holds nothing but who this node is from now on: whatever breaks in on it, the next
    /// start finds the one or the other.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn begin_anew(self, identity: &[u8]) -> Result<Self, StoreError> {
        let mut next = Self::unfinished(self.home.clone())?;
        next.set_identity(identity)?;
        next.take_place()?;
        // Where this breaks off, the next start finds a snapshot of a server that this node is no more.
        let removed = self.home.remove(Name::Snapshot).and_then(|()| self.home.sync());
        removed.map_err(|source| StoreError::Remove { path: self.home.path(Name::Snapshot), source })?;
        Ok(next)
    }

    /// Whether no row was ever in it.
    pub fn is_blank(&self) -> bool {
        *self.checkpoint() == Checkpoint::default()
    }

    fn check_order(checkpoint: &Checkpoint, commit: CommitOnDisk) -> Result<(), StoreError> {
        let (applied, commit) = (checkpoint.position.index, commit.index());
        if commit < applied { Err(StoreError::AheadOfLog { applied, commit }) } else { Ok(()) }
    }

    fn write(&mut self, write: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>) -> Result<(), StoreError> {
        let attempt = || {
            let transaction = self.database.begin_write()?;
            write(&transaction)?;
            transaction.commit()?;
            Ok(())
        };
        attempt().map_err(|source: redb::Error| self.unwritten(source))
    }

    fn meta(&self, row: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let read = || {
            let meta = match self.database.begin_read()?.open_table(META) {
                Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
                meta => meta?,
            };
            Ok(meta.get(row)?.map(|value| value.value().to_vec()))
        };
        read().map_err(|source| self.unread(source))
    }

    fn load_checkpoint(&self) -> Result<Checkpoint, StoreError> {
        let checkpoint = self.meta(META_CHECKPOINT)?.and_then(|bytes| postcard::from_bytes(&bytes).ok());
        checkpoint.ok_or_else(|| self.damaged_row(META_CHECKPOINT))
    }

    fn damaged_row(&self, row: &'static str) -> StoreError {
        StoreError::DamagedRow { path: self.path(), row }
    }

    fn unwritten(&self, source: redb::Error) -> StoreError {
        StoreError::Write { path: self.path(), source: Box::new(source) }
    }

    fn unread(&self, source: redb::Error) -> StoreError {
        let path = self.path();
        match source {
            redb::Error::Corrupted(_) => StoreError::Damaged { path, source: Box::new(source) },
            redb::Error::TableTypeMismatch { .. } => StoreError::ForeignFile { path },
            _ => StoreError::Read { path, source: Box::new(source) },
        }
    }
}

/// Writes what has changed up to a checkpoint.
fn put(transaction: &WriteTransaction, changes: &[Change], checkpoint: &Checkpoint) -> Result<(), redb::Error> {
    transaction.open_table(META)?.insert(META_CHECKPOINT, encoded(checkpoint).as_slice())?;
    for group in changes.chunk_by(|one, other| one.table == other.table) {
        let mut table = transaction.open_table(rows(group[0].table))?;
        for Change { key, value, .. } in group {
            match value {
                Some(value) => table.insert(key.as_slice(), &**value)?,
                None => table.remove(key.as_slice())?,
            };
        }
    }
    Ok(())
}

fn rows(table: Table) -> TableDefinition<'static, &'static [u8], &'static [u8]> {
    TableDefinition::new(table.name())
}

fn encoded(checkpoint: &Checkpoint) -> Vec<u8> {
    postcard::to_stdvec(checkpoint).expect("numbers always encode")
}

/// Why redb didn't open the file.
fn opened(path: &Path, source: DatabaseError) -> StoreError {
    let path = path.to_owned();
    match source {
        DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => StoreError::Locked { path },
        DatabaseError::Storage(StorageError::Io(source))
            if !matches!(source.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData) =>
        {
            StoreError::Open { path, source }
        }
        source => StoreError::Damaged { path, source: Box::new(source.into()) },
    }
}
