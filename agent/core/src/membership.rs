//! (state, servers) → the next single change of the servers; leader only.

use std::collections::BTreeSet;

use crate::driver::{Membership, MembershipChange, Peer, Status};
use crate::state::{Absence, Node, State};
use crate::types::{NodeId, RaftId};

/// What a leader does next about the servers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    Change(MembershipChange),
    /// The leader itself is to go, and no leader removes itself.
    HandOver(RaftId),
}

/// Every member of the state that hasn't left it is to be a voter; a new one is a learner until it has caught up. Who
/// is to go goes first, but only where those that are left, and answer, are a quorum.
#[must_use]
pub fn next_step(state: &State, own: RaftId, status: &Status) -> Option<Step> {
    let servers = &status.membership;
    let staying: BTreeSet<RaftId> = staying(state).map(|node| node.raft).collect();
    let mut going = servers.learners.union(&servers.voters).filter(|id| !staying.contains(id));
    if let Some(step) = going.find_map(|id| removal(*id, own, &staying, status)) {
        return Some(step);
    }
    let ready = status.peers.iter().find(|peer| peer.caught_up && servers.learners.contains(&peer.id));
    if let Some(peer) = ready {
        return Some(Step::Change(MembershipChange::Promote(peer.id)));
    }
    let mut absent = staying.iter().filter(|raft| !servers.voters.contains(raft) && !servers.learners.contains(raft));
    absent.next().map(|raft| Step::Change(MembershipChange::AddLearner(*raft)))
}

fn removal(id: RaftId, own: RaftId, staying: &BTreeSet<RaftId>, status: &Status) -> Option<Step> {
    let voters = &status.membership.voters;
    if id == own {
        let heirs = status.peers.iter().filter(|peer| voters.contains(&peer.id) && staying.contains(&peer.id));
        return successor(heirs).map(Step::HandOver);
    }
    let answers = |peer: &RaftId| *peer == own || status.peers.iter().any(|of| of.id == *peer && of.recently_active);
    let left = || voters.iter().filter(|voter| **voter != id);
    let is_safe = !voters.contains(&id) || left().filter(|voter| answers(voter)).count() > left().count() / 2;
    is_safe.then_some(Step::Change(MembershipChange::Remove(id)))
}

/// To whom a leader hands over: the one that answers and lacks least of the log.
pub fn successor<'a>(voters: impl Iterator<Item = &'a Peer>) -> Option<RaftId> {
    voters.filter(|peer| peer.recently_active).max_by_key(|peer| peer.matched).map(|peer| peer.id)
}

/// Why this node can't be removed now: those that are left, and answer, would be no quorum.
#[must_use]
pub fn objection(
    state: &State,
    node: NodeId,
    voters: &BTreeSet<RaftId>,
    answers: impl Fn(NodeId) -> bool,
) -> Option<String> {
    let name = &state.nodes().get(&node).filter(|member| voters.contains(&member.raft))?.name;
    let left = state.nodes().iter().filter(|(id, other)| **id != node && voters.contains(&other.raft));
    let (heard, silent): (Vec<_>, Vec<_>) = left.partition(|(id, _)| answers(**id));
    let all = voters.len() - 1;
    if all == 0 {
        return Some(format!("{name} is the only server: wait until another one votes"));
    }
    let silent: Vec<_> = silent.into_iter().map(|(_, other)| other.name.as_str()).collect();
    (heard.len() <= all / 2).then(|| {
        format!(
            "without {name} only {} of {all} servers would answer, which is no quorum: see to {} first",
            heard.len(),
            silent.join(", ")
        )
    })
}

/// The nodes that are to go, run nothing any more, and are no servers.
pub fn gone<'a>(state: &'a State, servers: &'a Membership) -> impl Iterator<Item = NodeId> + 'a {
    let is_server = |raft: &RaftId| servers.voters.contains(raft) || servers.learners.contains(raft);
    state.emptied_nodes().filter(move |id| !is_server(&state.nodes()[id].raft))
}

/// Who hears of what it has to stop only as a server stays one until it has stopped it. Who is away since an earlier epoch
/// is none.
fn staying(state: &State) -> impl Iterator<Item = &Node> {
    let gone: BTreeSet<NodeId> = state.emptied_nodes().collect();
    let is_away = |id: &NodeId| state.absent().get(id) == Some(&Absence::Away);
    state.nodes().iter().filter(move |(id, _)| !gone.contains(id) && !is_away(id)).map(|(_, node)| node)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{Command, InstancePhase, Reply};
    use crate::driver::{Role, Soft};
    use crate::state::Beginner;
    use crate::state::tests::{Fixture, joiner, vm};
    use crate::types::ClusterEpoch;

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

    fn next(state: &State, status: &Status) -> Option<Step> {
        next_step(state, RaftId(1), status)
    }

    /// A cluster of three, of which this one is to go.
    fn without(node: u64) -> State {
        let mut fixture = Fixture::of_nodes(3);
        let command = Command::RemoveNode { node: NodeId(node), dead: false, abandon_volumes: false };
        assert_eq!(fixture.say(command), Reply::Done);
        fixture.state
    }

    fn silent(status: Status, silent: &[u64]) -> Status {
        let quiet = |peer: Peer| Peer { recently_active: !silent.contains(&peer.id.0), ..peer };
        Status { peers: status.peers.into_iter().map(quiet).collect(), ..status }
    }

    #[test]
    fn a_member_that_is_no_server_becomes_a_learner_first() {
        let state = Fixture::of_nodes(2).state;
        let added = Step::Change(MembershipChange::AddLearner(RaftId(2)));
        assert_eq!(next(&state, &status(&[1], &[], &[])), Some(added));
    }

    #[test]
    fn who_is_away_since_an_earlier_epoch_is_no_server_before_it_has_rejoined() {
        let mut fixture = Fixture::of_nodes(2);
        let (_, own) = fixture.begin_epoch(Beginner::Survivor(NodeId(1))).unwrap();
        let alone = Status { membership: Membership::founded_by(own), ..status(&[], &[], &[]) };
        assert_eq!(next_step(&fixture.state, own, &alone), None);
        fixture.say(Command::Rejoin { host: joiner(2), was_in: ClusterEpoch(1) });
        let added = Step::Change(MembershipChange::AddLearner(RaftId(4)));
        assert_eq!(next_step(&fixture.state, own, &alone), Some(added));
    }

    #[test]
    fn a_learner_votes_once_it_has_caught_up_and_not_before() {
        let state = Fixture::of_nodes(2).state;
        let promoted = Step::Change(MembershipChange::Promote(RaftId(2)));
        assert_eq!(next(&state, &status(&[1], &[2], &[])), None);
        assert_eq!(next(&state, &status(&[1], &[2], &[2])), Some(promoted));
        assert_eq!(next(&state, &status(&[1, 2], &[], &[2])), None);
    }

    #[test]
    fn who_is_to_go_loses_its_vote_and_does_not_get_it_back() {
        let state = without(3);
        let removed = Step::Change(MembershipChange::Remove(RaftId(3)));
        assert_eq!(next(&state, &status(&[1, 2, 3], &[], &[])), Some(removed));
        assert_eq!(next(&state, &status(&[1, 2], &[3], &[3])), Some(removed), "a learner, too");
        assert_eq!(next(&state, &status(&[1, 2], &[], &[])), None);
    }

    #[test]
    fn who_is_to_go_hears_as_a_server_what_it_has_to_stop() {
        let mut fixture = Fixture::of_nodes(3);
        fixture.declare(&[("web", vm("web", 3))]);
        fixture.settle();
        let command = Command::RemoveNode { node: NodeId(3), dead: false, abandon_volumes: false };
        assert_eq!(fixture.say(command), Reply::Done);
        let all = status(&[1, 2, 3], &[], &[]);
        assert_eq!(next(&fixture.state, &all), None);
        fixture.settle();
        let there = fixture.state.placed_on(NodeId(3)).map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(there.len(), 1);
        assert_eq!(next(&fixture.state, &all), None);
        fixture.report(&there[0], InstancePhase::Stopped);
        assert!(next(&fixture.state, &all).is_some());
    }

    #[test]
    fn a_vote_goes_only_where_those_that_are_left_and_answer_are_a_quorum() {
        let (state, all) = (without(3), status(&[1, 2, 3], &[], &[]));
        assert!(next(&state, &silent(all.clone(), &[3])).is_some(), "it isn't needed itself");
        assert_eq!(next(&state, &silent(all, &[2])), None);
    }

    #[test]
    fn a_leader_that_is_to_go_hands_over_to_one_that_stays() {
        let (state, all) = (without(1), status(&[1, 2, 3], &[], &[]));
        assert_eq!(next(&state, &silent(all.clone(), &[2])), Some(Step::HandOver(RaftId(3))));
        assert_eq!(next(&state, &silent(all, &[2, 3])), None);
    }

    #[test]
    fn a_node_is_forgotten_once_it_runs_nothing_and_is_no_server() {
        let state = without(3);
        let gone_of = |voters: &[u64], learners: &[u64]| {
            gone(&state, &status(voters, learners, &[]).membership).collect::<Vec<_>>()
        };
        assert_eq!(gone_of(&[1, 2], &[]), [NodeId(3)]);
        assert_eq!(gone_of(&[1, 2, 3], &[]), []);
        assert_eq!(gone_of(&[1, 2], &[3]), []);
    }

    #[test]
    fn a_removal_that_would_cost_the_quorum_is_objected_to_by_name() {
        let state = Fixture::of_nodes(3).state;
        let voters = BTreeSet::from([1, 2, 3].map(RaftId));
        let objection_with = |node, silent: u64| objection(&state, NodeId(node), &voters, |id| id != NodeId(silent));
        assert_eq!(objection_with(3, 3), None);
        assert_eq!(objection_with(3, 9), None);
        let why = objection_with(3, 2).unwrap();
        assert!(why.contains("without node3 only 1 of 2") && why.contains("see to node2"), "{why}");
        assert_eq!(objection(&state, NodeId(3), &BTreeSet::from([1, 2].map(RaftId)), |_| false), None, "no voter");
        let alone = objection(&state, NodeId(1), &BTreeSet::from([RaftId(1)]), |_| true).unwrap();
        assert!(alone.contains("the only server"), "{alone}");
    }
}
