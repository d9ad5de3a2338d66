//! (state, servers) → the next single change of the servers; leader only.

use crate::driver::{MembershipChange, Status};
use crate::state::State;

/// Every member of the state is to be a voter; a new one is a learner until it has caught up.
#[must_use]
pub fn next_change(state: &State, status: &Status) -> Option<MembershipChange> {
    let servers = &status.membership;
    let ready = status.peers.iter().find(|peer| peer.caught_up && servers.learners.contains(&peer.id));
    if let Some(peer) = ready {
        return Some(MembershipChange::Promote(peer.id));
    }
    let members = state.nodes().values().map(|node| node.raft);
    let mut absent = members.filter(|raft| !servers.voters.contains(raft) && !servers.learners.contains(raft));
    absent.next().map(MembershipChange::AddLearner)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::driver::{Membership, Peer, Role, Soft};
    use crate::state::tests::Fixture;
    use crate::types::RaftId;

    fn status(voters: &[u64], learners: &[u64], caught_up: &[u64]) -> Status {
        let ids = |ids: &[u64]| ids.iter().copied().map(RaftId).collect::<BTreeSet<_>>();
        let peer =
            |id: &RaftId| Peer { id: *id, matched: 9, recently_active: true, caught_up: caught_up.contains(&id.0) };
        let peers = ids(voters).union(&ids(learners)).filter(|id| id.0 != 1).map(peer).collect();
        Status {
            soft: Soft { role: Role::Leader, leader: Some(RaftId(1)) },
            term: 1,
            commit: 9,
            applied: 9,
            first_index: 1,
            last_index: 9,
            membership: Membership { voters: ids(voters), learners: ids(learners) },
            peers,
        }
    }

    #[test]
    fn a_member_that_is_no_server_becomes_a_learner_first() {
        let state = Fixture::of_nodes(2).state;
        assert_eq!(next_change(&state, &status(&[1], &[], &[])), Some(MembershipChange::AddLearner(RaftId(2))));
    }

    #[test]
    fn a_learner_votes_once_it_has_caught_up_and_not_before() {
        let state = Fixture::of_nodes(2).state;
        assert_eq!(next_change(&state, &status(&[1], &[2], &[])), None);
        assert_eq!(next_change(&state, &status(&[1], &[2], &[2])), Some(MembershipChange::Promote(RaftId(2))));
        assert_eq!(next_change(&state, &status(&[1, 2], &[], &[2])), None);
    }
}
