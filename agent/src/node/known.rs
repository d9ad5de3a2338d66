//! What this node knows, to be looked at on any thread: whoever asks a question needn't wake the loop for it, and what
//! takes long to answer is no work of the loop's. The loop alone changes it.

use std::collections::BTreeSet;
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Instant;

use blixard_core::driver::{Driver, Membership};
use blixard_core::state::State;
use blixard_core::types::{NodeId, RaftId, Term};

/// Where this node stands among the servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    pub node: NodeId,
    /// Nothing where it is no server.
    pub raft: Option<RaftId>,
    /// Nothing where no leader is known.
    pub leader: Option<RaftId>,
    /// Since when that is so; a start counts as when the last one was lost.
    pub leaderless_since: Option<Instant>,
    pub term: Term,
    pub voters: BTreeSet<RaftId>,
    pub learners: BTreeSet<RaftId>,
    /// Index of the last entry that the state holds.
    pub applied: u64,
}

impl Standing {
    pub(super) fn of(node: NodeId, raft: RaftId, driver: &Driver) -> Self {
        let status = driver.status();
        let Membership { voters, learners } = status.membership;
        let (leader, term) = (status.soft.leader, Term(status.term));
        let leaderless_since = leader.is_none().then(Instant::now);
        Self { node, raft: Some(raft), leader, leaderless_since, term, voters, learners, applied: status.applied }
    }

    /// Of a node that is no server, before it has heard anything.
    pub(super) fn outside(node: NodeId) -> Self {
        let (voters, learners, leaderless_since) = (BTreeSet::new(), BTreeSet::new(), Some(Instant::now()));
        Self { node, raft: None, leader: None, leaderless_since, term: Term(0), voters, learners, applied: 0 }
    }

    pub(super) fn set_leader(&mut self, leader: Option<RaftId>, term: Term) {
        let since = self.leaderless_since.unwrap_or_else(Instant::now);
        (self.leader, self.term) = (leader, term);
        self.leaderless_since = leader.is_none().then_some(since);
    }

    pub(super) fn set_servers(&mut self, servers: Membership) {
        (self.voters, self.learners) = (servers.voters, servers.learners);
    }

    /// A leader steps down without a quorum, and a follower forgets one that it doesn't hear.
    pub fn has_quorum(&self) -> bool {
        self.leader.is_some()
    }
}

/// The state, and where the node stands as of then.
pub(super) struct Known {
    pub state: State,
    pub standing: Standing,
    /// The loop goes on no more, perhaps because of this very state: nobody may act on it.
    pub has_ended: bool,
}

/// All clones are the same.
#[derive(Clone)]
pub(super) struct Shared(Arc<RwLock<Known>>);

impl Shared {
    pub fn new(state: State, standing: Standing) -> Self {
        Self(Arc::new(RwLock::new(Known { state, standing, has_ended: false })))
    }

    /// Whoever holds it long keeps the loop from applying anything. Who holds it must neither look again nor wait for
    /// what the loop does.
    pub fn look(&self) -> RwLockReadGuard<'_, Known> {
        self.0.read().expect(NO_PANIC)
    }

    pub fn change(&self) -> RwLockWriteGuard<'_, Known> {
        self.0.write().expect(NO_PANIC)
    }
}

const NO_PANIC: &str = "a panic ends the agent";
