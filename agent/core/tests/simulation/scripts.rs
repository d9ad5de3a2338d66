//! Corners of the protocol, each as a short history, and some of them whole, to be read.

use std::collections::BTreeSet;

use blixard_core::driver::{
    Driver, ELECTION_TICKS, Fate, Membership, MembershipChange, Message, Peer, ProposeError, ReadError, Recovered,
    RefusedMessage, Role, Settings, Write,
};
use blixard_core::types::{NodeId, RaftId};
use raft::eraftpb::{Entry, HardState, MessageType};

use super::disk::LogDisk;
use super::mutations::Mutation;
use super::world::{FOUNDER, MILLISECOND, SECOND, TICK, World};

pub fn three(seed: u64) -> World {
    World::of_voters(seed, 3, Mutation::None)
}

pub fn other_than(world: &World, ids: &[RaftId]) -> RaftId {
    world.ids().into_iter().find(|id| !ids.contains(id)).unwrap()
}

/// Proposes, and waits until everybody who runs has applied it.
pub fn applied_everywhere(world: &mut World, leader: RaftId) -> Vec<u8> {
    let command = world.propose(leader).unwrap();
    world.until("that all apply it", |world| {
        world.running().iter().all(|id| world.servers[id].commands().last() == Some(&command))
    });
    command
}

pub fn acknowledged(world: &mut World, command: &[u8]) -> u64 {
    world.until("an acknowledgement", |world| world.facts.acknowledged.contains_key(command));
    world.facts.acknowledged[command].index
}

/// Compares what happened since `from` with what is kept in the tree.
#[track_caller]
pub fn is_as_kept(world: &World, from: usize, kept: &str) {
    let trace = world.trace[from..].join("\n") + "\n";
    assert_eq!(trace, kept, "the trace is now:\n{trace}");
}

#[test]
fn a_group_of_one_commits_what_it_has_written_and_goes_on_after_a_restart() {
    let mut world = World::founded(1);
    world.run_for(SECOND);
    let from = world.trace.len();
    let first = world.propose(FOUNDER).unwrap();
    assert_eq!(acknowledged(&mut world, &first), 2);
    is_as_kept(&world, from, include_str!("traces/one_voter.txt"));
    world.crash(FOUNDER);
    world.start(FOUNDER);
    let leader = world.elect();
    let second = applied_everywhere(&mut world, leader);
    assert_eq!(world.servers[&FOUNDER].commands(), [first, second]);
}

#[test]
fn an_election_goes_through_pre_votes_votes_and_an_empty_entry() {
    let mut world = three(13);
    world.elect();
    is_as_kept(&world, 0, include_str!("traces/election.txt"));
}

#[test]
fn leadership_goes_where_it_is_handed_and_meanwhile_nothing_is_proposed() {
    let mut world = three(10);
    let old = world.elect();
    world.run_for(SECOND);
    let new = other_than(&world, &[old]);
    let from = world.trace.len();
    world.with(old, |server| server.driver().transfer_leader(new)).unwrap();
    assert_eq!(world.with(old, |server| server.driver().propose(vec![1])), Err(ProposeError::Busy));
    world.until("the new leader", |world| world.status(new).soft.role == Role::Leader);
    assert_eq!((world.elect(), world.status(old).soft.role), (new, Role::Follower));
    is_as_kept(&world, from, include_str!("traces/transfer.txt"));
}

/// A leader, and a server that is down since before what the leader's log begins with.
fn with_a_laggard() -> (World, RaftId, RaftId) {
    let mut world = three(4);
    let leader = world.elect();
    let laggard = other_than(&world, &[leader]);
    world.crash(laggard);
    for _ in 0..120 {
        applied_everywhere(&mut world, leader);
    }
    (world, leader, laggard)
}

#[test]
fn a_laggard_whose_entries_were_cut_gets_a_snapshot_and_what_came_after_it() {
    let (mut world, leader, laggard) = with_a_laggard();
    let from = world.trace.len();
    world.start(laggard);
    world.until("a snapshot", |world| world.facts.snapshots > 0);
    world.until("that it is up to date", |world| world.status(laggard).applied == world.facts.last_committed());
    is_as_kept(&world, from, include_str!("traces/laggard.txt"));
    applied_everywhere(&mut world, leader);
    world.facts.nothing_acknowledged_is_lost(&world.servers[&laggard]);
}

#[test]
fn a_snapshot_outlives_a_crash_and_gets_into_its_tables_though_nothing_comes_behind_it() {
    let (mut world, _, laggard) = with_a_laggard();
    world.start(laggard);
    world.until("a snapshot", |world| world.facts.snapshots > 0);
    world.isolate(laggard);
    let held = world.servers[&laggard].store.checkpoint.clone();
    for _ in 0..2 {
        world.crash(laggard);
        world.start(laggard);
        assert!(world.servers[&laggard].store.installed && world.status(laggard).applied == held.position.index);
    }
    world.until("a checkpoint", |world| !world.servers[&laggard].store.installed);
    assert_eq!(world.servers[&laggard].store.checkpoint, held);
}

#[test]
fn a_follower_that_answers_gets_entries_where_others_have_cut_what_it_lacks() {
    let mut world = three(4);
    let leader = world.elect();
    let laggard = other_than(&world, &[leader]);
    let other = other_than(&world, &[leader, laggard]);
    world.isolate(laggard);
    // All at once: it is back before the leader misses it.
    let commands: Vec<_> = (0..30).map(|_| world.propose(leader).unwrap()).collect();
    let lacks = world.status(laggard).last_index + 1;
    world.until("that the others apply them", |world| {
        [leader, other].iter().all(|id| world.servers[id].commands() == commands)
    });
    world.heal();
    let is_missed = |peer: &Peer| peer.id == laggard && !peer.recently_active;
    assert!(!world.status(leader).peers.iter().any(is_missed), "it was away for too long");
    assert!(world.status(other).first_index > lacks, "it keeps nothing for a laggard");
    world.until("that it is up to date", |world| world.servers[&laggard].commands() == commands);
    assert_eq!(world.facts.snapshots, 0);
}

#[test]
fn only_a_leader_takes_proposals_and_a_follower_names_it() {
    let mut world = three(3);
    let propose = |world: &mut World, id, command| world.with(id, |server| server.driver().propose(command));
    assert_eq!(propose(&mut world, RaftId(1), vec![1]), Err(ProposeError::NotLeader { leader: None }));
    let leader = world.elect();
    let follower = other_than(&world, &[leader]);
    assert_eq!(propose(&mut world, follower, vec![1]), Err(ProposeError::NotLeader { leader: Some(leader) }));
    assert_eq!(propose(&mut world, leader, vec![]), Err(ProposeError::Empty));
    let long = vec![0; blixard_core::command::MAX_BYTES + 1];
    assert!(matches!(propose(&mut world, leader, long), Err(ProposeError::TooLong { .. })));
}

#[test]
fn a_leader_is_busy_while_as_much_waits_for_a_quorum_as_may() {
    let settings = Settings { max_message_bytes: 100, max_uncommitted_bytes: 100, ..Settings::new(FOUNDER, 0) };
    let mut driver = Driver::new(settings, Recovered::blank(FOUNDER)).unwrap();
    let mut log = LogDisk::default();
    driver.campaign_if_alone();
    for _ in 0..2 {
        driver.propose(vec![1; 60]).unwrap();
        assert_eq!(driver.propose(vec![1; 60]), Err(ProposeError::Busy));
        // Its own disk is the quorum.
        let write = driver.turn().unwrap().write;
        let durable = Write::write_all(write.into_iter().collect(), &mut log).unwrap().unwrap();
        driver.persisted(durable);
        assert!(!driver.turn().unwrap().committed.is_empty());
    }
}

#[test]
fn what_an_isolated_leader_took_is_superseded_by_its_successor() {
    let mut world = three(4);
    let old = world.elect();
    applied_everywhere(&mut world, old);
    world.isolate(old);
    let lost = world.propose(old).unwrap();
    world.until("a successor", |world| world.leader().is_some_and(|id| id != old));
    world.until("that the old leader steps down", |world| world.status(old).soft.role != Role::Leader);
    let new = world.leader().unwrap();
    let taken = world.propose(new).unwrap();
    world.heal();
    world.until("an outcome", |world| world.servers[&old].fates.contains(&(lost.clone(), Fate::Superseded)));
    acknowledged(&mut world, &taken);
    assert!(!world.facts.acknowledged.contains_key(&lost));
}

#[test]
fn a_server_that_was_cut_off_does_not_depose_the_leader_when_it_returns() {
    let mut world = three(5);
    let leader = world.elect();
    let term = world.status(leader).term;
    let lonely = other_than(&world, &[leader]);
    world.isolate(lonely);
    world.run_for(5 * SECOND);
    assert_eq!(world.status(lonely).term, term, "it asked before it raised its term");
    world.heal();
    world.run_for(SECOND);
    assert_eq!((world.leader(), world.status(leader).term), (Some(leader), term));
}

#[test]
fn a_server_that_starts_and_hears_nobody_yet_does_not_depose_the_leader() {
    let mut world = three(5);
    let leader = world.elect();
    let term = world.status(leader).term;
    let restarted = other_than(&world, &[leader]);
    world.crash(restarted);
    world.start(restarted);
    // It is heard, and what the others say gets lost.
    world.network.cut.extend(world.ids().into_iter().map(|id| (id, restarted)));
    world.until("that it stands", |world| world.status(restarted).soft.role == Role::Candidate);
    world.run_for(SECOND);
    assert_eq!((world.leader(), world.status(leader).term), (Some(leader), term));
    world.heal();
    world.until("that it follows", |world| world.status(restarted).soft.leader == Some(leader));
    assert_eq!((world.leader(), world.status(leader).term), (Some(leader), term));
}

#[test]
fn servers_that_all_start_at_once_mostly_have_a_leader_within_one_timeout() {
    let took = (0..100).map(|seed| {
        let mut world = three(seed);
        world.elect();
        world.ids().into_iter().for_each(|id| world.crash(id));
        world.ids().into_iter().for_each(|id| world.start(id));
        let started = world.now;
        world.until("leader", |world| world.leader().is_some());
        world.now - started
    });
    let mut took: Vec<_> = took.collect();
    took.sort_unstable();
    assert!(took[took.len() / 2] < TICK * u64::from(ELECTION_TICKS), "{took:?}");
}

#[test]
fn a_candidate_gives_its_disk_time_before_it_stands_anew() {
    let terms = (0..100).map(|seed| {
        let mut world = three(seed);
        // Its own vote and the other's together take longer than some wait.
        world.servers.values_mut().for_each(|server| server.sync_time = TICK * u64::from(ELECTION_TICKS - 1));
        world.until("leader", |world| world.leader().is_some());
        world.status(world.leader().unwrap()).term
    });
    let mut terms: Vec<_> = terms.collect();
    terms.sort_unstable();
    assert_eq!(terms[terms.len() / 2], 1, "{terms:?}");
}

#[test]
fn a_leader_keeps_followers_whose_disks_are_slower_than_its_patience() {
    for seed in 0..20 {
        let mut world = three(seed);
        let leader = world.elect();
        let term = world.status(leader).term;
        let followers = world.servers.values_mut().filter(|server| server.id != leader);
        followers.for_each(|server| server.sync_time = 3 * TICK * u64::from(ELECTION_TICKS));
        for _ in 0..5 {
            let command = world.propose(leader).expect("it leads");
            acknowledged(&mut world, &command);
        }
        assert_eq!((world.leader(), world.status(leader).term), (Some(leader), term), "seed {seed}");
    }
}

#[test]
fn a_heartbeat_is_answered_once_its_term_is_on_disk_and_then_ahead_of_all_writes() {
    let membership = Membership { voters: [1, 2, 3].map(RaftId).into(), ..Membership::default() };
    let recovered = Recovered { membership, ..Recovered::blank(FOUNDER) };
    let (mut driver, mut log) = (Driver::new(Settings::new(FOUNDER, 0), recovered).unwrap(), LogDisk::default());
    let from_leader =
        |kind: MessageType| Message { msg_type: kind.into(), from: 2, to: 1, term: 1, ..Message::default() };
    let kinds = |messages: &[Message]| messages.iter().map(Message::msg_type).collect::<Vec<_>>();

    driver.step(from_leader(MessageType::MsgHeartbeat)).unwrap();
    let turn = driver.turn().unwrap();
    assert_eq!(kinds(&turn.send), []);
    let durable = Write::write_all(turn.write.into_iter().collect(), &mut log).unwrap().unwrap();
    assert_eq!(kinds(&driver.persisted(durable)), [MessageType::MsgHeartbeatResponse]);

    let entries = vec![Entry { index: 1, term: 1, ..Entry::default() }];
    driver.step(Message { entries, ..from_leader(MessageType::MsgAppend) }).unwrap();
    let write = driver.turn().unwrap().write;
    driver.step(from_leader(MessageType::MsgHeartbeat)).unwrap();
    assert_eq!(kinds(&driver.turn().unwrap().send), [MessageType::MsgHeartbeatResponse]);
    let durable = Write::write_all(write.into_iter().collect(), &mut log).unwrap().unwrap();
    assert_eq!(kinds(&driver.persisted(durable)), [MessageType::MsgAppendResponse]);
}

#[test]
fn a_disk_that_was_put_back_is_seen_though_its_log_is_longer_and_other_messages_of_the_term_come_first() {
    let membership = Membership { voters: [1, 2, 3].map(RaftId).into(), ..Membership::default() };
    let entry = |index, term| Entry { index, term, ..Entry::default() };
    let entries = (1..10).map(|index| entry(index, 1)).collect();
    let hard_state = HardState { term: 1, ..HardState::default() };
    let recovered = Recovered { membership, entries, hard_state, ..Recovered::blank(FOUNDER) };
    let (mut driver, mut log) = (Driver::new(Settings::new(FOUNDER, 0), recovered).unwrap(), LogDisk::default());
    let mut hears = |kind: MessageType, at: (u64, u64), entries, commit| {
        let (index, log_term) = at;
        let from_leader = Message { msg_type: kind.into(), from: 2, to: 1, term: 2, ..Message::default() };
        let heard = driver.step(Message { index, log_term, entries, commit, ..from_leader });
        let turns = std::iter::from_fn(|| driver.turn());
        let durable = Write::write_all(turns.filter_map(|turn| turn.write).collect(), &mut log).unwrap();
        if let Some(durable) = durable {
            driver.persisted(durable);
        }
        heard
    };
    let is_lost = |heard| matches!(heard, Err(RefusedMessage::LostLog(_)));
    // The leader has its word for more than this probe would find.
    hears(MessageType::MsgAppend, (8, 2), vec![], 8).unwrap();
    assert!(is_lost(hears(MessageType::MsgHeartbeat, (0, 0), vec![], 8)));
    // What it has acknowledged since is no more than that.
    hears(MessageType::MsgAppend, (5, 1), vec![], 5).unwrap();
    hears(MessageType::MsgHeartbeat, (0, 0), vec![], 5).unwrap();
    assert!(is_lost(hears(MessageType::MsgHeartbeat, (0, 0), vec![], 6)));
    hears(MessageType::MsgAppend, (5, 1), vec![entry(6, 2)], 5).unwrap();
    hears(MessageType::MsgHeartbeat, (0, 0), vec![], 6).unwrap();
}

#[test]
fn a_learner_gets_the_log_and_is_promoted_only_once_it_keeps_up() {
    let mut world = World::founded(6);
    for _ in 0..40 {
        applied_everywhere(&mut world, FOUNDER);
    }
    let joiner = RaftId(2);
    world.change(FOUNDER, MembershipChange::AddLearner(joiner)).unwrap();
    world.run_for(100 * MILLISECOND);
    for id in [joiner, RaftId(9)] {
        assert_eq!(world.change(FOUNDER, MembershipChange::Promote(id)), Err(ProposeError::NotCaughtUp { id }));
    }
    world.install(joiner);
    let keeps_up = |world: &World| world.status(FOUNDER).peers.iter().all(|peer| peer.caught_up);
    world.until("a learner that keeps up", keeps_up);
    world.until("that it has all", |world| world.servers[&joiner].commands().len() == 40);
    assert_eq!(world.facts.snapshots, 1, "the log's beginning was cut");
    world.change(FOUNDER, MembershipChange::Promote(joiner)).unwrap();
    let both = BTreeSet::from([FOUNDER, joiner]);
    world.until("two voters", |world| world.ids().iter().all(|id| world.status(*id).membership.voters == both));
    assert!(world.status(joiner).membership.learners.is_empty());
}

#[test]
fn a_second_change_of_the_servers_waits_for_the_first_and_no_leader_removes_itself() {
    let mut world = three(7);
    let leader = world.elect();
    world.change(leader, MembershipChange::AddLearner(RaftId(8))).unwrap();
    let second = world.change(leader, MembershipChange::AddLearner(RaftId(9)));
    assert_eq!(second, Err(ProposeError::ChangePending));
    world.until("the first", |world| world.status(leader).membership.learners.len() == 1);
    let itself = world.change(leader, MembershipChange::Remove(leader));
    assert_eq!(itself, Err(ProposeError::RemovesLeader { id: leader }));
}

#[test]
fn who_is_removed_goes_once_a_start_of_another_would_do_without_it() {
    let mut world = World::of_voters(3, 2, Mutation::None);
    let leader = world.elect();
    let removed = other_than(&world, &[leader]);
    world.change(leader, MembershipChange::Remove(removed)).unwrap();
    world.until("the removal", |world| world.status(leader).membership.voters.len() == 1);
    let may_go = |world: &World| world.servers[&leader].dismisses(NodeId(removed.0), removed);
    assert!(!may_go(&world), "a crash would take back that the removal is committed, and need it for that");
    world.until("that it may go", may_go);
    world.crash(leader);
    world.crash(removed);
    world.start(leader);
    assert_eq!(world.elect(), leader);
    applied_everywhere(&mut world, leader);
}

#[test]
fn a_leader_that_its_predecessor_removed_steps_down_and_the_others_go_on() {
    let mut world = three(8);
    let old = world.elect();
    let removed = other_than(&world, &[old]);
    let third = other_than(&world, &[old, removed]);
    // The removal reaches the one it removes, and nobody knows yet that it committed.
    world.isolate(third);
    world.change(old, MembershipChange::Remove(removed)).unwrap();
    world.until("the entry", |world| world.servers[&removed].log.durable.last() == world.status(old).last_index);
    world.crash(old);
    world.heal();
    world.until("the removal", |world| world.status(removed).membership.voters.len() == 2);
    assert_eq!(world.status(removed).soft.role, Role::Follower, "only it could lead, and it did");
    world.start(old);
    world.until("a leader among those left", |world| {
        world.leader().is_some_and(|id| id != removed && world.status(id).membership.voters.len() == 2)
    });
    let leader = world.leader().unwrap();
    let command = world.propose(leader).unwrap();
    acknowledged(&mut world, &command);
}

#[test]
fn reads_are_answered_on_the_leader_and_on_a_follower() {
    let mut world = three(9);
    let read = world.with(RaftId(1), |server| server.driver().read_index());
    assert_eq!(read, Err(ReadError::NoLeader));
    let leader = world.elect();
    let follower = other_than(&world, &[leader]);
    applied_everywhere(&mut world, leader);
    for (id, answered) in [(leader, 1), (follower, 2)] {
        world.read(id);
        world.until("an answer", |world| world.facts.reads == answered);
    }
}

#[test]
#[should_panic(expected = "the node must stop")]
fn a_write_that_failed_is_never_passed_over() {
    let mut driver = Driver::new(Settings::new(FOUNDER, 0), Recovered::blank(FOUNDER)).unwrap();
    driver.campaign_if_alone();
    drop(driver.turn().unwrap().write.unwrap());
    driver.propose(vec![1]).unwrap();
    let write = driver.turn().unwrap().write.unwrap();
    let durable = Write::write_all(vec![write], &mut LogDisk::default()).unwrap().unwrap();
    let _ = driver.persisted(durable);
}
