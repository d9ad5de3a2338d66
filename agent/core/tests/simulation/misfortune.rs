//! One history: things go wrong for a while, as its seed has it, then all is well again, and has to be.

use std::collections::BTreeSet;

use blixard_core::membership;
use blixard_core::types::{NodeId, NodeRole, RaftId};

use super::members;
use super::mutations::Mutation;
use super::world::{MILLISECOND, SECOND, TICK, World};

/// How long things go wrong.
const TROUBLE: u64 = 12 * SECOND;
/// How long the group has, once all is well, to have everybody up to date again.
const RECOVERY: u64 = 30 * SECOND;

/// Lives through the history of `seed`.
///
/// # Panics
/// When something isn't so that has to be.
pub fn live(seed: u64, mutation: Mutation) -> World {
    let size = [1, 3, 3, 3, 5][usize::try_from(seed % 5).unwrap()];
    let mut world = World::of_voters(seed, size, mutation);
    // Some have a clock of their own from the start.
    for server in world.servers.values_mut() {
        server.clock_percent = 90 + (seed / 7 + server.id.0 * 3) % 21;
    }
    world.is_managed = true;
    let mut end = world.now + TROUBLE;
    while world.now < end {
        let pause = world.random.between(MILLISECOND, 40 * MILLISECOND);
        world.run_for(pause);
        clients(&mut world);
        if world.random.percent(12) {
            trouble(&mut world);
        }
        if world.random.percent(4) {
            members::change(&mut world);
        }
        if world.random.percent(6) {
            let ids = world.ids();
            let id = world.random.one_of(&ids).expect("there are servers");
            world.images.insert(id, world.servers[&id].disks());
        }
        if world.random.below(250) == 0 {
            let begun = world.now;
            members::change_disks(&mut world);
            // All was well meanwhile.
            end += world.now - begun;
        }
        let overtaken = world.running().into_iter().find(|id| world.servers[id].store.installed);
        if let Some(id) = overtaken.filter(|_| world.random.percent(30)) {
            ask_too_early(&mut world, id);
        }
    }
    all_is_well_again(&mut world);
    world
}

fn clients(world: &mut World) {
    let running = world.running();
    for _ in 0..world.random.below(4) {
        let Some(id) = world.random.one_of(&running) else { return };
        let id = if world.random.percent(70) { world.leader().unwrap_or(id) } else { id };
        if world.random.percent(80) {
            world.propose(id);
        } else {
            world.read(id);
        }
    }
}

fn trouble(world: &mut World) {
    let ids = world.ids();
    let id = world.random.one_of(&ids).expect("there are servers");
    let is_up = world.servers[&id].is_up();
    match world.random.below(89) {
        0..14 if is_up => world.crash(id),
        0..34 if !is_up && !world.retired.contains(&id) => world.start(id),
        14..20 => world.isolate(id),
        20..28 => {
            let other = world.random.one_of(&ids).expect("there are servers");
            // One way only.
            world.network.cut.insert((id, other));
        }
        28..40 => world.network.cut.clear(),
        40..46 => {
            world.network.drop_percent = world.random.below(20);
            world.network.twice_percent = world.random.below(20);
            world.network.latency = world.random.between(MILLISECOND, 120 * MILLISECOND);
        }
        46..56 => {
            let pause = world.random.between(10 * MILLISECOND, 2 * SECOND);
            let server = world.servers.get_mut(&id).expect("it is one of them");
            server.paused_until = world.now + pause;
        }
        56..66 => {
            let slow = world.random.between(0, 300 * MILLISECOND);
            world.servers.get_mut(&id).expect("it is one of them").sync_time = slow;
        }
        66..70 if is_up => {
            let left = u32::try_from(world.random.below(20)).expect("it is small");
            world.servers.get_mut(&id).expect("it is one of them").log.writes_left = Some(left);
        }
        70..75 => {
            // Where it is down, too: the first that it then writes may be a snapshot.
            let left = u32::try_from(world.random.below(3)).expect("it is small");
            world.servers.get_mut(&id).expect("it is one of them").store.writes_left = Some(left);
        }
        75..80 => {
            let percent = world.random.between(90, 110);
            world.servers.get_mut(&id).expect("it is one of them").clock_percent = percent;
        }
        80..83 if is_up => {
            let late = world.random.between(TICK, 10 * TICK);
            world.tick(id, late);
        }
        83..89 => {
            if let Some(leader) = world.leader() {
                // To whomever: it is the group's to see to it that it goes well.
                let _ = world.with(leader, |server| server.driver().transfer_leader(id));
            }
        }
        _ => {}
    }
}

/// Wants a server that was overtaken by a snapshot to lead, and others to need one while it has none to offer.
fn ask_too_early(world: &mut World, id: RaftId) {
    match world.leader() {
        Some(leader) if leader == id => {
            world.network.cut.clear();
            world.start_all();
            if world.random.percent(30) {
                members::join(world, id, NodeRole::Server);
            }
        }
        Some(leader) => _ = world.with(leader, |server| server.driver().transfer_leader(id)),
        None => {}
    }
}

fn all_is_well_again(world: &mut World) {
    world.heal();
    let end = world.now + RECOVERY;
    let mut last = None;
    loop {
        world.start_all();
        world.run_for(50 * MILLISECOND);
        if let Some(leader) = world.leader() {
            members::bury(world, leader);
            let is_applied = |command: &Vec<u8>| world.facts.acknowledged.contains_key(command);
            if last.as_ref().is_some_and(is_applied) && everybody_is_up_to_date(world, leader) {
                return;
            }
            if last.is_none() || !last.as_ref().is_some_and(is_applied) {
                last = world.propose(leader);
            }
        }
        assert!(world.now < end, "seed {}: the group doesn't recover: {}", world.seed, shown(world));
    }
}

/// The servers are those that are wanted, and have applied everything.
fn everybody_is_up_to_date(world: &World, leader: RaftId) -> bool {
    let servers = world.status(leader).membership;
    let cluster = world.servers[&leader].cluster();
    let rafts = |nodes: BTreeSet<NodeId>| -> BTreeSet<RaftId> {
        nodes.iter().filter_map(|node| cluster.nodes()[node].raft).collect()
    };
    let wanted = membership::wanted(cluster, &servers, |node| world.dead.contains(&node));
    let all: BTreeSet<RaftId> = servers.voters.union(&servers.learners).copied().collect();
    let is_current = |id: &RaftId| {
        let server = world.servers.get(id).filter(|server| server.is_up());
        server.is_some_and(|server| server.status().applied == world.facts.last_committed())
    };
    // Where nobody may be a server, who is one stays it.
    let is_any = wanted.enlisted.is_empty();
    let are_wanted = is_any || (servers.voters == rafts(wanted.voting) && all == rafts(wanted.enlisted));
    if !are_wanted || !all.iter().all(is_current) {
        return false;
    }
    for id in all {
        world.facts.nothing_acknowledged_is_lost(&world.servers[&id]);
    }
    true
}

/// How everything stands, for whoever looks into a history that didn't end well.
fn shown(world: &World) -> String {
    let status = world.running().into_iter().map(|id| (id, world.status(id))).collect::<Vec<_>>();
    let nodes = world.leader().map(|leader| world.servers[&leader].cluster().nodes());
    let World { retired, dead, .. } = world;
    format!("{status:#?} of {nodes:#?}; told that they were removed, or dead: {retired:?}, dead: {dead:?}")
}
