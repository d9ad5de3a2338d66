//! What lies on a host's disk, opened and checked: of a server its log and its store, of others the seat alone.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use blixard_core::driver::{Membership, Recovered};
use blixard_core::state::{Loading, State};

use super::AgentError;
use crate::log::{self, Log, Replay};
use crate::seat::{FOUNDER, Seat};
use crate::store::{Beside, Loaded, Store, StoreError};

/// Names in the data's directory.
pub const STORE: &str = "state.redb";
pub const LOG: &str = "log";
/// How long files that are about to be free are waited for, and how often that is looked at.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(20);

/// What a start finds.
pub struct Data {
    pub dir: PathBuf,
    pub store: Store,
    /// The seat, as it was kept.
    pub kept: Option<Vec<u8>>,
    /// Nothing on a host that is no server.
    pub replica: Option<Replica>,
}

/// A server's log and state; blank on a host that is about to join.
pub struct Replica {
    pub log: Log,
    pub recovered: Recovered,
    pub state: State,
}

impl Data {
    /// # Errors
    /// What can't be read is not gone on from.
    pub fn open(dir: PathBuf) -> Result<Self, AgentError> {
        let (path, log) = (dir.join(STORE), dir.join(LOG));
        let unfinished = || Store::remove_unfinished(&Beside::path_of(&path)).map_err(AgentError::OpenStore);
        // Before anything is touched: another agent may have it open. Who is no server has a store, and its lock, alone.
        let locked = (log.exists() || !path.exists()).then(|| log::Directory::open(&log)).transpose();
        let locked = locked.map_err(AgentError::OpenLog)?;
        if locked.is_some() {
            // It may be what has filled the disk, and the log wants room to open.
            unfinished()?;
        }
        let store = Store::open(&path).map_err(AgentError::OpenStore)?;
        if locked.is_none() {
            unfinished()?;
        }
        let kept = store.as_ref().map(Store::identity).transpose().map_err(AgentError::OpenStore)?.flatten();
        let is_server = kept.as_deref().and_then(Seat::of).is_none_or(|seat| seat.raft.is_some());
        match store {
            Some(store) if !is_server => Self::without_replica(dir, store, kept, locked),
            store => {
                let locked = locked.map_or_else(|| log::Directory::open(&log), Ok).map_err(AgentError::OpenLog)?;
                Self::with_replica(dir, &path, store, locked)
            }
        }
    }

    /// A host that is no server (any more) has nothing but its seat.
    fn without_replica(
        dir: PathBuf,
        mut store: Store,
        kept: Option<Vec<u8>>,
        log: Option<log::Directory>,
    ) -> Result<Self, AgentError> {
        if let Some(kept) = kept.as_ref().filter(|_| !store.is_blank()) {
            store = store.begin_anew(kept).map_err(AgentError::OpenStore)?;
        }
        log.map_or(Ok(()), log::Directory::remove).map_err(AgentError::OpenLog)?;
        Ok(Self { dir, store, kept, replica: None })
    }

    fn with_replica(
        dir: PathBuf,
        path: &Path,
        store: Option<Store>,
        locked: log::Directory,
    ) -> Result<Self, AgentError> {
        let read = |store: Store| {
            let loaded = store.load::<Loading>()?;
            Ok((store, loaded))
        };
        // Where there is much, each takes its time.
        let (opened, stored) = std::thread::scope(|scope| {
            let opened = scope.spawn(|| Log::open_on(locked, log::SEGMENT_BYTES));
            let stored = store.map(read).transpose();
            (opened.join().expect("it doesn't panic"), stored)
        });
        let (mut log, mut replay) = opened.map_err(AgentError::OpenLog)?;
        let (store, loaded) = match stored.map_err(AgentError::OpenStore)? {
            Some(stored) => stored,
            // A new one would make another host of this: one that could found a cluster on the log of its old one.
            None if replay != Replay::default() => return Err(AgentError::StoreMissing { path: path.to_owned() }),
            None => Store::create(path).and_then(read).map_err(AgentError::OpenStore)?,
        };
        let Loaded { rows, checkpoint, installed, identity } = loaded;
        let state = rows.finish().map_err(|source| AgentError::Load { path: path.to_owned(), source })?;
        if installed {
            log.catch_up(&mut replay, checkpoint.position).map_err(AgentError::OpenLog)?;
        }
        // A blank store has none.
        let membership = Some(checkpoint.membership).filter(|servers| !servers.voters.is_empty());
        let recovered = Recovered {
            base: replay.base,
            entries: replay.entries,
            hard_state: replay.hard_state,
            membership: membership.unwrap_or_else(|| Membership::founded_by(FOUNDER)),
            applied: checkpoint.position.index,
        };
        Ok(Self { dir, store, kept: identity, replica: Some(Replica { log, recovered, state }) })
    }

    /// A blank host that joins is no server before it is said to be one.
    ///
    /// # Errors
    /// When the log can't be removed.
    pub fn give_up_replica(&mut self) -> Result<(), AgentError> {
        if self.replica.take().is_some() {
            let log = log::Directory::open(&self.dir.join(LOG));
            log.and_then(log::Directory::remove).map_err(AgentError::OpenLog)?;
        }
        Ok(())
    }

    /// What a host begins with that has another role than before: its seat and nothing else.
    ///
    /// # Errors
    /// When the disk fails, or what had the files before has them for too long.
    pub async fn begin_anew(dir: PathBuf, seat: &[u8]) -> Result<Self, AgentError> {
        let path = dir.join(STORE);
        let since = Instant::now();
        // A thread that reads for a follower may end a little later than the loop.
        let store = loop {
            match Store::open(&path) {
                Err(StoreError::Locked { .. }) if since.elapsed() < PATIENCE => tokio::time::sleep(LOOK).await,
                store => break store.map_err(AgentError::OpenStore)?,
            }
        };
        let store = store.ok_or(AgentError::StoreMissing { path })?;
        drop(store.begin_anew(seat).map_err(AgentError::OpenStore)?);
        Self::open(dir)
    }
}

/// Makes a small file of this name in the data's directory, or makes it anew: after a crash it is as it was, or whole.
///
/// # Errors
/// When the disk fails.
pub fn write_whole(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let (path, unfinished) = (dir.join(name), dir.join(format!("{name}.unfinished")));
    let mut file = File::create(&unfinished)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&unfinished, &path)?;
    File::open(dir)?.sync_all()
}
