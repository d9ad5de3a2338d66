//! What a server has on its disks, and what of it a crash takes.

use std::collections::BTreeMap;

use blixard_core::driver::{Checkpoint, LogStore, Position};
use raft::eraftpb::{Entry, HardState};

/// A write that didn't succeed.
#[derive(Debug, PartialEq, Eq)]
pub struct Failed;

/// The log: entries behind a base, and the hard state.
#[derive(Clone, Default, Debug)]
pub struct Image {
    pub base: Position,
    pub entries: Vec<Entry>,
    pub hard_state: HardState,
}

impl Image {
    pub fn last(&self) -> u64 {
        self.entries.last().map_or(self.base.index, |entry| entry.index)
    }

    pub fn term_at(&self, index: u64) -> Option<u64> {
        let behind = index.checked_sub(self.base.index)?;
        match usize::try_from(behind).unwrap() {
            0 => Some(self.base.term),
            place => self.entries.get(place - 1).map(|entry| entry.term),
        }
    }

    /// Forgets what is before `index`.
    pub fn release_before(&mut self, index: u64) {
        let gone = self.entries.iter().take_while(|entry| entry.index < index).count();
        if let Some(last) = self.entries.drain(..gone).next_back() {
            self.base = Position::of(&last);
        }
    }

    fn restart(&mut self, base: Position, hard_state: &HardState) {
        *self = Self { base, entries: Vec::new(), hard_state: hard_state.clone() };
    }

    fn write(&mut self, entries: &[Entry], hard_state: Option<&HardState>) {
        if let Some(first) = entries.first() {
            self.entries.retain(|entry| entry.index < first.index);
            self.entries.extend_from_slice(entries);
        }
        if let Some(hard_state) = hard_state {
            self.hard_state = hard_state.clone();
        }
    }
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

    fn spend(&mut self) -> Result<(), Failed> {
        match &mut self.writes_left {
            Some(0) => Err(Failed),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
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
        self.spend()?;
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
        self.spend()?;
        if self.flaw != Flaw::ForgetsRestarts {
            self.live.restart(base, hard_state);
        }
        self.sync();
        Ok(())
    }
}

/// Commands as they were applied: what the servers have to agree on.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct State {
    pub applied: BTreeMap<u64, Vec<u8>>,
}

/// The store's disk: only checkpoints, each durable at once.
#[derive(Clone, Default, Debug)]
pub struct StoreDisk {
    pub checkpoint: Checkpoint,
    pub state: State,
    /// It came by a snapshot, and the log may not have begun anew yet.
    pub installed: bool,
}
