//! Ticks → who is alive: the leader's memory of when it last heard each node, never in the log.

use std::collections::BTreeMap;

use crate::command::Command;
use crate::state::State;
use crate::types::NodeId;

/// What the leader has heard in its term, and when, in its own ticks.
#[derive(Debug, Default)]
pub struct Liveness {
    last_heard: BTreeMap<NodeId, u64>,
    /// Since when each node is listened to that was not heard yet.
    awaited: BTreeMap<NodeId, u64>,
    /// When this leader began to listen.
    since: u64,
}

impl Liveness {
    /// A new leader has heard nobody yet. Who answered the one before gets the whole time; who was silent stays so until it
    /// is heard.
    pub fn restart(&mut self, now_tick: u64) {
        *self = Self { since: now_tick, ..Self::default() };
    }

    pub fn heard(&mut self, node: NodeId, now_tick: u64) {
        self.last_heard.insert(node, now_tick);
        self.awaited.remove(&node);
    }

    /// Whether a node was heard in this term, and within this time.
    pub fn answers(&self, node: NodeId, now_tick: u64, timeout_ticks: u64) -> bool {
        self.last_heard.get(&node).is_some_and(|heard| now_tick.saturating_sub(*heard) < timeout_ticks)
    }

    /// Whether a node has been silent all this time, as far as this leader knows.
    pub fn is_silent_for(&self, node: NodeId, now_tick: u64, ticks: u64) -> bool {
        let heard = self.last_heard.get(&node).copied().unwrap_or(self.since);
        now_tick.saturating_sub(heard) >= ticks
    }

    /// The decisions that follow: who has been silent for longer than `timeout_ticks`, and who is back.
    pub fn decide(&mut self, state: &State, itself: NodeId, now_tick: u64, timeout_ticks: u64) -> Vec<Command> {
        self.heard(itself, now_tick);
        let mut decisions = Vec::new();
        for node in state.nodes().keys().copied() {
            let Some(was_alive) = state.worker_status(node).map(|status| status.alive) else { continue };
            let is_recent = |tick: u64| now_tick.saturating_sub(tick) < timeout_ticks;
            let alive = match self.last_heard.get(&node) {
                Some(heard) => is_recent(*heard),
                None => was_alive && is_recent(*self.awaited.entry(node).or_insert(now_tick)),
            };
            if alive != was_alive {
                decisions.push(Command::SetWorkerAlive { node, alive });
            }
        }
        decisions
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::tests::Fixture;

    const SILENT: u64 = 300;

    fn set(node: u64, alive: bool) -> Command {
        Command::SetWorkerAlive { node: NodeId(node), alive }
    }

    /// What node 1 decides as the leader.
    fn decided(liveness: &mut Liveness, fixture: &Fixture, tick: u64) -> Vec<Command> {
        liveness.decide(&fixture.state, NodeId(1), tick, SILENT)
    }

    #[test]
    fn who_falls_silent_is_given_up_on_and_who_is_heard_again_is_back() {
        let (mut fixture, mut liveness) = (Fixture::of_nodes(2), Liveness::default());
        liveness.heard(NodeId(2), 10);
        assert_eq!(decided(&mut liveness, &fixture, 309), []);
        assert_eq!(decided(&mut liveness, &fixture, 310), [set(2, false)]);
        fixture.decide(set(2, false));
        assert_eq!(decided(&mut liveness, &fixture, 400), []);
        liveness.heard(NodeId(2), 401);
        assert_eq!(decided(&mut liveness, &fixture, 402), [set(2, true)]);
    }

    #[test]
    fn a_new_leader_gives_the_whole_time_to_who_answered_the_one_before() {
        let (fixture, mut liveness) = (Fixture::of_nodes(2), Liveness::default());
        liveness.heard(NodeId(2), 10);
        liveness.restart(1000);
        assert_eq!(decided(&mut liveness, &fixture, 1000), []);
        assert_eq!(decided(&mut liveness, &fixture, 1299), []);
        assert_eq!(decided(&mut liveness, &fixture, 1300), [set(2, false)]);
    }

    #[test]
    fn a_silence_is_as_long_as_this_leader_has_heard_nothing() {
        let mut liveness = Liveness::default();
        liveness.restart(1000);
        let is_silent = |liveness: &Liveness, tick| liveness.is_silent_for(NodeId(2), tick, 500);
        assert!(!is_silent(&liveness, 1499) && is_silent(&liveness, 1500));
        liveness.heard(NodeId(2), 1600);
        assert!(!is_silent(&liveness, 2099) && is_silent(&liveness, 2100));
        liveness.restart(3000);
        assert!(!is_silent(&liveness, 3499), "a new leader counts anew");
    }

    #[test]
    fn a_new_leader_takes_nobody_for_alive_who_was_silent_before_it_is_heard() {
        let (mut fixture, mut liveness) = (Fixture::of_nodes(3), Liveness::default());
        fixture.decide(set(3, false));
        liveness.restart(1000);
        assert_eq!(decided(&mut liveness, &fixture, 1000), []);
        assert_eq!(decided(&mut liveness, &fixture, 1299), []);
        liveness.heard(NodeId(3), 1299);
        assert_eq!(decided(&mut liveness, &fixture, 1299), [set(3, true)]);
    }
}
