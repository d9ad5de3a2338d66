//! An agent's own data: its log, its store, and the state that the store holds.

use std::path::PathBuf;

use blixard_core::driver::{Membership, Recovered};
use blixard_core::state::{Loading, State};

use super::AgentError;
use crate::log::{self, Log, Replay};
use crate::seat::FOUNDER;
use crate::store::{Beside, Loaded, Store};

/// Names in the data's directory.
pub const STORE: &str = "state.redb";
pub const LOG: &str = "log";

/// What lies on disk, opened and checked.
pub struct Data {
    pub dir: PathBuf,
    pub log: Log,
    pub recovered: Recovered,
    pub store: Store,
    pub state: State,
    /// The seat, as it was kept.
    pub kept: Option<Vec<u8>>,
}

impl Data {
    /// Makes what a blank host lacks; nobody else has it open meanwhile.
    ///
    /// # Errors
    /// When it isn't all there and whole.
    pub fn open(dir: PathBuf) -> Result<Self, AgentError> {
        let path = dir.join(STORE);
        let locked = log::Directory::open(&dir.join(LOG)).map_err(AgentError::OpenLog)?;
        // It may be what has filled the disk, and the log wants room to open.
        Store::remove_unfinished(&Beside::path_of(&path)).map_err(AgentError::OpenStore)?;
        let read = |store: Store| {
            let loaded = store.load::<Loading>()?;
            Ok((store, loaded))
        };
        // Where there is much, each takes its time.
        let (opened, stored) = std::thread::scope(|scope| {
            let opened = scope.spawn(|| Log::open_on(locked, log::SEGMENT_BYTES));
            let stored = Store::open(&path).and_then(|store| store.map(read).transpose());
            (opened.join().expect("it doesn't panic"), stored)
        });
        let (mut log, mut replay) = opened.map_err(AgentError::OpenLog)?;
        let (store, loaded) = match stored.map_err(AgentError::OpenStore)? {
            Some(stored) => stored,
            // A new one would make another host of this: one that could found a cluster on the log of its old one.
            None if replay != Replay::default() => return Err(AgentError::StoreMissing { path }),
            None => Store::create(&path).and_then(read).map_err(AgentError::OpenStore)?,
        };
        let Loaded { rows, checkpoint, installed, identity } = loaded;
        let state = rows.finish().map_err(|source| AgentError::Load { path: path.clone(), source })?;
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
        Ok(Self { dir, log, recovered, store, state, kept: identity })
    }
}
