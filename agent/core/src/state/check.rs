//! Whether the servers' states are equal: every server hashes its own at the same entry and says what it found.
//!
//! Entries are carried out by each server for itself, so a fault of one's disk or memory, or a command that isn't
//! carried out alike, would go unseen: raft compares logs, and not what was made of them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::nodes::not_a_member;
use super::{Refusal, State, refuse};
use crate::ANEW;
use crate::command::Reply;
use crate::types::{Hash, NodeId};

/// One comparison.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Check {
    /// The entry after which the states are compared: the one that asked for it.
    pub at: u64,
    /// What each server found, as far as it has said so.
    pub hashes: BTreeMap<NodeId, Hash>,
    /// Those whose state wasn't the majority's, in this comparison or an earlier one.
    pub diverged: BTreeMap<NodeId, Diverged>,
}

/// A server whose state isn't what it must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error, Serialize, Deserialize)]
#[error(
    "after log entry {at} the state of this server was {own}, and that of {others} other server(s) {other}: they were \
     made by the same log, so a disk, a memory or the agent has a fault; keep a copy of the data directory for the \
     report; {anew}",
    anew = ANEW,
    own = .own.short(),
    other = .other.short()
)]
pub struct Diverged {
    pub at: u64,
    pub own: Hash,
    pub other: Hash,
    /// How many servers have the other.
    pub others: usize,
}

impl Check {
    /// How many servers have the state that most have; 0 while none has said so.
    pub fn equal(&self) -> usize {
        self.counts().into_values().max().unwrap_or(0)
    }

    fn counts(&self) -> BTreeMap<Hash, usize> {
        let mut counts = BTreeMap::new();
        self.hashes.values().for_each(|hash| *counts.entry(*hash).or_default() += 1);
        counts
    }

    /// What `node` differs from, if from the state that most others have.
    fn difference(&self, node: NodeId) -> Option<Diverged> {
        let own = *self.hashes.get(&node)?;
        let others = self.counts().into_iter().filter(|(hash, _)| *hash != own);
        let (other, others) = others.max_by_key(|(_, count)| *count)?;
        Some(Diverged { at: self.at, own, other, others })
    }
}

impl State {
    pub fn check(&self) -> Option<&Check> {
        self.check.as_ref()
    }

    /// Whether `node` has to stop, by what all have said so far.
    ///
    /// The majority of the servers is right. Where the states differ and there is none, nobody knows who is right, and so
    /// nobody goes on, once all that answer have said theirs.
    pub fn divergence(&self, node: NodeId) -> Option<Diverged> {
        let check = self.check.as_ref()?;
        let nobody_is_right = || {
            let is_silent = |id| self.worker_status.get(id).is_none_or(|status| !status.alive);
            let all_have_spoken = self.servers().all(|(id, _)| is_silent(id) || check.hashes.contains_key(id));
            all_have_spoken && check.equal() <= self.servers().count() / 2
        };
        check.diverged.get(&node).copied().or_else(|| check.difference(node).filter(|_| nobody_is_right()))
    }

    pub(super) fn begin_check(&mut self, index: u64) -> Reply {
        let diverged = self.check.take().map(|check| check.diverged).unwrap_or_default();
        self.check = Some(Check { at: index, hashes: BTreeMap::new(), diverged });
        self.dirty.check = true;
        Reply::Done
    }

    pub(super) fn enter_hash(&mut self, node: NodeId, at: u64, hash: Hash) -> Result<Reply, Refusal> {
        if !self.nodes.contains_key(&node) {
            return Err(not_a_member(node));
        }
        let Some(check) = self.check.as_mut().filter(|check| check.at == at) else {
            return refuse(format!("the states after entry {at} are no longer compared"));
        };
        check.hashes.insert(node, hash);
        let differences = check.hashes.keys().filter_map(|node| Some((*node, check.difference(*node)?)));
        let servers = self.nodes.values().filter(|node| node.raft.is_some()).count();
        let of_majority = differences.filter(|(_, difference)| difference.others > servers / 2);
        let diverged: Vec<_> = of_majority.collect();
        check.diverged.extend(diverged);
        self.dirty.check = true;
        Ok(Reply::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::Fixture;
    use super::*;
    use crate::command::Command;

    const NOBODY: [u64; 0] = [];

    /// A check among so many nodes, of which each of `found` has this state; the nodes that have to stop.
    fn stopped(nodes: u64, silent: &[u64], found: &[(u64, &str)]) -> Vec<u64> {
        let mut fixture = Fixture::of_nodes(nodes);
        for node in silent {
            fixture.decide(Command::SetWorkerAlive { node: NodeId(*node), alive: false });
        }
        assert_eq!(fixture.decide(Command::CheckState), Reply::Done);
        let at = fixture.index;
        for (node, state) in found {
            let hash = Hash::of(state.as_bytes());
            assert_eq!(fixture.say(Command::StateHash { node: NodeId(*node), at, hash }), Reply::Done);
        }
        let stopped =
            |fixture: &Fixture| (1..=nodes).filter(|node| fixture.state.divergence(NodeId(*node)).is_some()).collect();
        let found: Vec<u64> = stopped(&fixture);
        fixture.decide(Command::CheckState);
        assert!(found.len() > 1 || found == stopped(&fixture), "who was wrong once stays so");
        found
    }

    #[test]
    fn servers_that_are_equal_go_on() {
        assert_eq!(stopped(3, &[], &[(1, "a"), (2, "a"), (3, "a")]), NOBODY);
        assert_eq!(stopped(1, &[], &[(1, "a")]), NOBODY);
    }

    #[test]
    fn the_odd_one_out_stops_and_the_majority_goes_on() {
        assert_eq!(stopped(3, &[], &[(1, "a"), (2, "b"), (3, "a")]), [2]);
        assert_eq!(stopped(5, &[5], &[(1, "b"), (2, "a"), (3, "a"), (4, "a")]), [1]);
    }

    #[test]
    fn nobody_stops_before_it_is_known_who_is_wrong() {
        assert_eq!(stopped(3, &[], &[(1, "a"), (2, "b")]), NOBODY);
    }

    #[test]
    fn where_nobody_is_in_the_majority_nobody_goes_on() {
        assert_eq!(stopped(3, &[3], &[(1, "a"), (2, "b")]), [1, 2]);
        assert_eq!(stopped(3, &[], &[(1, "a"), (2, "b"), (3, "c")]), [1, 2, 3]);
        assert_eq!(stopped(2, &[], &[(1, "a"), (2, "b")]), [1, 2]);
        assert_eq!(stopped(4, &[], &[(1, "a"), (2, "b"), (3, "b"), (4, "a")]), [1, 2, 3, 4]);
    }

    #[test]
    fn what_comes_late_is_not_taken_for_the_newer_check() {
        let mut fixture = Fixture::of_nodes(1);
        fixture.decide(Command::CheckState);
        let at = fixture.index;
        fixture.decide(Command::CheckState);
        let late = Command::StateHash { node: NodeId(1), at, hash: Hash::of(b"") };
        assert!(matches!(fixture.say(late), Reply::Refused(_)));
    }
}
