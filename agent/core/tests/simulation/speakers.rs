//! Which process speaks for each server, as the members' transport tells two apart that run from one disk.

use std::collections::{BTreeMap, BTreeSet};

use blixard_core::types::RaftId;

use super::world::Time;

/// What there is to do with a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    Taken,
    /// It may be what a process said that is gone.
    Dropped,
    /// Who sent it lives beside its successor, and is told so.
    Refused,
}

/// As one process has heard them since it started.
#[derive(Default)]
pub struct Speakers(BTreeMap<RaftId, Speaker>);

struct Speaker {
    boot: u64,
    since: Time,
    superseded: BTreeSet<u64>,
}

impl Speakers {
    /// What was sent after another process came was sent by one that lives since.
    pub fn judge(&mut self, id: RaftId, boot: u64, sent: Time, now: Time) -> Verdict {
        let fresh = || Speaker { boot, since: now, superseded: BTreeSet::new() };
        let speaker = self.0.entry(id).or_insert_with(fresh);
        if speaker.boot == boot {
            Verdict::Taken
        } else if sent <= speaker.since {
            Verdict::Dropped
        } else if speaker.superseded.contains(&boot) {
            Verdict::Refused
        } else {
            speaker.superseded.insert(speaker.boot);
            (speaker.boot, speaker.since) = (boot, now);
            Verdict::Taken
        }
    }
}
