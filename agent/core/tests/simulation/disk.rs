//! What a server has on its disks, and what of it a crash takes.

use std::collections::BTreeMap;

use blixard_core::driver::{Checkpoint, LogStore, Position};
use blixard_core::state;
use raft::eraftpb::{Entry, HardState};

use super::image::Image;

/// A write that didn't succeed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Failed {
    Log,
    Checkpoint,
    Install,
    /// No write: a leader said that the log lost what it held.
    LostLog,
}

/// What a disk does wrong on purpose.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Flaw {
    #[default]
    None,
    /// It says that it has synced, and hasn't.
    ForgetsSyncs,
    /// It keeps entries, and no hard state.
    ForgetsVotes,
    /// A log that is to begin anew doesn't.
    ForgetsRestarts,
}

/// One write less, of those that still succeed.
fn spend(writes_left: &mut Option<u32>, write: Failed) -> Result<(), Failed> {
    match writes_left {
        Some(0) => Err(write),
        Some(left) => {
            *left -= 1;
            Ok(())
        }
        None => Ok(()),
    }
}

/// The log's disk.
#[derive(Default)]
pub struct LogDisk {
    pub flaw: Flaw,
    /// What the system shows.
    pub live: Image,
    /// What a crash leaves.
    pub durable: Image,
    /// Writes that still succeed, where the disk is about to fail.
    pub writes_left: Option<u32>,
}

impl LogDisk {
    pub fn crash(&mut self) {
        self.live = self.durable.clone();
        self.writes_left = None;
    }

    pub fn sync(&mut self) {
        if self.flaw != Flaw::ForgetsSyncs {
            self.durable = self.live.clone();
        }
    }
}

impl LogStore for LogDisk {
    type Error = Failed;

    fn write(&mut self, entries: &[Entry], hard_state: Option<&HardState>) -> Result<(), Failed> {
        spend(&mut self.writes_left, Failed::Log)?;
        let mut hard_state = hard_state.cloned();
        if self.flaw == Flaw::ForgetsVotes {
            // Term and commit have to be there, or it couldn't start again.
            hard_state = hard_state.map(|state| HardState { vote: 0, ..state });
        }
        self.live.write(entries, hard_state.as_ref());
        self.sync();
        Ok(())
    }

    fn restart(&mut self, base: Position, hard_state: &HardState) -> Result<(), Failed> {
        spend(&mut self.writes_left, Failed::Log)?;
        if self.flaw != Flaw::ForgetsRestarts {
            self.live.restart(base, hard_state);
        }
        self.sync();
        Ok(())
    }
}

/// What the servers have to agree on.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct State {
    /// Commands as they were applied.
    pub applied: BTreeMap<u64, Vec<u8>>,
    /// What those of them have made that are about members.
    pub cluster: state::State,
}

/// The store's disk: only checkpoints, each durable at once.
#[derive(Clone, Default, Debug)]
pub struct StoreDisk {
    pub checkpoint: Checkpoint,
    pub state: State,
    /// A snapshot has overtaken it: nothing can be read from it before the next checkpoint, and the log may not have begun
    /// anew yet.
    pub installed: bool,
    /// Writes that still succeed, where the disk is about to fail; of one that fails, nothing is kept.
    pub writes_left: Option<u32>,
    /// Where it forgets snapshots, what a crash brings back.
    before: Option<Box<Self>>,
}

impl StoreDisk {
    /// What it holds, on a disk that doesn't fail.
    pub fn image(&self) -> Self {
        Self { writes_left: None, ..self.clone() }
    }

    /// Nothing but what the group began with.
    pub fn founded(cluster: &state::State) -> Self {
        let state = State { applied: BTreeMap::new(), cluster: cluster.clone() };
        Self { state, ..Self::default() }
    }

    pub fn checkpoint(&mut self, checkpoint: Checkpoint, state: State) -> Result<(), Failed> {
        spend(&mut self.writes_left, Failed::Checkpoint)?;
        *self = Self { checkpoint, state, installed: false, writes_left: self.writes_left, before: None };
        Ok(())
    }

    /// A snapshot overtakes it, durable at once unless the disk `forgets` it.
    pub fn install(&mut self, checkpoint: Checkpoint, state: State, forgets: bool) -> Result<(), Failed> {
        spend(&mut self.writes_left, Failed::Install)?;
        let (writes_left, before) = (self.writes_left, std::mem::take(self));
        *self = Self { checkpoint, state, installed: true, writes_left, before: forgets.then(|| Box::new(before)) };
        Ok(())
    }

    pub fn crash(&mut self) {
        while let Some(before) = self.before.take() {
            *self = *before;
        }
        self.writes_left = None;
    }
}

/// What a log is told later than it was promised.
pub enum Late {
    Write(Vec<Entry>, Option<HardState>),
    Restart(Position, HardState),
}

/// Takes writes for done, and lets the log hear of them later.
pub struct Promise<'a>(pub &'a mut Vec<Late>);

impl LogStore for Promise<'_> {
    type Error = Failed;
    fn write(&mut self, entries: &[Entry], hard_state: Option<&HardState>) -> Result<(), Failed> {
        self.0.push(Late::Write(entries.to_vec(), hard_state.cloned()));
        Ok(())
    }
    fn restart(&mut self, base: Position, hard_state: &HardState) -> Result<(), Failed> {
        self.0.push(Late::Restart(base, hard_state.clone()));
        Ok(())
    }
}
