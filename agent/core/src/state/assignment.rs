//! What one node has to know of the state: its own placements and tasks, and who the servers are.
//!
//! A worker that holds no log is told this, whole each time. To the worker it is a state like any other, only smaller.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::packed::encode;
use super::rows::{Dirty, RowError, Table};
use super::{Change, Counters, State};
use crate::types::{NodeId, RaftId};

/// The rows of a state that one node has to know, as of one log entry.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Assignment {
    /// Index of the last entry that is in it.
    pub applied: u64,
    rows: Vec<(Table, Vec<u8>, Vec<u8>)>,
}

/// Why bytes are no assignment.
#[derive(Debug, thiserror::Error)]
pub enum AssignmentError {
    #[error("an assignment can't be read: written by a newer agent, or garbled on its way")]
    Unreadable,
    #[error("an assignment makes no sense")]
    Row(#[source] RowError),
    #[error("an assignment is as of entry {found}, and one as of entry {known} is known")]
    Stale { found: u64, known: u64 },
}

impl State {
    /// What `node` has to know of this state, in which entries up to `applied` are.
    pub fn assignment(&self, node: NodeId, applied: u64) -> Assignment {
        let rows = self.rows(Dirty {
            cluster: true,
            nodes: self.servers().map(|(id, _)| *id).chain([node]).collect(),
            instances: self.placed_on(node).cloned().collect(),
            tasks: self.tasks_on(node).collect(),
            leases: BTreeSet::from([node]),
            ..Dirty::default()
        });
        // Of the counters only these: the others change with what is placed anywhere.
        let counters = Counters { node: self.counters.node, raft: self.counters.raft, ..Counters::default() };
        let counters = Change { table: Table::Counters, key: Vec::new(), value: Some(encode(&counters)) };
        let rows = rows.into_iter().chain([counters]);
        let rows = rows.filter_map(|Change { table, key, value }| Some((table, key, value?.to_vec())));
        Assignment { applied, rows: rows.collect() }
    }
}

impl Assignment {
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("rows have no part that postcard refuses")
    }

    /// What was encoded, unless it is older than what is `known` already.
    ///
    /// # Errors
    /// Each of them says that whoever sent it is not to be listened to.
    pub fn decode(bytes: &[u8], known: u64) -> Result<Self, AssignmentError> {
        let assignment: Self = postcard::from_bytes(bytes).map_err(|_| AssignmentError::Unreadable)?;
        let found = assignment.applied;
        if found < known { Err(AssignmentError::Stale { found, known }) } else { Ok(assignment) }
    }

    /// The state that it is, and nothing else of the cluster's.
    ///
    /// # Errors
    /// `Row`.
    pub fn state(&self) -> Result<State, AssignmentError> {
        let rows = self.rows.iter().map(|(table, key, value)| (*table, key, value));
        State::from_rows(rows).map_err(AssignmentError::Row)
    }

    /// Whether it says the same, perhaps as of another entry.
    pub fn is_same(&self, other: &Self) -> bool {
        self.rows == other.rows
    }
}

impl State {
    /// The raft id by which `node` is to be a server, if that is a newer one than any that it has `spent`.
    pub fn is_enlisted(&self, node: NodeId, spent: RaftId) -> Option<RaftId> {
        self.nodes.get(&node)?.raft.filter(|raft| *raft > spent)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::tests::{Fixture, vm};
    use super::*;
    use crate::command::{Command, TaskSpec};
    use crate::reconcile::{Attempts, reconcile, report};
    use crate::types::{NodeEpoch, Resources};
    use crate::unit::{Observed, ObservedVm, UnitPhase};

    fn fixture() -> Fixture {
        let mut fixture = Fixture::of_nodes(7);
        fixture.declare(&[("web", vm("web", 9)), ("db", vm("db", 2))]);
        let request = Resources { cpus: 1, memory_mib: 1, disk_mib: 0 };
        for _ in 0..9 {
            fixture.say(Command::RunTask(TaskSpec { command: vec!["true".to_owned()], request }));
        }
        fixture.settle();
        fixture
    }

    #[test]
    fn a_node_does_by_its_assignment_what_it_would_do_by_the_whole_state() {
        let mut fixture = fixture();
        fixture.say(Command::RemoveNode { node: NodeId(7), dead: false, abandon_volumes: false });
        fixture.settle();
        let whole = &fixture.state;
        let stray = ObservedVm { phase: UnitPhase::Running, installed: None, restarts: 0, last_exit: None };
        let vms = BTreeMap::from([("stray-0".parse().unwrap(), stray)]);
        let observed = Observed { armed: Some(NodeEpoch(1)), vms, ..Observed::default() };
        for node in whole.nodes().keys().copied() {
            let own = Assignment::decode(&whole.assignment(node, 9).encode(), 9).unwrap().state().unwrap();
            let attempts = Attempts::default();
            let actions = reconcile(node, &own, &observed, &attempts);
            assert!(actions.len() > 1 || node == NodeId(7), "{node} has something to do");
            assert_eq!(actions, reconcile(node, whole, &observed, &attempts));
            assert_eq!(report(node, &own, &observed, &attempts), report(node, whole, &observed, &attempts));
            assert_eq!(own.nodes()[&node].leaving, whole.nodes()[&node].leaving);
            let servers = |state: &State| state.servers().map(|(id, node)| (*id, node.raft)).collect::<Vec<_>>();
            assert_eq!(servers(&own), servers(whole));
            assert_eq!((own.newest_node(), own.newest_raft()), (whole.newest_node(), whole.newest_raft()));
        }
    }

    #[test]
    fn it_changes_only_with_what_the_node_has_to_know() {
        let mut fixture = fixture();
        let of = |fixture: &Fixture, node| fixture.state.assignment(NodeId(node), fixture.index);
        let before = [6, 7].map(|node| of(&fixture, node));
        let placed = fixture.state.placed_on(NodeId(7)).next().unwrap().to_string();
        fixture.report(&placed, crate::command::InstancePhase::Running);
        assert!(of(&fixture, 6).is_same(&before[0]) && !of(&fixture, 7).is_same(&before[1]));
    }

    #[test]
    fn what_is_older_than_what_is_known_is_refused() {
        let state = fixture().state;
        let bytes = state.assignment(NodeId(6), 7).encode();
        assert!(Assignment::decode(&bytes, 7).is_ok());
        assert!(matches!(Assignment::decode(&bytes, 8), Err(AssignmentError::Stale { found: 7, known: 8 })));
        assert!(matches!(Assignment::decode(&bytes[..bytes.len() - 1], 0), Err(AssignmentError::Unreadable)));
    }

    #[test]
    fn a_node_that_is_removed_finds_no_trace_of_itself() {
        let mut fixture = fixture();
        fixture.decide(Command::SetWorkerAlive { node: NodeId(7), alive: false });
        fixture.say(Command::RemoveNode { node: NodeId(7), dead: true, abandon_volumes: false });
        let own = fixture.state.assignment(NodeId(7), 9).state().unwrap();
        assert!(own.is_removed(NodeId(7)));
    }

    #[test]
    fn a_node_is_enlisted_only_by_an_id_that_it_never_had() {
        let mut fixture = Fixture::of_nodes(2);
        let node = NodeId(2);
        let enlisted = |fixture: &Fixture, spent| fixture.state.is_enlisted(node, RaftId(spent));
        assert_eq!(enlisted(&fixture, 0), Some(RaftId(2)));
        assert_eq!(enlisted(&fixture, 2), None, "as told by a server that lags");
        fixture.remove_server(RaftId(2));
        assert_eq!(enlisted(&fixture, 2), None);
        fixture.decide(Command::Enlist { node });
        assert_eq!(enlisted(&fixture, 2), Some(RaftId(3)));
    }
}
