//! Ticks → who is alive: the leader's memory of when it last heard each node, never in the log.

use std::collections::BTreeMap;

use crate::command::Command;
use crate::state::State;
use crate::types::NodeId;

/// What the leader has heard, and when, in its own ticks.
#[derive(Debug, Default)]
pub struct Liveness {
    last_heard: BTreeMap<NodeId, u64>,
}

impl Liveness {
    /// A new leader has heard nobody yet, and gives everybody the whole time.
    pub fn restart(&mut self, state: &State, now_tick: u64) {
        self.last_heard = state.nodes().keys().map(|node| (*node, now_tick)).collect();
    }

    pub fn heard(&mut self, node: NodeId, now_tick: u64) {
        self.last_heard.insert(node, now_tick);
    }

    /// The decisions that follow: who has been silent for longer than `timeout_ticks`, and who is back.
    pub fn decide(&mut self, state: &State, itself: NodeId, now_tick: u64, timeout_ticks: u64) -> Vec<Command> {
        self.last_heard.insert(itself, now_tick);
        let mut decisions = Vec::new();
        for node in state.nodes().keys().copied() {
            let heard = *self.last_heard.entry(node).or_insert(now_tick);
            let alive = now_tick.saturating_sub(heard) < timeout_ticks;
            if state.worker_status(node).is_some_and(|status| status.alive != alive) {
                decisions.push(Command::SetWorkerAlive { node, alive });
            }
        }
        decisions
    }
}
