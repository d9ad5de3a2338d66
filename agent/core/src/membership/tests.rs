//! The steps towards the servers that are wanted, one by one.

use super::*;
use crate::command::{Command, InstancePhase, Origin, Reply};
use crate::driver::{Role, Soft};
use crate::state::Beginner;
use crate::state::tests::{Fixture, joiner, manifest, vm};
use crate::types::ClusterEpoch;

mod model;

fn status(voters: &[u64], learners: &[u64], caught_up: &[u64]) -> Status {
    let ids = |ids: &[u64]| ids.iter().copied().map(RaftId).collect::<BTreeSet<_>>();
    let peer = |id: &RaftId| Peer { id: *id, matched: 9, recently_active: true, caught_up: caught_up.contains(&id.0) };
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
    next_step(state, RaftId(1), status, |_| false)
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

fn added(raft: u64) -> Step {
    Step::Change(MembershipChange::AddLearner(RaftId(raft)))
}

fn promoted(raft: u64) -> Step {
    Step::Change(MembershipChange::Promote(RaftId(raft)))
}

fn removed(raft: u64) -> Step {
    Step::Change(MembershipChange::Remove(RaftId(raft)))
}

/// Nodes of which none is declared a server.
fn auto(count: u64) -> Fixture {
    Fixture::of(count, NodeRole::Auto)
}

fn set_servers(fixture: &mut Fixture, servers: usize) {
    let mut manifest = manifest(&[]);
    manifest.cluster.servers = servers;
    fixture.say(Command::OfferManifest { manifest, from: Origin::Person("test".to_owned()) });
}

#[test]
fn a_member_that_is_to_be_a_server_becomes_a_learner_first() {
    assert_eq!(next(&Fixture::of_nodes(2).state, &status(&[1], &[], &[])), Some(added(2)));
}

#[test]
fn a_learner_votes_once_all_have_caught_up_that_make_the_number_odd() {
    let state = auto(3).state;
    assert_eq!(next(&state, &status(&[1], &[2], &[2])), Some(added(3)));
    assert_eq!(next(&state, &status(&[1], &[2, 3], &[2])), None);
    assert_eq!(next(&state, &status(&[1], &[2, 3], &[2, 3])), Some(promoted(2)));
    assert_eq!(next(&state, &status(&[1, 2], &[3], &[2, 3])), Some(promoted(3)));
    assert_eq!(next(&state, &status(&[1, 2, 3], &[], &[])), None);
}

#[test]
fn who_is_away_since_an_earlier_epoch_is_no_server_before_it_has_rejoined() {
    let mut fixture = Fixture::of_nodes(2);
    let (_, own) = fixture.begin_epoch(Beginner::Survivor(NodeId(1))).unwrap();
    let alone = Status { membership: Membership::founded_by(own), ..status(&[], &[], &[]) };
    assert_eq!(next_step(&fixture.state, own, &alone, |_| false), None);
    fixture.say(Command::Rejoin { host: joiner(2), was_in: ClusterEpoch::FIRST });
    assert_eq!(next_step(&fixture.state, own, &alone, |_| false), Some(added(4)));
}

#[test]
fn of_two_hosts_one_votes_and_the_other_has_the_log() {
    assert_eq!(next(&auto(2).state, &status(&[1], &[2], &[2])), None);
}

#[test]
fn of_three_servers_that_became_two_both_stay() {
    assert_eq!(next(&auto(2).state, &status(&[1, 2], &[], &[])), None);
}

#[test]
fn a_fourth_host_is_a_worker_until_a_server_is_lost_and_then_takes_its_place() {
    let mut fixture = auto(4);
    assert_eq!(fixture.state.nodes()[&NodeId(4)].raft, None);
    let lost = |id| id == NodeId(3);
    let step = |fixture: &Fixture, status: &Status| next_step(&fixture.state, RaftId(1), status, lost);
    let all = silent(status(&[1, 2, 3], &[], &[]), &[3]);
    assert_eq!(next(&fixture.state, &all), None, "it may come back");
    assert_eq!(step(&fixture, &all), Some(Step::Enlist(NodeId(4))));
    fixture.decide(Command::Enlist { node: NodeId(4) });
    assert_eq!(step(&fixture, &all), Some(added(4)));
    let learning = |caught_up: &[u64]| silent(status(&[1, 2, 3], &[4], caught_up), &[3]);
    assert_eq!(step(&fixture, &learning(&[])), None, "the lost one's vote is not missed yet");
    assert_eq!(step(&fixture, &learning(&[4])), Some(removed(3)));
    fixture.remove_server(RaftId(3));
    assert_eq!(step(&fixture, &status(&[1, 2], &[4], &[4])), Some(promoted(4)));
    assert_eq!(next(&fixture.state, &status(&[1, 2, 4], &[], &[])), None, "the old one, should it return, is a worker");
}

#[test]
fn a_replacement_that_is_under_way_goes_on_under_another_leader() {
    let mut fixture = auto(7);
    set_servers(&mut fixture, 5);
    for node in [4, 5].map(NodeId) {
        fixture.decide(Command::Enlist { node });
    }
    // Of two that don't answer it is the longer silent one whose place the other was to take.
    for node in [5, 4].map(NodeId) {
        fixture.decide(Command::SetWorkerAlive { node, alive: false });
    }
    let all = silent(status(&[1, 2, 3, 4, 5], &[], &[]), &[4, 5]);
    assert_eq!(next(&fixture.state, &all), None, "neither is lost yet");
    fixture.decide(Command::Enlist { node: NodeId(6) });
    assert_eq!(next(&fixture.state, &all), Some(added(6)));
    let learning = |caught_up: &[u64]| silent(status(&[1, 2, 3, 4, 5], &[6], caught_up), &[4, 5]);
    assert_eq!(next(&fixture.state, &learning(&[])), None);
    assert_eq!(next(&fixture.state, &learning(&[6])), Some(removed(5)));
    fixture.decide(Command::SetWorkerAlive { node: NodeId(4), alive: true });
    fixture.decide(Command::SetWorkerAlive { node: NodeId(5), alive: true });
    assert_eq!(next(&fixture.state, &learning(&[6])), Some(removed(6)), "they are back before it votes");
}

#[test]
fn without_another_host_a_lost_server_keeps_its_vote() {
    let state = auto(3).state;
    let all = silent(status(&[1, 2, 3], &[], &[]), &[3]);
    assert_eq!(next_step(&state, RaftId(1), &all, |id| id == NodeId(3)), None);
    let mut fixture = auto(4);
    fixture.decide(Command::SetWorkerAlive { node: NodeId(4), alive: false });
    assert_eq!(next_step(&fixture.state, RaftId(1), &all, |id| id == NodeId(3)), None, "the other one is away");
}

#[test]
fn two_more_servers_vote_once_both_are_there_and_go_one_by_one() {
    let mut fixture = auto(4);
    let three = status(&[1, 2, 3], &[], &[]);
    set_servers(&mut fixture, 5);
    assert_eq!(next(&fixture.state, &three), Some(Step::Enlist(NodeId(4))));
    fixture.decide(Command::Enlist { node: NodeId(4) });
    assert_eq!(next(&fixture.state, &status(&[1, 2, 3], &[4], &[4])), None, "four vote no better than three");
    fixture.join(5, NodeRole::Auto);
    assert_eq!(next(&fixture.state, &status(&[1, 2, 3], &[4, 5], &[4, 5])), Some(promoted(4)));
    assert_eq!(next(&fixture.state, &status(&[1, 2, 3, 4], &[5], &[5])), Some(promoted(5)));
    set_servers(&mut fixture, 3);
    let five = status(&[1, 2, 3, 4, 5], &[], &[]);
    assert_eq!(next(&fixture.state, &five), Some(removed(4)));
    fixture.remove_server(RaftId(4));
    assert_eq!(next(&fixture.state, &status(&[1, 2, 3, 5], &[], &[])), Some(removed(5)));
    fixture.remove_server(RaftId(5));
    assert_eq!(next(&fixture.state, &three), None);
}

#[test]
fn a_server_that_is_declared_a_worker_gives_its_vote_to_another_host_first() {
    let mut fixture = auto(4);
    fixture.register(2, NodeRole::Worker);
    assert_eq!(next(&fixture.state, &status(&[1, 2, 3], &[], &[])), Some(Step::Enlist(NodeId(4))));
    fixture.decide(Command::Enlist { node: NodeId(4) });
    assert_eq!(next(&fixture.state, &status(&[1, 2, 3], &[4], &[4])), Some(promoted(4)));
    assert_eq!(next(&fixture.state, &status(&[1, 2, 3, 4], &[], &[])), Some(removed(2)));
    fixture.remove_server(RaftId(2));
    assert_eq!(next(&fixture.state, &status(&[1, 3, 4], &[], &[])), None);
}

#[test]
fn a_declared_server_without_a_vote_is_a_spare_and_is_the_first_to_get_one() {
    let mut fixture = auto(4);
    fixture.join(5, NodeRole::Server);
    let lost = |id| id == NodeId(3);
    assert_eq!(next(&fixture.state, &status(&[1, 2, 3], &[], &[])), Some(added(4)), "the raft id of node 5");
    let all = silent(status(&[1, 2, 3], &[4], &[4]), &[3]);
    assert_eq!(next(&fixture.state, &all), None);
    assert_eq!(next_step(&fixture.state, RaftId(1), &all, lost), Some(removed(3)));
}

#[test]
fn who_is_to_go_loses_its_vote_and_does_not_get_it_back() {
    let state = without(3);
    assert_eq!(next(&state, &status(&[1, 2, 3], &[], &[])), Some(removed(3)));
    assert_eq!(next(&state, &status(&[1, 2], &[3], &[3])), Some(removed(3)), "a learner, too");
    assert_eq!(next(&state, &status(&[1, 2], &[], &[])), None);
}

#[test]
fn who_is_to_go_votes_until_it_runs_nothing_or_another_host_takes_its_place() {
    let mut fixture = Fixture::of_nodes(3);
    fixture.declare(&[("web", vm("web", 3))]);
    fixture.settle();
    for web in ["web-0", "web-1", "web-2"] {
        fixture.report(web, InstancePhase::Running);
    }
    let command = Command::RemoveNode { node: NodeId(3), dead: false, abandon_volumes: false };
    assert_eq!(fixture.say(command), Reply::Done);
    let all = status(&[1, 2, 3], &[], &[]);
    assert_eq!(next(&fixture.state, &all), None);
    fixture.settle();
    let there = fixture.state.placed_on(NodeId(3)).map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(there.len(), 1);
    assert_eq!(next(&fixture.state, &all), None);
    let mut other = fixture.clone();
    other.join(4, NodeRole::Auto);
    assert_eq!(next(&other.state, &all), Some(Step::Enlist(NodeId(4))));
    fixture.report(&there[0], InstancePhase::Stopped);
    assert_eq!(next(&fixture.state, &all), Some(removed(3)));
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
fn leadership_goes_at_a_persons_word_to_a_voter_that_answers_and_to_nobody_else() {
    let state = auto(4).state;
    let all = silent(status(&[1, 2, 3], &[], &[]), &[2]);
    let given = |node: u64| heir(&state, Some(NodeId(node)), &all);
    assert_eq!(given(3), Ok(RaftId(3)));
    assert_eq!(heir(&state, None, &all), Ok(RaftId(3)));
    for (node, why) in
        [(1, "node1 leads already"), (2, "node2 does not answer"), (4, "node4 has no vote"), (9, "node 9")]
    {
        assert!(given(node).unwrap_err().contains(why), "{node}: {:?}", given(node));
    }
    assert!(heir(&state, None, &silent(all, &[2, 3])).unwrap_err().contains("none can lead"));
}

#[test]
fn a_node_is_forgotten_once_it_runs_nothing_and_is_no_server() {
    let state = without(3);
    let gone_of =
        |voters: &[u64], learners: &[u64]| gone(&state, &status(voters, learners, &[]).membership).collect::<Vec<_>>();
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
    let sole = BTreeSet::from([RaftId(1)]);
    assert_eq!(objection(&state, NodeId(1), &sole, |id| id == NodeId(2)), None, "another one can take its place");
    let alone = objection(&state, NodeId(1), &sole, |id| id == NodeId(1)).unwrap();
    assert!(alone.contains("the only server"), "{alone}");
}
