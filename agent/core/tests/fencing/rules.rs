//! Each rule in the history in which it matters: it holds there, and whoever breaks it is caught there.

use std::panic::{AssertUnwindSafe, catch_unwind};

use blixard_core::command::Command;
use blixard_core::state::Takeover;
use blixard_core::types::{Availability, Failover, InstanceId, LeaseTerms, NodeEpoch, NodeId};

use super::cluster::Declared;
use super::host::UnitName;
use super::mutations::Mutation;
use super::world::{HostId, MILLISECOND, SECOND, Time, World};

mod anew;
mod back;
mod stale;

/// The worker on which the instance is in the beginning, and another one, to which it goes.
const HERE: HostId = HostId(4);
const THERE: HostId = HostId(5);
/// Histories of each rule, and those in which whoever breaks it has to be caught: they differ in who leads, and in when
/// things happen.
const SEEDS: u64 = 6;
const SEEDS_TO_CATCH: u64 = 100;

type History = fn(u64, Mutation);

/// Lives through a history as it has to be, and then until somebody who does one thing wrong is caught: as what, `expected` says.
#[track_caller]
fn is_kept(history: History, mutation: Mutation, expected: &[&str]) {
    (0..SEEDS).for_each(|seed| history(seed, Mutation::None));
    let caught = (0..SEEDS_TO_CATCH).find_map(|seed| catch_unwind(AssertUnwindSafe(|| history(seed, mutation))).err());
    let cause = caught.unwrap_or_else(|| panic!("{mutation:?} was not seen in {SEEDS_TO_CATCH} histories"));
    let text = cause.downcast_ref::<String>().map(String::as_str).unwrap_or_default();
    assert!(expected.iter().any(|expected| text.contains(expected)), "{mutation:?} was seen as: {text}");
}

const TWICE: &str = "two live units";

fn web() -> InstanceId {
    "web-0".parse().expect("it is a name")
}

fn unit() -> UnitName {
    (web(), Failover::Automatic)
}

/// Three servers and four workers, of which two are open; the first one runs the instance.
fn running(seed: u64, failover: Failover, mutation: Mutation) -> World {
    running_on(3, seed, failover, mutation)
}

/// As [`running`], with so many servers instead.
fn running_on(servers: usize, seed: u64, failover: Failover, mutation: Mutation) -> World {
    let mut declared = Declared::new(servers);
    declared.vm("web", 1, failover);
    let mut world = World::new(seed, 7, declared, mutation);
    world.until("leases", World::all_are_armed);
    for host in [1, 2, 3, 6, 7] {
        cordon(&mut world, HostId(host));
    }
    move_to(&mut world, HERE);
    world
}

/// A person's word, which reaches the leader.
fn say(world: &mut World, command: Command) {
    world.until("leader", |world| world.leader().is_some());
    let leader = world.leader().expect("as just seen");
    world.propose(leader, command);
    world.run_for(100 * MILLISECOND);
}

fn move_to(world: &mut World, id: HostId) {
    let (to, end) = (world.hosts[&id].node, world.now + 90 * SECOND);
    while world.alive(&web()) != [id] {
        assert!(world.now < end, "it doesn't move to {id:?}: {}", world.shown());
        say(world, Command::Move { instance: web(), to, abandon_volumes: false });
        world.run_for(SECOND);
    }
}

fn takes_over(world: &mut World) {
    world.until("takeover", |world| world.alive(&web()) == [THERE]);
}

/// The two that don't lead.
fn followers(world: &World) -> [HostId; 2] {
    let leader = world.leader();
    let others: Vec<HostId> = (1..=3).map(HostId).filter(|id| Some(*id) != leader).collect();
    others.try_into().expect("there are three servers")
}

/// Whatever the servers tell the worker takes so long.
fn hears_late(world: &mut World, time: Time) {
    world.network.slow.extend((1..=3).map(|server| ((HostId(server), HERE), time)));
}

fn cordon(world: &mut World, id: HostId) {
    let (node, availability) = (world.hosts[&id].node, Availability::Cordoned);
    say(world, Command::SetAvailability { node, availability, abandon_volumes: false });
}

fn open(world: &mut World, id: HostId) {
    let (node, availability) = (world.hosts[&id].node, Availability::Active);
    say(world, Command::SetAvailability { node, availability, abandon_volumes: false });
}

/// Hands leadership over.
fn transfer(world: &mut World, to: HostId) {
    while world.leader() != Some(to) {
        if let Some(leader) = world.leader() {
            let raft = world.server(to).expect("it is a server").id;
            let server = world.server(leader).expect("it leads");
            // Refused while it is under way.
            let _ = server.driver.transfer_leader(raft);
        }
        world.run_for(200 * MILLISECOND);
    }
}

/// The worker's agent stands still for so long between its node's arming and the moment when its fence would hear of that:
/// the instance is placed there, at an epoch that nobody renews.
fn armed_and_silent(seed: u64, mutation: Mutation, time: Time) -> World {
    let mut world = running(seed, Failover::Automatic, mutation);
    let (node, elsewhere) = (NodeId(HERE.0), NodeId(THERE.0));
    let epoch = world.truth.nodes()[&node].lease.epoch;
    cordon(&mut world, THERE);
    world.kill_fence(HERE);
    world.until("arming", |world| world.truth.nodes()[&node].lease.epoch > epoch);
    world.pause_fence(HERE, 600 * MILLISECOND);
    world.until("a placement that it knows of", |world| {
        let agent = world.hosts[&HERE].agent.as_ref().expect("it runs");
        let instance = agent.known().1.instances().get(&web());
        let placement = instance.and_then(|instance| instance.placement.as_ref());
        placement.is_some_and(|placement| placement.node == node && placement.epoch > epoch)
    });
    let end = world.now + time;
    world.host(HERE).agent_paused_until = end;
    let availability = Availability::Active;
    say(&mut world, Command::SetAvailability { node: elsewhere, availability, abandon_volumes: false });
    world
}

#[test]
fn a_deadline_counts_from_when_the_renewal_was_sent() {
    let history = |seed, mutation| {
        let mut world = running(seed, Failover::Automatic, mutation);
        for slow in [2_500, 5_000] {
            hears_late(&mut world, slow * MILLISECOND);
            world.run_for(6 * SECOND);
        }
        world.isolate(HERE);
        takes_over(&mut world);
    };
    is_kept(history, Mutation::CountsFromReceipt, &[TWICE]);
}

#[test]
fn a_new_leader_waits_as_if_it_had_granted_everybody_everything() {
    let history = |seed, mutation| {
        let mut world = running(seed, Failover::Automatic, mutation);
        let (first, [second, _]) = (world.leader().expect("somebody leads"), followers(&world));
        world.run_for(2 * SECOND);
        transfer(&mut world, second);
        world.run_for(10 * SECOND);
        world.isolate(HERE);
        transfer(&mut world, first);
        takes_over(&mut world);
    };
    is_kept(history, Mutation::KeepsGrants, &[TWICE]);
}

#[test]
fn a_leader_waits_until_a_fence_has_stopped_what_does_not_die() {
    let history = |seed, mutation| {
        let mut world = running(seed, Failover::Automatic, mutation);
        world.isolate(HERE);
        let now = world.now;
        world.host(HERE).stuck_until = now + 60 * SECOND;
        takes_over(&mut world);
        assert!(world.facts.resets > 0, "its watchdog has reset the host");
    };
    is_kept(history, Mutation::WaitsForTheLeaseOnly, &[TWICE]);
}

#[test]
fn a_leader_grants_nothing_that_no_quorum_has_confirmed() {
    let history = |seed, mutation| {
        let mut world = running(seed, Failover::Automatic, mutation);
        let (first, others) = (world.leader().expect("somebody leads"), followers(&world));
        for other in others {
            world.network.cut.extend([(first, other), (other, first), (HERE, other), (other, HERE)]);
        }
        // It stands still most of the time, so it doesn't notice.
        for _ in 0..5 {
            let now = world.now;
            world.host(first).agent_paused_until = now + 4_300 * MILLISECOND;
            world.run_for(4_400 * MILLISECOND);
        }
        takes_over(&mut world);
    };
    is_kept(history, Mutation::GrantsWithoutQuorum, &[TWICE]);
}

#[test]
fn what_is_about_to_end_is_not_granted_any_more() {
    let history = |seed, mutation| {
        // It asks at about the time when that is decided.
        let mut world = armed_and_silent(seed, mutation, 8_300 * MILLISECOND + seed * 50 * MILLISECOND);
        for server in 1..=3 {
            let others = (1..=3).filter(|other| *other != server);
            let ways = others.map(|other| ((HostId(server), HostId(other)), 120 * MILLISECOND));
            world.network.slow.extend(ways);
        }
        world.until("another start", |world| !world.alive(&web()).is_empty());
        world.network.slow.clear();
        world.isolate(HERE);
        takes_over(&mut world);
    };
    is_kept(history, Mutation::GrantsAfterItsMark, &[TWICE]);
}

#[test]
fn a_new_leader_grants_nothing_before_it_knows_what_was_decided() {
    let history = |seed, mutation| {
        let mut world = armed_and_silent(seed, mutation, 14 * SECOND);
        for follower in followers(&world) {
            world.server(follower).expect("it follows").is_behind = true;
        }
        takes_over(&mut world);
        let leader = world.leader().expect("it has decided that");
        world.power_off(leader, None);
        world.run_for(8 * SECOND);
    };
    is_kept(history, Mutation::GrantsBeforeItKnowsAll, &[TWICE]);
}

#[test]
fn an_epoch_is_not_renewed_by_another_one_of_the_same_node() {
    let history = |seed, mutation| {
        let mut world = armed_and_silent(seed, mutation, 16 * SECOND);
        takes_over(&mut world);
        let disk = world.hosts[&HERE].disk.clone();
        world.install(HostId(104), NodeId(HERE.0), disk);
        let epoch = world.truth.nodes()[&NodeId(HERE.0)].lease.epoch;
        world.until("arming of the copy", |world| world.truth.nodes()[&NodeId(HERE.0)].lease.epoch > epoch);
        world.network.deaf.insert(HERE);
        world.run_for(8 * SECOND);
    };
    is_kept(history, Mutation::GrantsAnyEpoch, &[TWICE]);
}

#[test]
fn an_arming_that_was_long_under_way_ends_no_epoch() {
    let history = |seed, mutation| {
        let mut world = running(seed, Failover::Automatic, mutation);
        let lease = world.truth.nodes()[&NodeId(HERE.0)].lease;
        let (node, arming) = (NodeId(HERE.0), lease.arming().expect("it is armed"));
        let expected = NodeEpoch(lease.epoch.0 - 1);
        world.propose(HERE, Command::Arm { node, expected, nonce: arming.nonce, machine: arming.machine });
        world.run_for(3 * SECOND);
        assert_eq!(world.alive(&web()), [HERE], "it is to run on");
    };
    is_kept(history, Mutation::TakesAnyArming, &[TWICE, "it is to run on"]);
}

#[test]
fn a_copy_of_a_disk_on_another_machine_waits_until_the_first_one_is_fenced() {
    let history = |seed, mutation| {
        let mut world = running(seed, Failover::Automatic, mutation);
        let disk = world.hosts[&HERE].disk.clone();
        world.install(HostId(104), NodeId(HERE.0), disk);
        world.run_for(20 * SECOND);
        // That there is another boot has ended the lease of the first one: either may have armed since.
        let alive = world.alive(&web());
        assert_eq!(alive.len(), 1);
        world.isolate(alive[0]);
        world.until("takeover", |world| !world.alive(&web()).is_empty() && world.alive(&web()) != alive);
    };
    is_kept(history, Mutation::LetsClonesArm, &[TWICE]);
}

#[test]
fn what_a_leader_has_decided_dies_with_its_term() {
    let history = |seed, mutation| {
        let mut world = running(seed, Failover::Automatic, mutation);
        let (first, [other, _]) = (world.leader().expect("somebody leads"), followers(&world));
        open(&mut world, other);
        // Else it would wait, as it has renewed nobody's lease for long.
        (5..=7).for_each(|host| world.isolate(HostId(host)));
        world.until("brake", |world| matches!(world.truth.takeover(), Takeover::Frozen { .. }));
        say(&mut world, Command::ResumeTakeover);
        // What it does first, once it goes on, is chance.
        world.run_for(20 * MILLISECOND * (seed % 5));
        let now = world.now;
        world.host(first).agent_paused_until = now + 12 * SECOND;
        world.network.cut.clear();
        world.run_for(20 * SECOND);
        assert_eq!(world.alive(&web()), [HERE], "it is to run on");
    };
    // Whether the one that is to run on hears of it in time is chance.
    is_kept(history, Mutation::ForwardsDecisions, &[TWICE, "it is to run on"]);
}

#[test]
fn what_was_stopped_does_not_start_again() {
    let history = |seed, mutation| {
        let mut world = running(seed, Failover::Automatic, mutation);
        let file = world.hosts[&HERE].installed[&web()].clone();
        move_to(&mut world, THERE);
        // Somebody brings the file of its unit back, and starts it.
        world.host(HERE).installed.insert(web(), file);
        world.type_start(HERE, web(), Failover::Automatic);
        world.run_for(SECOND);
        assert_eq!(world.alive(&web()), [THERE]);
    };
    is_kept(history, Mutation::ForgetsTombstones, &[TWICE]);
}

#[test]
fn nothing_starts_in_the_last_second_of_a_lease() {
    let history = |seed, mutation| {
        let mut world = running(seed, Failover::Automatic, mutation);
        world.isolate(HERE);
        for _ in 0..12 {
            world.run_for(500 * MILLISECOND);
            world.crash_unit(HERE, &unit());
        }
        takes_over(&mut world);
    };
    is_kept(history, Mutation::StartsAtTheEnd, &["before its lease ends"]);
}

#[test]
fn nothing_starts_without_a_lease_whoever_starts_it() {
    let history = |seed, mutation| {
        let mut world = running(seed, Failover::Automatic, mutation);
        world.isolate(HERE);
        takes_over(&mut world);
        assert!(world.hosts[&HERE].installed.contains_key(&web()), "it is installed there still");
        world.type_start(HERE, web(), Failover::Automatic);
        world.run_for(SECOND);
        assert_eq!(world.alive(&web()), [THERE]);
    };
    is_kept(history, Mutation::StartsUnasked, &[TWICE]);
}

#[test]
fn a_fence_is_armed_only_once_nothing_runs() {
    let history = |seed, mutation| {
        let mut world = running(seed, Failover::Automatic, mutation);
        cordon(&mut world, HERE);
        let now = world.now;
        world.host(HERE).stuck_until = now + 60 * SECOND;
        world.kill_fence(HERE);
        world.run_for(9 * SECOND);
    };
    is_kept(history, Mutation::ArmsBeforeItIsEmpty, &[TWICE]);
}

#[test]
fn what_neither_its_fence_nor_systemd_stops_ends_with_a_reset_of_its_host() {
    let history = |seed, mutation| {
        let mut world = running(seed, Failover::Automatic, mutation);
        let now = world.now;
        world.host(HERE).systemd_paused_until = now + 60 * SECOND;
        world.kill_fence(HERE);
        world.isolate(HERE);
        takes_over(&mut world);
        assert!(world.facts.resets > 0, "its watchdog has reset the host");
    };
    is_kept(history, Mutation::LacksItsDevice, &[TWICE]);
}

#[test]
fn what_an_instance_was_placed_as_holds_whatever_is_declared_since() {
    let history = |seed, mutation| {
        for failover in [Failover::Manual, Failover::Automatic] {
            let mut world = running(seed, failover, mutation);
            world.isolate(HERE);
            let other = if failover == Failover::Manual { Failover::Automatic } else { Failover::Manual };
            world.declared.vm("web", 1, other);
            let declared = world.declared.command();
            say(&mut world, declared);
            world.run_for(14 * SECOND);
            let stays = if failover == Failover::Manual { HERE } else { THERE };
            assert_eq!(world.alive(&web()), [stays]);
        }
    };
    is_kept(history, Mutation::FreesByDeclaration, &[TWICE]);
}

#[test]
fn arming_frees_nothing_that_is_manual() {
    let history = |seed, mutation| {
        let mut world = running(seed, Failover::Manual, mutation);
        cordon(&mut world, HERE);
        hears_late(&mut world, 2 * SECOND);
        world.kill_fence(HERE);
        world.run_for(5 * SECOND);
        assert_eq!(world.alive(&web()), [HERE]);
    };
    is_kept(history, Mutation::FreesManualOnArm, &[TWICE]);
}

#[test]
fn what_is_said_to_have_stopped_has() {
    let history = |seed, mutation| {
        let mut world = running(seed, Failover::Automatic, mutation);
        move_to(&mut world, THERE);
        move_to(&mut world, HERE);
    };
    is_kept(history, Mutation::AcknowledgesTooEarly, &[TWICE]);
}

#[test]
fn nobody_is_taken_for_dead_who_may_have_a_lease() {
    let history = |seed, mutation| {
        let mut world = running(seed, Failover::Automatic, mutation);
        world.isolate(HERE);
        world.until("silence", |world| !world.truth.worker_status(NodeId(HERE.0)).expect("a member").alive);
        say(&mut world, Command::ConfirmDead { node: NodeId(HERE.0), abandon_volumes: false });
        takes_over(&mut world);
    };
    is_kept(history, Mutation::ConfirmsWhoIsGranted, &[TWICE]);
}

#[test]
fn a_copy_of_a_disk_does_not_speak_for_what_runs_on_the_first_machine() {
    let history = |seed, mutation| {
        let mut world = running(seed, Failover::Automatic, mutation);
        let disk = world.hosts[&HERE].disk.clone();
        world.install(HostId(104), NodeId(HERE.0), disk);
        world.run_for(3 * SECOND);
        move_to(&mut world, THERE);
    };
    is_kept(history, Mutation::SpeaksUnarmed, &[TWICE]);
}

#[test]
fn a_host_that_sleeps_has_stopped_before_what_its_fence_could_not_stop_in_time() {
    let history = |seed, mutation| {
        let mut world = running(seed, Failover::Automatic, mutation);
        world.suspend(HERE, 30 * SECOND);
        takes_over(&mut world);
        world.run_for(20 * SECOND);
        assert_eq!(world.alive(&web()), [THERE]);
    };
    is_kept(history, Mutation::SleepsAsItIs, &[TWICE]);
}

#[test]
fn takeover_waits_where_many_fall_silent_at_once_however_short_leases_are() {
    for seed in 0..SEEDS {
        let mut world = running(seed, Failover::Automatic, Mutation::None);
        world.declared.lease = LeaseTerms::new(1003, 1, 2000, 3024).expect("they fit");
        let declared = world.declared.command();
        say(&mut world, declared);
        (1..=7).for_each(|host| world.kill_fence(HostId(host)));
        world.run_for(3 * SECOND);
        world.until("leases", World::all_are_armed);
        let (fenced, frozen) = (world.facts.fenced, world.facts.frozen);
        (4..=6).for_each(|host| world.isolate(HostId(host)));
        world.run_for(20 * SECOND);
        assert_eq!((world.facts.fenced, world.facts.frozen), (fenced, frozen + 1), "seed {seed}");
        world.network.cut.clear();
        world.until("return", |world| world.truth.takeover() == Takeover::Free && world.all_are_armed());
    }
}

#[test]
fn with_fewer_than_three_servers_the_loss_of_one_stops_nothing() {
    let history = |seed, mutation| {
        let mut world = running_on(1, seed, Failover::Automatic, mutation);
        world.power_off(HostId(1), None);
        for _ in 0..20 {
            world.run_for(SECOND);
            assert_eq!(world.alive(&web()), [HERE], "it is to run on");
        }
        world.wake(HostId(1));
        world.until("leader", |world| world.leader().is_some());
        for _ in 0..10 {
            world.run_for(SECOND);
            assert_eq!(world.alive(&web()), [HERE], "it is to run on");
        }
    };
    is_kept(history, Mutation::PlacesAsDeclared, &["it is to run on"]);
}
