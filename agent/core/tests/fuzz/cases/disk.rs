//! What the server has on its disks: a log that does what it is told, and the last checkpoint.

use std::convert::Infallible;

use blixard_core::driver::{Checkpoint, LogStore, Membership, Position, Recovered, behind_snapshot};
use raft::eraftpb::{Entry, HardState};

#[path = "../../support/image.rs"]
mod image;

use image::Image;

#[derive(Clone, Default)]
pub struct Disk {
    pub log: Image,
    pub checkpoint: Checkpoint,
    /// A snapshot has overtaken the store: nothing can be read from it before the next checkpoint.
    pub installed: bool,
}

impl Disk {
    /// Of a server of these, in term 5: of entries 1 to 12 the first five are gone, and seven committed.
    pub fn of(membership: Membership) -> Self {
        let terms = [(6, 3), (7, 4), (8, 4), (9, 5), (10, 5), (11, 5), (12, 5)];
        let entries = terms.map(|(index, term)| Entry { index, term, data: vec![1; 20], ..Entry::default() });
        let base = Position { index: 5, term: 3 };
        let hard_state = HardState { term: 5, vote: 0, commit: 7 };
        let log = Image { base, entries: entries.into(), hard_state };
        Self { log, checkpoint: Checkpoint { position: base, membership }, installed: false }
    }

    /// Of a server that knows nothing yet.
    pub fn blank(membership: Membership) -> Self {
        Self { checkpoint: Checkpoint { membership, ..Checkpoint::default() }, ..Self::default() }
    }

    /// What the server starts from.
    pub fn recovered(&mut self) -> Recovered {
        let at = self.checkpoint.position;
        let behind = behind_snapshot(at, self.log.term_at(at.index), &self.log.hard_state);
        if let Some(hard_state) = behind.filter(|_| self.installed) {
            self.log.restart(at, &hard_state);
        }
        let Image { base, entries, hard_state } = self.log.clone();
        Recovered { base, entries, hard_state, membership: self.checkpoint.membership.clone(), applied: at.index }
    }
}

impl LogStore for Disk {
    type Error = Infallible;

    fn write(&mut self, entries: &[Entry], hard_state: Option<&HardState>) -> Result<(), Infallible> {
        if let Some(first) = entries.first() {
            let fits = first.index > self.log.base.index && first.index <= self.log.last() + 1;
            assert!(fits, "{} leaves a gap", first.index);
        }
        self.log.write(entries, hard_state);
        Ok(())
    }

    fn restart(&mut self, base: Position, hard_state: &HardState) -> Result<(), Infallible> {
        self.log.restart(base, hard_state);
        Ok(())
    }
}
