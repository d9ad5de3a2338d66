//! The cluster's state on this server's disk: redb, one table per kind of row.
//!
//! The applied index and the servers as of it are in the same transaction as the rows. Commits are lazy: a crash may take
//! them, and the log brings them back. A durable commit asks for a [`CommitOnDisk`] at least as high as what was applied, and a
//! store that is dropped with lazy commits forgets them, so no store is ever ahead of its log.

mod valve;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use blixard_core::driver::Membership;
use blixard_core::state::{Change, Table};
use redb::backends::FileBackend;
use redb::{
    Builder, Database, DatabaseError, ReadableDatabase, ReadableTable, StorageBackend, StorageError, TableDefinition,
    WriteTransaction,
};

use crate::log::CommitOnDisk;
use valve::Valve;

/// Layout of the tables; what is in their rows is versioned with the cluster's state.
const FORMAT: u32 = 1;
const REDB_MAGIC: &[u8] = b"redb\x1a\x0a\xa9\x0d\x0a";
const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
const META_FORMAT: &str = "format";
const META_APPLIED: &str = "applied";
const META_MEMBERSHIP: &str = "membership";
const META_IDENTITY: &str = "identity";

/// The open store; it holds the file's lock.
pub struct Store {
    path: PathBuf,
    database: Database,
    /// Shuts the file off from the database.
    shut: Arc<AtomicBool>,
    applied: u64,
    /// There are commits that a crash would take.
    is_lazy: bool,
}

/// Everything a store holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Loaded {
    pub rows: Vec<(Table, Vec<u8>, Vec<u8>)>,
    /// The last log entry that is in the rows.
    pub applied: u64,
    /// The servers as of `applied`.
    pub membership: Membership,
    /// What [`Store::set_identity`] was last given.
    pub identity: Option<Vec<u8>>,
}

/// Whether a commit survives a crash by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// A crash may take it; what it applied is in the log.
    Lazy,
    /// It is on disk, with all before it; so must be the commit index of what it applied, which this proves.
    Now(CommitOnDisk),
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot create the store {}: it is there already; move it away if this server shall begin anew", path.display())]
    CreateOverExisting { path: PathBuf },
    #[error("cannot create the store {}: see that its directory is there and the agent's user may write to it", path.display())]
    Create {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot open the store {}: see that the agent's user may read and write it", path.display())]
    Open {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot open the store {}: another agent has it open; stop that one first", path.display())]
    Locked { path: PathBuf },
    #[error("{} is not a store of blixard: move it away, or point data_dir elsewhere", path.display())]
    ForeignFile { path: PathBuf },
    #[error("{} has store format {version}, and this agent reads only {FORMAT}: start the agent that wrote it", path.display())]
    OtherFormat { path: PathBuf, version: u32 },
    #[error(
        "the store {} is damaged: restore it together with the raft log from a copy, or move the data directory away and let this host join under another name", path.display()
    )]
    Damaged {
        path: PathBuf,
        #[source]
        source: Box<redb::Error>,
    },
    #[error(
        "the store {} is damaged: its row {row:?} is missing or cannot be read; restore it together with the raft log from a \
         copy, or move the data directory away and let this host join under another name", path.display()
    )]
    DamagedRow { path: PathBuf, row: &'static str },
    #[error("cannot read the store {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: Box<redb::Error>,
    },
    #[error("cannot write to the store {}: the agent stops; see that the disk works and has room, then start it again", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: Box<redb::Error>,
    },
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
        let failed = |source| StoreError::Create { path: path.to_owned(), source };
        if path.try_exists().map_err(failed)? {
            return Err(StoreError::CreateOverExisting { path: path.to_owned() });
        }
        let mut unfinished = path.as_os_str().to_owned();
        unfinished.push(".unfinished");
        let unfinished = PathBuf::from(unfinished);
        let options = || OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&unfinished);
        let file = options().map_err(failed)?;
        drop(Self::create_on(FileBackend::new(file).map_err(|source| opened(path, source))?, &unfinished)?);
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let rename = || {
            File::open(&unfinished)?.sync_all()?;
            fs::rename(&unfinished, path)?;
            File::open(directory)?.sync_all()
        };
        rename().map_err(failed)?;
        Self::open(path)?.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))
    }

    /// The store at `path`, or nothing when there is none.
    ///
    /// # Errors
    /// When what is there isn't a whole store of this format, or another process has it open.
    pub fn open(path: &Path) -> Result<Option<Self>, StoreError> {
        let failed = |source| StoreError::Open { path: path.to_owned(), source };
        let mut file = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let mut magic = Vec::new();
        file.by_ref().take(REDB_MAGIC.len() as u64).read_to_end(&mut magic).map_err(failed)?;
        if magic != REDB_MAGIC {
            return Err(StoreError::ForeignFile { path: path.to_owned() });
        }
        Self::open_on(FileBackend::new(file).map_err(|source| opened(path, source))?, path).map(Some)
    }

    /// A new, empty store on any backend; `path` is for messages.
    ///
    /// # Errors
    /// When the backend can't be written.
    pub fn create_on(backend: impl StorageBackend, path: &Path) -> Result<Self, StoreError> {
        let mut store = Self::on(backend, path)?;
        store.write(|transaction| {
            let mut meta = transaction.open_table(META)?;
            meta.insert(META_FORMAT, FORMAT.to_le_bytes().as_slice())?;
            meta.insert(META_APPLIED, 0_u64.to_le_bytes().as_slice())?;
            meta.insert(META_MEMBERSHIP, encoded(&Membership::default()).as_slice())?;
            for table in Table::ALL {
                transaction.open_table(rows(table))?;
            }
            Ok(())
        })?;
        Ok(store)
    }

    /// The store on any backend; `path` is for messages.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_on(backend: impl StorageBackend, path: &Path) -> Result<Self, StoreError> {
        let mut store = Self::on(backend, path)?;
        let version = store.meta(META_FORMAT)?.and_then(|bytes| Some(u32::from_le_bytes(bytes.try_into().ok()?)));
        match version {
            None => return Err(StoreError::ForeignFile { path: path.to_owned() }),
            Some(FORMAT) => {}
            Some(version) => return Err(StoreError::OtherFormat { path: path.to_owned(), version }),
        }
        store.applied = store.load_applied()?;
        Ok(store)
    }

    fn on(backend: impl StorageBackend, path: &Path) -> Result<Self, StoreError> {
        let shut = Arc::new(AtomicBool::new(false));
        let valve = Valve::new(backend, Arc::clone(&shut));
        // A page that was altered would otherwise be trusted, or panic.
        let database = Builder::new().set_check_integrity_on_open(true).create_with_backend(valve);
        let database = database.map_err(|source| opened(path, source))?;
        Ok(Self { path: path.to_owned(), database, shut, applied: 0, is_lazy: false })
    }

    /// Reads everything.
    ///
    /// # Errors
    /// When the file can't be read, or a row is damaged.
    pub fn load(&self) -> Result<Loaded, StoreError> {
        let mut loaded =
            Loaded { applied: self.load_applied()?, identity: self.meta(META_IDENTITY)?, ..Loaded::default() };
        let membership = self.meta(META_MEMBERSHIP)?.and_then(|bytes| postcard::from_bytes(&bytes).ok());
        loaded.membership = membership.ok_or_else(|| self.damaged_row(META_MEMBERSHIP))?;
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
                    loaded.rows.push((table, key.value().to_vec(), value.value().to_vec()));
                }
            }
            Ok(loaded)
        };
        read().map_err(|source| self.unread(source))
    }

    /// The last log entry that is in the rows.
    pub fn applied(&self) -> u64 {
        self.applied
    }

    /// Writes what the entries up to `applied` have changed, all of it or nothing; `membership` where they changed that.
    ///
    /// # Errors
    /// When the disk fails, the store must not be used any more. [`StoreError::AheadOfLog`] has written nothing.
    pub fn commit(
        &mut self,
        changes: &[Change],
        applied: u64,
        membership: Option<&Membership>,
        durability: Durability,
    ) -> Result<(), StoreError> {
        assert!(applied >= self.applied, "entries are applied in order: {applied} after {}", self.applied);
        if let Durability::Now(commit) = durability {
            Self::check_order(applied, commit)?;
        }
        self.write_as(durability != Durability::Lazy, |transaction| {
            let mut meta = transaction.open_table(META)?;
            meta.insert(META_APPLIED, applied.to_le_bytes().as_slice())?;
            if let Some(membership) = membership {
                meta.insert(META_MEMBERSHIP, encoded(membership).as_slice())?;
            }
            for group in changes.chunk_by(|one, other| one.table == other.table) {
                let mut table = transaction.open_table(rows(group[0].table))?;
                for Change { key, value, .. } in group {
                    match value {
                        Some(value) => table.insert(key.as_slice(), value.as_slice())?,
                        None => table.remove(key.as_slice())?,
                    };
                }
            }
            Ok(())
        })?;
        self.applied = applied;
        Ok(())
    }

    /// Keeps who this node is, and the servers where it begins with some, on disk when it returns; so is then everything
    /// committed before.
    ///
    /// # Errors
    /// As [`Self::commit`].
    pub fn set_identity(
        &mut self,
        identity: &[u8],
        membership: Option<&Membership>,
        commit: CommitOnDisk,
    ) -> Result<(), StoreError> {
        Self::check_order(self.applied, commit)?;
        self.write(|transaction| {
            let mut meta = transaction.open_table(META)?;
            meta.insert(META_IDENTITY, identity)?;
            if let Some(membership) = membership {
                meta.insert(META_MEMBERSHIP, encoded(membership).as_slice())?;
            }
            Ok(())
        })
    }

    fn check_order(applied: u64, commit: CommitOnDisk) -> Result<(), StoreError> {
        let commit = commit.index();
        if commit < applied { Err(StoreError::AheadOfLog { applied, commit }) } else { Ok(()) }
    }

    fn write(&mut self, write: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>) -> Result<(), StoreError> {
        self.write_as(true, write)
    }

    fn write_as(
        &mut self,
        durable: bool,
        write: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), StoreError> {
        // Until it is known better, closing the file must not make it durable.
        self.is_lazy = true;
        let attempt = || {
            let mut transaction = self.database.begin_write()?;
            transaction.set_durability(if durable { redb::Durability::Immediate } else { redb::Durability::None })?;
            write(&transaction)?;
            transaction.commit()?;
            Ok(())
        };
        attempt().map_err(|source: redb::Error| {
            let source = Box::new(source);
            StoreError::Write { path: self.path.clone(), source }
        })?;
        self.is_lazy = !durable;
        Ok(())
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

    fn load_applied(&self) -> Result<u64, StoreError> {
        let applied = self.meta(META_APPLIED)?.and_then(|bytes| Some(u64::from_le_bytes(bytes.try_into().ok()?)));
        applied.ok_or_else(|| self.damaged_row(META_APPLIED))
    }

    fn damaged_row(&self, row: &'static str) -> StoreError {
        StoreError::DamagedRow { path: self.path.clone(), row }
    }

    fn unread(&self, source: redb::Error) -> StoreError {
        let path = self.path.clone();
        match source {
            redb::Error::Corrupted(_) => StoreError::Damaged { path, source: Box::new(source) },
            redb::Error::TableTypeMismatch { .. } => StoreError::ForeignFile { path },
            _ => StoreError::Read { path, source: Box::new(source) },
        }
    }
}

impl Drop for Store {
    /// redb makes lazy commits durable when it closes; the log may not hold their commit index, so it must not.
    fn drop(&mut self) {
        if self.is_lazy {
            self.shut.store(true, Ordering::Release);
        }
    }
}

fn rows(table: Table) -> TableDefinition<'static, &'static [u8], &'static [u8]> {
    TableDefinition::new(table.name())
}

fn encoded(membership: &Membership) -> Vec<u8> {
    postcard::to_stdvec(membership).expect("sets of numbers always encode")
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
