//! What wakes the loop: what comes in, and raft's clock. Neither keeps the other waiting, however much comes.

use std::time::SystemTime;

use blixard_core::types::Timestamp;
use tokio::sync::mpsc::Receiver;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use super::TICK;

/// Raft's clock, as the loop sees it.
pub(super) struct Pulse {
    ticks: Interval,
    last: Instant,
    /// Most ticks that a pause makes up for.
    most: u32,
}

impl Pulse {
    pub fn start(most: u16) -> Self {
        let mut ticks = tokio::time::interval_at(Instant::now() + TICK, TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        Self { ticks, last: Instant::now(), most: most.into() }
    }

    /// What came in, if anything, and how many ticks are due after it.
    pub async fn next<T>(&mut self, inputs: &mut Receiver<T>) -> (Option<T>, u32) {
        tokio::select! {
            biased;
            // It doesn't end: the loop has a sender, too.
            Some(input) = inputs.recv() => (Some(input), self.due().await),
            now = self.ticks.tick() => (None, self.ticks_until(now)),
        }
    }

    async fn due(&mut self) -> u32 {
        // Looking at the clock is cheaper than asking the timer, which is no use before.
        if self.last.elapsed() < TICK {
            return 0;
        }
        tokio::select! {
            biased;
            now = self.ticks.tick() => self.ticks_until(now),
            () = std::future::ready(()) => 0,
        }
    }

    fn ticks_until(&mut self, now: Instant) -> u32 {
        let passed = now.saturating_duration_since(std::mem::replace(&mut self.last, now));
        u32::try_from(passed.as_millis() / TICK.as_millis()).unwrap_or(u32::MAX).clamp(1, self.most)
    }
}

/// The wall clock, as a leader stamps it into an entry.
pub fn now() -> Timestamp {
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::mpsc::channel;

    use super::*;

    /// Only a clock that stands still takes that long.
    const MAX_WAIT: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn time_goes_on_while_something_always_comes_in() {
        let (sender, mut inputs) = channel(4);
        let (mut pulse, begun) = (Pulse::start(6), Instant::now());
        let mut ticks = 0;
        while ticks < 3 {
            sender.try_send(()).unwrap();
            let (input, due) = pulse.next(&mut inputs).await;
            assert_eq!(input, Some(()), "what came in is heard first");
            ticks += due;
            assert!(begun.elapsed() < MAX_WAIT, "{ticks} ticks");
        }
    }

    #[tokio::test]
    async fn a_clock_ticks_where_nothing_comes_in() {
        let (_sender, mut inputs) = channel::<()>(1);
        let (mut pulse, begun) = (Pulse::start(6), Instant::now());
        let (input, ticks) = pulse.next(&mut inputs).await;
        assert!(input.is_none() && ticks > 0 && begun.elapsed() >= TICK, "{ticks} ticks");
    }

    #[tokio::test]
    async fn a_pause_is_made_up_for_by_so_many_ticks_at_most() {
        let (mut pulse, begun) = (Pulse::start(6), Instant::now());
        pulse.last = begun;
        assert_eq!(pulse.ticks_until(begun + TICK), 1);
        assert_eq!(pulse.ticks_until(begun + 4 * TICK), 3);
        assert_eq!(pulse.ticks_until(begun + 1000 * TICK), 6);
        assert_eq!(pulse.ticks_until(begun + 1001 * TICK), 1);
    }
}
