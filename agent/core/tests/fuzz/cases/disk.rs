//! What the server has on its disks: a log that does what it is told, and the last checkpoint.

use std::convert::Infallible;

use blixard_core::driver::{Checkpoint, LogStore, Membership, Position, Recovered};
use raft::eraftpb::{Entry, HardState};

#[derive(Clone, Default)]
pub struct Disk {
    pub base: Position,
    pub entries: Vec<Entry>,
    pub hard_state: HardState,
    pub checkpoint: Checkpoint,
}

impl Disk {
    /// Of a server of these, in term 5: of entries 1 to 12 the first five are gone, and seven committed.
    pub fn of(membership: Membership) -> Self {
        let terms = [(6, 3), (7, 4), (8, 4), (9, 5), (10, 5), (11, 5), (12, 5)];
        let entries = terms.map(|(index, term)| Entry { index, term, data: vec![1; 20], ..Entry::default() });
        let base = Position { index: 5, term: 3 };
        let hard_state = HardState { term: 5, vote: 0, commit: 7 };
        Self { base, entries: entries.into(), hard_state, checkpoint: Checkpoint { position: base, membership } }
    }

    /// Of a server that knows nothing yet.
    pub fn blank(membership: Membership) -> Self {
        Self { checkpoint: Checkpoint { membership, ..Checkpoint::default() }, ..Self::default() }
    }

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

    /// What the server starts from.
    pub fn recovered(&mut self) -> Recovered {
        let at = self.checkpoint.position;
        if self.term_at(at.index) != Some(at.term) || self.hard_state.commit < at.index {
            // As the agent does it: the end came between the store and the log.
            let HardState { term, vote, .. } = self.hard_state;
            let vote = if term < at.term { 0 } else { vote };
            let hard_state = HardState { term: term.max(at.term), vote, commit: at.index };
            (self.base, self.entries, self.hard_state) = (at, Vec::new(), hard_state);
        }
        Recovered {
            base: self.base,
            entries: self.entries.clone(),
            hard_state: self.hard_state.clone(),
            membership: self.checkpoint.membership.clone(),
            applied: at.index,
        }
    }
}

impl LogStore for Disk {
    type Error = Infallible;

    fn write(&mut self, entries: &[Entry], hard_state: Option<&HardState>) -> Result<(), Infallible> {
        if let Some(first) = entries.first() {
            assert!(first.index > self.base.index && first.index <= self.last() + 1, "{} leaves a gap", first.index);
            self.entries.retain(|entry| entry.index < first.index);
            self.entries.extend_from_slice(entries);
        }
        self.hard_state = hard_state.unwrap_or(&self.hard_state).clone();
        Ok(())
    }

    fn restart(&mut self, base: Position, hard_state: &HardState) -> Result<(), Infallible> {
        (self.base, self.entries, self.hard_state) = (base, Vec::new(), hard_state.clone());
        Ok(())
    }
}
