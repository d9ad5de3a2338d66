//! Reads that wait for a quorum to confirm who leads, and for the state to be as far; heartbeats are such reads.
//!
//! ```text
//!   barrier ──────────────────▶ unasked ── one read index at a time ──▶ asked ── confirmed at an index ──▶ unserved
//!   heartbeats ── every 20 ms ─────┘                                        unserved ── applied ──▶ served
//! ```

use std::collections::BTreeMap;
use std::time::Instant;

use blixard_core::driver::ReadId;

use super::{Attempt, Waiting};
use crate::transport::{Denials, Heartbeat};

/// Heartbeats wait until a multiple of so many ticks: each round costs a leader what ten hosts do. It is in the time until
/// a lost host's instances start elsewhere.
const HEARTBEAT_TICKS: u64 = 2;
/// Ticks after which a read index that isn't confirmed is asked for again.
const LOST_TICKS: u64 = 20;

/// Who waits for what was asked before it to be applied here.
pub(super) enum Read {
    Barrier(Waiting<()>),
    Heartbeats(Heartbeats),
}

/// Nodes are there, and have their leases renewed, which only a leader does that a quorum has confirmed since.
pub(super) struct Heartbeats {
    pub heartbeats: Vec<Heartbeat>,
    pub waiting: Waiting<Denials>,
}

impl Read {
    fn deadline(&self) -> Instant {
        match self {
            Self::Barrier(waiting) => waiting.deadline,
            Self::Heartbeats(heartbeats) => heartbeats.waiting.deadline,
        }
    }

    fn fail(self, attempt: Attempt) {
        match self {
            Self::Barrier(waiting) => waiting.fail(attempt),
            Self::Heartbeats(heartbeats) => heartbeats.waiting.fail(attempt),
        }
    }
}

/// All that wait.
#[derive(Default)]
pub(super) struct Reads {
    /// Their index isn't known yet; and when it was asked for, in ticks.
    asked: Option<(ReadId, u64, Vec<Read>)>,
    /// They came while one was under way: that one may be too old for them.
    unasked: Vec<Read>,
    /// They wait for an index to be applied.
    unserved: BTreeMap<u64, Vec<Read>>,
    /// They wait for others, so that one round serves many.
    heartbeats: Vec<Read>,
}

impl Reads {
    pub fn barrier(&mut self, waiting: Waiting<()>) {
        self.unasked.push(Read::Barrier(waiting));
    }

    pub fn heartbeats(&mut self, heartbeats: Heartbeats) {
        self.heartbeats.push(Read::Heartbeats(heartbeats));
    }

    pub fn tick(&mut self, now_tick: u64) {
        if now_tick.is_multiple_of(HEARTBEAT_TICKS) {
            self.unasked.append(&mut self.heartbeats);
        }
    }

    /// Asks for a read index for all that wait for one, unless one is under way.
    pub fn ask<E>(&mut self, now_tick: u64, read_index: impl FnOnce() -> Result<ReadId, E>) {
        if let Some((_, asked_at, _)) = &self.asked {
            // It may have got lost on its way.
            if now_tick.saturating_sub(*asked_at) < LOST_TICKS {
                return;
            }
            let (_, _, waiting) = self.asked.take().expect("it was there just now");
            self.unasked.extend(waiting);
        }
        if self.unasked.is_empty() {
            return;
        }
        if let Ok(read) = read_index() {
            self.asked = Some((read, now_tick, std::mem::take(&mut self.unasked)));
        }
    }

    /// A quorum has confirmed this read at this index.
    pub fn confirmed(&mut self, read: ReadId, index: u64) {
        if let Some((_, _, waiting)) = self.asked.take_if(|(asked, ..)| *asked == read) {
            self.unserved.entry(index).or_default().extend(waiting);
        }
    }

    /// Those for which enough is applied.
    pub fn served(&mut self, applied: u64) -> impl Iterator<Item = Read> {
        let later = self.unserved.split_off(&(applied + 1));
        std::mem::replace(&mut self.unserved, later).into_values().flatten()
    }

    /// Those that wait for too long hear so.
    pub fn expire(&mut self, now: Instant) {
        let asked = self.asked.as_mut().map(|(_, _, waiting)| waiting);
        let queues = self.unserved.values_mut().chain(asked).chain([&mut self.unasked, &mut self.heartbeats]);
        for queue in queues {
            queue.extract_if(.., |read| read.deadline() <= now).for_each(|read| read.fail(Attempt::Unknown));
        }
        self.unserved.retain(|_, queue| !queue.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use blixard_core::types::NodeId;
    use tokio::sync::oneshot;

    use super::*;

    fn heartbeats(node: u64) -> Heartbeats {
        let waiting = Waiting { deadline: Instant::now(), answer: oneshot::channel().0 };
        Heartbeats { heartbeats: vec![Heartbeat { node: NodeId(node), epoch: None }], waiting }
    }

    /// Whose heartbeats are served when all is applied.
    fn served(reads: &mut Reads) -> Vec<u64> {
        let node = |read| match read {
            Read::Heartbeats(heartbeats) => heartbeats.heartbeats[0].node.0,
            Read::Barrier(_) => 0,
        };
        reads.served(u64::MAX - 1).map(node).collect()
    }

    /// The round that begins now, if one does.
    fn ask(reads: &mut Reads, tick: u64, driver: &mut u64) -> Option<ReadId> {
        let before = *driver;
        let read_index = || {
            *driver += 1;
            Ok::<_, ()>(ReadId(*driver))
        };
        reads.ask(tick, read_index);
        (*driver > before).then_some(ReadId(*driver))
    }

    #[test]
    fn heartbeats_are_served_by_a_round_that_began_after_they_came_and_by_no_earlier_one() {
        let (mut reads, mut driver) = (Reads::default(), 0);
        reads.heartbeats(heartbeats(1));
        reads.tick(1);
        assert!(ask(&mut reads, 1, &mut driver).is_none(), "they wait for others");
        reads.tick(2);
        let first = ask(&mut reads, 1, &mut driver).expect("a round");
        reads.heartbeats(heartbeats(2));
        reads.tick(2);
        assert!(ask(&mut reads, 2, &mut driver).is_none(), "one round at a time");
        reads.confirmed(first, 9);
        assert_eq!(served(&mut reads), [1]);
        let second = ask(&mut reads, 3, &mut driver).expect("another round");
        reads.confirmed(first, 9);
        assert!(served(&mut reads).is_empty(), "what confirms the first round says nothing of the second");
        reads.confirmed(second, 9);
        assert_eq!(served(&mut reads), [2]);
    }

    #[test]
    fn a_round_that_got_lost_is_begun_anew_for_all_that_wait() {
        let (mut reads, mut driver) = (Reads::default(), 0);
        reads.heartbeats(heartbeats(1));
        reads.tick(2);
        let lost = ask(&mut reads, 0, &mut driver).expect("a round");
        assert!(ask(&mut reads, LOST_TICKS - 1, &mut driver).is_none());
        let next = ask(&mut reads, LOST_TICKS, &mut driver).expect("another round");
        reads.confirmed(lost, 9);
        assert!(served(&mut reads).is_empty());
        reads.confirmed(next, 9);
        assert_eq!(served(&mut reads), [1]);
    }
}
