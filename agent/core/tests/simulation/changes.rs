//! Changes of the servers, each as a short history that is kept whole, to be read.

use std::collections::BTreeSet;

use blixard_core::driver::MembershipChange;
use blixard_core::types::{NodeId, RaftId};

use super::scripts::{acknowledged, applied_everywhere, is_as_kept, other_than, three};
use super::world::{FOUNDER, SECOND, World};

/// A founder, and a learner that keeps up with it.
fn with_a_learner(kept: &str) -> (World, RaftId) {
    let mut world = World::founded(6);
    applied_everywhere(&mut world, FOUNDER);
    let (from, learner) = (world.trace.len(), RaftId(2));
    world.change(FOUNDER, MembershipChange::AddLearner(learner)).unwrap();
    world.install(learner);
    let keeps_up = |world: &World| world.status(FOUNDER).peers.iter().all(|peer| peer.caught_up);
    world.until("a learner that keeps up", |world| !world.status(FOUNDER).peers.is_empty() && keeps_up(world));
    is_as_kept(&world, from, kept);
    (world, learner)
}

fn until_voters(world: &mut World, ids: &[RaftId]) {
    let voters: BTreeSet<RaftId> = ids.iter().copied().collect();
    world.until("the servers", |world| ids.iter().all(|id| world.status(*id).membership.voters == voters));
}

#[test]
fn a_learner_is_added_and_promoted_and_removed_each_by_one_entry() {
    let (mut world, learner) = with_a_learner(include_str!("traces/learner_added.txt"));
    let from = world.trace.len();
    world.change(FOUNDER, MembershipChange::Promote(learner)).unwrap();
    until_voters(&mut world, &[FOUNDER, learner]);
    is_as_kept(&world, from, include_str!("traces/learner_promoted.txt"));
    world.run_for(SECOND);
    let from = world.trace.len();
    world.change(FOUNDER, MembershipChange::Remove(learner)).unwrap();
    until_voters(&mut world, &[FOUNDER]);
    is_as_kept(&world, from, include_str!("traces/server_removed.txt"));
}

#[test]
fn a_leader_is_removed_by_the_one_that_it_has_handed_over_to() {
    let mut world = three(10);
    let old = world.elect();
    world.run_for(SECOND);
    let (from, new) = (world.trace.len(), other_than(&world, &[old]));
    world.with(old, |server| server.driver().transfer_leader(new)).unwrap();
    world.until("an entry of its term", |world| world.leader() == Some(new) && world.status(new).commit > 1);
    world.change(new, MembershipChange::Remove(old)).unwrap();
    let third = other_than(&world, &[old, new]);
    until_voters(&mut world, &[new, third]);
    is_as_kept(&world, from, include_str!("traces/leader_removed.txt"));
    let goes = |world: &World| world.servers[&new].dismisses(NodeId(old.0), old);
    world.until("that it may go", goes);
}

/// Three servers whose leader crashes with a change that it has on its disk and hasn't applied.
fn with_a_pending_change(reaches_others: bool) -> (World, RaftId, usize) {
    let mut world = three(12);
    let leader = world.elect();
    applied_everywhere(&mut world, leader);
    world.run_for(SECOND);
    let from = world.trace.len();
    if !reaches_others {
        world.isolate(leader);
    }
    world.change(leader, MembershipChange::AddLearner(RaftId(9))).unwrap();
    let last = world.status(leader).last_index;
    let holders = if reaches_others { world.ids() } else { vec![leader] };
    world.until("the entry on disk", |world| holders.iter().all(|id| world.servers[id].log.durable.last() == last));
    assert!(world.status(leader).membership.learners.is_empty(), "it isn't applied");
    world.crash(leader);
    (world, leader, from)
}

#[test]
fn a_change_that_others_hold_is_applied_by_the_successor_of_a_leader_that_crashed() {
    let (mut world, old, from) = with_a_pending_change(true);
    let learners = BTreeSet::from([RaftId(9)]);
    world.until("the change", |world| {
        world.running().iter().all(|id| world.status(*id).membership.learners == learners)
    });
    is_as_kept(&world, from, include_str!("traces/change_survives.txt"));
    world.start(old);
    world.until("the change there", |world| world.status(old).membership.learners == learners);
}

#[test]
fn a_change_that_nobody_else_holds_is_superseded_and_another_one_can_be_made() {
    let (mut world, old, from) = with_a_pending_change(false);
    world.heal();
    world.until("a successor", |world| world.leader().is_some());
    let (new, at) = (world.elect(), world.servers[&old].log.durable.last());
    world.until("another entry in its place", |world| world.running().iter().all(|id| world.status(*id).applied >= at));
    is_as_kept(&world, from, include_str!("traces/change_superseded.txt"));
    world.start(old);
    world.change(new, MembershipChange::AddLearner(RaftId(8))).unwrap();
    let learners = BTreeSet::from([RaftId(8)]);
    world.until("the other change", |world| {
        world.ids().iter().all(|id| world.status(*id).membership.learners == learners)
    });
    let command = world.propose(new).unwrap();
    acknowledged(&mut world, &command);
}

#[test]
fn who_votes_since_a_change_is_known_after_a_crash_of_all() {
    let (mut world, learner) = with_a_learner(include_str!("traces/learner_added.txt"));
    world.change(FOUNDER, MembershipChange::Promote(learner)).unwrap();
    until_voters(&mut world, &[FOUNDER, learner]);
    world.run_for(SECOND / 10);
    for id in world.ids() {
        world.crash(id);
        world.start(id);
        assert!(world.status(id).membership.voters.contains(&learner), "server {id} counts on the voters of before");
    }
}
