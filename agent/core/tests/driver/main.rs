//! The driver in groups of one, three and five, on a network and disks that obey a seed.

mod cluster;

use std::collections::BTreeSet;

use blixard_core::driver::{
    Driver, Fate, Membership, MembershipChange, ProposeError, ReadError, Recovered, Role, Settings, Write,
};
use blixard_core::types::RaftId;
use cluster::{Cluster, FOUNDER};

#[test]
fn a_group_of_one_commits_a_proposal_in_the_turns_that_follow_it() {
    let mut cluster = Cluster::founded(1);
    assert_eq!(cluster.leader(), Some(FOUNDER));
    for command in [b"a", b"b", b"c"] {
        let position = cluster.propose(FOUNDER, command).unwrap();
        assert_eq!(cluster.acknowledged[command.as_slice()], position);
    }
    assert_eq!(cluster.applied_commands(FOUNDER), [b"a", b"b", b"c"]);
}

#[test]
fn a_group_of_one_goes_on_after_a_restart() {
    let mut cluster = Cluster::founded(1);
    cluster.propose(FOUNDER, b"a").unwrap();
    cluster.crash(FOUNDER);
    cluster.start(FOUNDER);
    cluster.driver(FOUNDER).campaign_if_alone();
    cluster.settle(FOUNDER);
    cluster.propose(FOUNDER, b"b").unwrap();
    assert_eq!(cluster.applied_commands(FOUNDER), [b"a", b"b"]);
}

#[test]
fn three_and_five_servers_elect_a_leader_and_apply_the_same_commands() {
    for size in [3, 5] {
        let mut cluster = Cluster::of_voters(2, size);
        let leader = cluster.elect();
        for number in 0..50_u8 {
            cluster.propose(leader, &[number]).unwrap();
        }
        let all: Vec<Vec<u8>> = (0..50).map(|number| vec![number]).collect();
        cluster.until("equal states", |c| c.ids().iter().all(|id| c.applied_commands(*id) == all));
    }
}

#[test]
fn only_a_leader_takes_proposals_and_a_follower_names_it() {
    let mut cluster = Cluster::of_voters(3, 3);
    let id = RaftId(1);
    assert_eq!(cluster.driver(id).propose(vec![1]), Err(ProposeError::NotLeader { leader: None }));
    let leader = cluster.elect();
    let follower = other_than(&cluster, &[leader]);
    let named = ProposeError::NotLeader { leader: Some(leader) };
    assert_eq!(cluster.driver(follower).propose(vec![1]), Err(named));
    assert_eq!(cluster.driver(leader).propose(vec![]), Err(ProposeError::Empty));
    let long = vec![0; blixard_core::command::MAX_BYTES + 1];
    assert!(matches!(cluster.driver(leader).propose(long), Err(ProposeError::TooLong { .. })));
}

#[test]
fn what_an_isolated_leader_took_is_superseded_by_its_successor() {
    let mut cluster = Cluster::of_voters(4, 3);
    let old = cluster.elect();
    cluster.propose(old, b"kept").unwrap();
    cluster.until("commit everywhere", |c| c.ids().iter().all(|id| c.applied_commands(*id).len() == 1));
    cluster.isolate(old);
    cluster.propose(old, b"lost").unwrap();
    cluster.until("a successor", |c| c.leader().is_some_and(|id| id != old));
    cluster.until("the old leader to step down", |c| c.status(old).soft.role != Role::Leader);
    let new = cluster.leader().unwrap();
    cluster.propose(new, b"taken").unwrap();
    cluster.heal();
    cluster.until("an answer", |c| c.settled.iter().any(|(command, _)| command == b"lost"));
    assert!(cluster.settled.contains(&(b"lost".to_vec(), Fate::Superseded)));
    cluster.until("agreement", |c| {
        c.ids().iter().all(|id| c.applied_commands(*id) == [b"kept".to_vec(), b"taken".to_vec()])
    });
}

#[test]
fn a_server_that_was_cut_off_does_not_depose_the_leader_when_it_returns() {
    let mut cluster = Cluster::of_voters(5, 3);
    let leader = cluster.elect();
    let term = cluster.status(leader).term;
    let lonely = other_than(&cluster, &[leader]);
    cluster.isolate(lonely);
    for _ in 0..500 {
        cluster.round();
    }
    assert_eq!(cluster.status(lonely).term, term, "it asked before it raised its term");
    cluster.heal();
    for _ in 0..100 {
        cluster.round();
    }
    assert_eq!((cluster.leader(), cluster.status(leader).term), (Some(leader), term));
}

#[test]
fn a_learner_gets_the_log_and_is_promoted_only_once_it_keeps_up() {
    let mut cluster = Cluster::founded(6);
    for number in 0..20 {
        cluster.propose(FOUNDER, &[number]).unwrap();
    }
    let joiner = RaftId(2);
    change(&mut cluster, FOUNDER, MembershipChange::AddLearner(joiner)).unwrap();
    let early = change(&mut cluster, FOUNDER, MembershipChange::Promote(joiner));
    assert_eq!(early, Err(ProposeError::NotCaughtUp { id: joiner }));
    let stranger = change(&mut cluster, FOUNDER, MembershipChange::Promote(RaftId(9)));
    assert_eq!(stranger, Err(ProposeError::NotCaughtUp { id: RaftId(9) }));

    cluster.install(joiner, Membership::founded_by(FOUNDER));
    cluster.until("a learner that keeps up", |c| c.status(FOUNDER).peers.iter().all(|peer| peer.caught_up));
    assert_eq!(cluster.applied_commands(joiner).len(), 20);
    change(&mut cluster, FOUNDER, MembershipChange::Promote(joiner)).unwrap();
    let both = BTreeSet::from([FOUNDER, joiner]);
    cluster.until("two voters", |c| c.ids().iter().all(|id| c.status(*id).membership.voters == both));
    assert!(cluster.status(joiner).membership.learners.is_empty());
}

#[test]
fn a_second_change_of_the_servers_waits_for_the_first() {
    let mut cluster = Cluster::of_voters(7, 3);
    let leader = cluster.elect();
    change(&mut cluster, leader, MembershipChange::AddLearner(RaftId(8))).unwrap();
    let second = change(&mut cluster, leader, MembershipChange::AddLearner(RaftId(9)));
    assert_eq!(second, Err(ProposeError::ChangePending));
    let itself = change_once_free(&mut cluster, leader, MembershipChange::Remove(leader));
    assert_eq!(itself, Err(ProposeError::RemovesLeader { id: leader }));
}

#[test]
fn a_leader_that_its_predecessor_removed_steps_down_and_the_others_go_on() {
    let mut cluster = Cluster::of_voters(8, 3);
    let old = cluster.elect();
    let removed = other_than(&cluster, &[old]);
    let third = other_than(&cluster, &[old, removed]);
    // The removal reaches the one it removes, and nobody knows yet that it committed.
    cluster.isolate(third);
    change(&mut cluster, old, MembershipChange::Remove(removed)).unwrap();
    while cluster.status(removed).last_index < cluster.status(old).last_index {
        cluster.deliver();
    }
    cluster.crash(old);
    cluster.heal();
    cluster.until("the removal", |c| c.status(removed).membership.voters.len() == 2);
    assert_eq!(cluster.leaders.last_key_value(), Some((&2, &removed)), "only the one to be removed could lead");
    assert_eq!(cluster.status(removed).soft.role, Role::Follower);
    cluster.start(old);
    cluster.until("a leader among those left", |c| {
        c.leader().is_some_and(|id| id != removed && c.status(id).membership.voters.len() == 2)
    });
    let leader = cluster.leader().unwrap();
    cluster.propose(leader, b"on").unwrap();
    cluster.until("a commit", |c| c.acknowledged.contains_key(b"on".as_slice()));
}

#[test]
fn reads_are_answered_on_the_leader_and_on_a_follower() {
    let mut cluster = Cluster::of_voters(9, 3);
    assert_eq!(cluster.driver(RaftId(1)).read_index(), Err(ReadError::NoLeader));
    let leader = cluster.elect();
    let follower = other_than(&cluster, &[leader]);
    cluster.propose(leader, b"a").unwrap();
    cluster.until("a commit", |c| !c.acknowledged.is_empty());
    let acknowledged = cluster.acknowledged[b"a".as_slice()].index;
    for id in [leader, follower] {
        let read = cluster.read(id).unwrap();
        cluster.until("an answer", |c| c.answered.iter().any(|(who, which, _)| (*who, *which) == (id, read)));
        assert!(cluster.answered.last().unwrap().2 >= acknowledged);
    }
}

#[test]
fn a_read_on_a_group_of_one_is_answered_at_once() {
    let mut cluster = Cluster::founded(9);
    let read = cluster.read(FOUNDER).unwrap();
    assert_eq!(cluster.answered, [(FOUNDER, read, 1)]);
}

#[test]
fn leadership_goes_where_it_is_handed() {
    let mut cluster = Cluster::of_voters(10, 3);
    let old = cluster.elect();
    let new = other_than(&cluster, &[old]);
    cluster.driver(old).transfer_leader(new).unwrap();
    assert_eq!(cluster.driver(old).propose(vec![1]), Err(ProposeError::Busy));
    cluster.settle(old);
    cluster.round();
    assert_eq!((cluster.elect(), cluster.status(old).soft.role), (new, Role::Follower));
}

#[test]
fn one_seed_replays_one_group_message_by_message() {
    let run = |seed| {
        let mut cluster = Cluster::of_voters(seed, 5);
        misfortune(&mut cluster, 8_000);
        cluster.trace
    };
    let first = run(11);
    assert!(first.len() > 1_000, "{} messages", first.len());
    assert!((0..3).all(|_| run(11) == first));
    assert!(run(12) != first);
}

#[test]
fn no_seed_breaks_an_invariant_or_loses_what_was_acknowledged() {
    let mut acknowledged = 0;
    for seed in 0..120 {
        let mut cluster = Cluster::of_voters(seed, if seed % 2 == 0 { 3 } else { 5 });
        misfortune(&mut cluster, 3_000);
        cluster.heal();
        for id in cluster.ids() {
            if !cluster.is_up(id) {
                cluster.start(id);
            }
        }
        let leader = cluster.elect();
        cluster.propose(leader, b"last").unwrap();
        let reached = |c: &Cluster, id: &RaftId| c.applied_commands(*id).last().is_some_and(|last| last == b"last");
        cluster.until("agreement", |c| c.ids().iter().all(|id| reached(c, id)));
        cluster.assert_nothing_acknowledged_is_lost();
        acknowledged += cluster.acknowledged.len();
    }
    assert!(acknowledged > 2_000, "only {acknowledged} proposals were acknowledged");
}

#[test]
fn an_election_goes_through_pre_votes_votes_and_an_empty_entry() {
    let mut cluster = Cluster::of_voters(13, 3);
    cluster.elect();
    let trace = cluster.trace.join("\n") + "\n";
    assert_eq!(trace, include_str!("election.txt"), "the trace is now:\n{trace}");
}

#[test]
#[should_panic(expected = "the node must stop")]
fn a_write_that_failed_is_never_passed_over() {
    let mut driver = Driver::new(Settings::new(FOUNDER, 0), Recovered::blank(FOUNDER)).unwrap();
    driver.campaign_if_alone();
    drop(driver.turn().unwrap().write.unwrap());
    driver.propose(vec![1]).unwrap();
    let write = driver.turn().unwrap().write.unwrap();
    let durable = Write::write_all(vec![write], &mut cluster::Disk::default()).unwrap().unwrap();
    let _ = driver.persisted(durable);
}

/// Ticks, deliveries, losses, crashes, cuts, proposals and reads, as the group's seed has them.
fn misfortune(cluster: &mut Cluster, events: usize) {
    cluster.drop_percent = cluster.random.below(15);
    let ids = cluster.ids();
    for event in 0..events {
        let id = ids[cluster.random.below(ids.len())];
        match cluster.random.below(1_000) {
            0..2 => cluster.isolate(id),
            2..6 => cluster.heal(),
            6..10 if cluster.is_up(id) => cluster.crash(id),
            6..30 if !cluster.is_up(id) => cluster.start(id),
            10..130 if cluster.is_up(id) => {
                cluster.propose(id, &event.to_be_bytes());
            }
            130..160 if cluster.is_up(id) => {
                cluster.read(id);
            }
            160..500 => cluster.tick(id),
            _ => cluster.deliver(),
        }
    }
}

fn other_than(cluster: &Cluster, ids: &[RaftId]) -> RaftId {
    cluster.ids().into_iter().find(|id| !ids.contains(id)).unwrap()
}

fn change(cluster: &mut Cluster, leader: RaftId, change: MembershipChange) -> Result<(), ProposeError> {
    cluster.driver(leader).propose_membership(change, Vec::new())?;
    cluster.settle(leader);
    Ok(())
}

fn change_once_free(cluster: &mut Cluster, leader: RaftId, wanted: MembershipChange) -> Result<(), ProposeError> {
    for _ in 0..100 {
        match change(cluster, leader, wanted) {
            Err(ProposeError::ChangePending) => cluster.round(),
            other => return other,
        }
    }
    panic!("the first change never ends");
}
