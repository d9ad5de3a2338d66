//! A log as it lies on a disk, and does what it is told.

use blixard_core::driver::Position;
use raft::eraftpb::{Entry, HardState};

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
        match usize::try_from(behind).ok()? {
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

    pub fn restart(&mut self, base: Position, hard_state: &HardState) {
        *self = Self { base, entries: Vec::new(), hard_state: hard_state.clone() };
    }

    pub fn write(&mut self, entries: &[Entry], hard_state: Option<&HardState>) {
        if let Some(first) = entries.first() {
            self.entries.retain(|entry| entry.index < first.index);
            self.entries.extend_from_slice(entries);
        }
        if let Some(hard_state) = hard_state {
            self.hard_state = hard_state.clone();
        }
    }
}
