//! One history: things go wrong for a while, as its seed has it, then all is well again, and has to be.

use std::collections::BTreeMap;

use blixard_core::command::Command;
use blixard_core::state::Takeover;
use blixard_core::types::{Availability, Failover, InstanceId, LeaseTerms, NodeId, NodeRole};

use super::cluster::{self, Declared};
use super::host::{Host, UnitName};
use super::mutations::Mutation;
use super::world::{Backup, HostId, MILLISECOND, Network, SECOND, World};

/// How long things go wrong.
const TROUBLE: u64 = 70 * SECOND;
/// How long the cluster has, once all is well, to have everything run that is declared.
const RECOVERY: u64 = 60 * SECOND;
/// Hosts that a history begins with.
const HOSTS: u64 = 5;

/// Lives through the history of `seed`.
///
/// # Panics
/// When something isn't so that has to be.
pub fn live(seed: u64, mutation: Mutation) -> World {
    let servers = if seed.is_multiple_of(7) && !has_copies(seed) { 1 } else { 3 };
    let mut declared = Declared::new(servers);
    declared.vm("web", 3, Failover::Automatic);
    declared.vm("db", 2, if has_copies(seed) { Failover::Automatic } else { Failover::Manual });
    declared.vm("cache", 1, Failover::Automatic);
    let mut world = World::new(seed, HOSTS, declared, mutation);
    world.run_for(6 * SECOND);
    world.network.latency = world.random.between(MILLISECOND, 100 * MILLISECOND);
    let (mut backups, end) = (Vec::new(), world.now + TROUBLE);
    while world.now < end {
        let pause = world.random.between(10 * MILLISECOND, 1200 * MILLISECOND);
        world.run_for(pause);
        match world.random.below(10) {
            0..6 => trouble(&mut world),
            6..8 => persons(&mut world),
            _ => units(&mut world),
        }
        if begins_anew(seed) {
            anew(&mut world, &mut backups);
        }
        repair(&mut world);
    }
    all_is_well_again(&mut world);
    world
}

/// Whether disks are copied in a history. An agent starts on another machine than its disk was made on only once a person
/// has said that the other one is off for good; so nothing in such a history is manual, where it would be that word alone
/// that keeps it from running twice.
fn has_copies(seed: u64) -> bool {
    seed % 3 == 1
}

/// Whether persons let the cluster begin anew in a history. No node comes or goes in it: what a state of before doesn't know
/// of, or takes for a member that is back, is nobody's to wait for.
fn begins_anew(seed: u64) -> bool {
    seed % 5 >= 3 && !has_copies(seed)
}

/// Whether nodes are removed in a history.
fn come_and_go(seed: u64) -> bool {
    !has_copies(seed) && !begins_anew(seed)
}

/// Whether all that goes wrong in a history goes wrong with one host for a while, and then with another: so it is silent for
/// long enough, and the others take over.
fn hits_one(seed: u64) -> bool {
    (seed / 4).is_multiple_of(2)
}

fn victim(world: &World, ids: &[HostId]) -> HostId {
    let turn = world.now / (15 * SECOND) + world.seed;
    ids[usize::try_from(turn % ids.len() as u64).expect("it is one of them")]
}

/// Something goes wrong with a host, or between hosts.
fn trouble(world: &mut World) {
    let ids: Vec<HostId> = world.hosts.keys().copied().collect();
    let leader = world.leader().filter(|_| world.random.percent(25));
    let any = leader.or_else(|| world.random.one_of(&ids)).expect("there are hosts");
    let id = if hits_one(world.seed) { victim(world, &ids) } else { any };
    let (now, is_on) = (world.now, world.hosts[&id].is_on);
    let short = world.random.between(10 * MILLISECOND, 4 * SECOND);
    let long = world.random.between(SECOND, 15 * SECOND);
    let time = if world.random.percent(60) { short } else { long };
    match world.random.below(100) {
        0..14 => world.isolate(id),
        14..22 => {
            let other = world.random.one_of(&ids).expect("there are hosts");
            // One way only.
            world.network.cut.insert((id, other));
        }
        22..32 => world.network.cut.retain(|(from, to)| *from != id && *to != id),
        32..36 => world.network.cut.clear(),
        36..42 => {
            let Network { drop_percent, twice_percent, latency, late, .. } = &mut world.network;
            *drop_percent = world.random.below(25);
            *twice_percent = world.random.below(25);
            *latency = world.random.between(MILLISECOND, 300 * MILLISECOND);
            *late = world.random.between(SECOND, 20 * SECOND);
        }
        42..52 if is_on => world.host(id).agent_paused_until = now + time,
        52..58 if is_on => world.pause_fence(id, time),
        58..64 if is_on => world.host(id).paused_until = now + time,
        64..74 if is_on => world.crash_agent(id, Some(time)),
        74..80 if is_on => world.kill_fence(id),
        80..90 if is_on => {
            let boots = if world.random.percent(70) { time } else { 30 * SECOND };
            match world.random.below(8) {
                0..4 => return world.power_off(id, Some(boots)),
                // Nobody empties it.
                4 | 5 => world.isolate(id),
                _ => {}
            }
            world.reboot(id, boots);
        }
        90..92 if is_on => world.suspend(id, time),
        92..94 if is_on => world.host(id).systemd_paused_until = now + time,
        94..96 => world.host(id).stuck_until = now + time,
        96..100 if has_copies(world.seed) => clone(world, id),
        _ => {}
    }
}

/// A copy of a worker's disk starts on another machine, or the last one ends.
fn clone(world: &mut World, of: HostId) {
    let copies: Vec<HostId> = world.hosts.keys().copied().filter(|id| id.0 > 100).collect();
    if let Some(copy) = copies.into_iter().find(|id| !world.hosts[id].is_retired) {
        world.retire(copy);
    } else if world.hosts[&of].is_worker() && of.0 <= 100 && !world.hosts[&of].is_retired {
        let (id, node) = (HostId(100 + world.number()), world.hosts[&of].node);
        let disk = world.hosts[&of].disk.clone();
        world.install(id, node, disk);
    }
}

/// A unit crashes, or somebody types what nobody should.
fn units(world: &mut World) {
    let all: Vec<(HostId, UnitName)> =
        world.hosts.values().flat_map(|host| host.units.keys().map(|name| (host.id, name.clone()))).collect();
    let picked = (!all.is_empty()).then(|| all[usize::try_from(world.random.below(all.len() as u64)).unwrap()].clone());
    let Some((id, name)) = picked else { return };
    if world.random.percent(60) {
        world.crash_unit(id, &name);
    } else {
        let failover = if world.random.percent(50) { Failover::Automatic } else { Failover::Manual };
        let ids: Vec<HostId> = world.hosts.keys().copied().collect();
        let at = world.random.one_of(&ids).filter(|_| world.random.percent(50)).unwrap_or(id);
        world.type_start(at, name.0, failover);
    }
}

/// Persons declare, move, drain, remove and confirm.
fn persons(world: &mut World) {
    let Some(leader) = world.leader() else { return };
    let nodes: Vec<NodeId> = world.truth.nodes().keys().copied().collect();
    let instances: Vec<InstanceId> = world.truth.instances().keys().cloned().collect();
    let node = world.random.one_of(&nodes).expect("there are some");
    let pick = world.random.below(instances.len().max(1) as u64);
    let instance = instances.get(usize::try_from(pick).unwrap()).cloned();
    let command = match world.random.below(20) {
        0..5 => {
            declare(world);
            world.declared.command()
        }
        5..9 => match instance {
            Some(instance) => Command::Move { instance, to: node, abandon_volumes: false },
            None => return,
        },
        9..12 => {
            let all = [Availability::Active, Availability::Active, Availability::Cordoned, Availability::Draining];
            let availability = world.random.one_of(&all).unwrap();
            Command::SetAvailability { node, availability, abandon_volumes: false }
        }
        12..16 => match confirmed(world) {
            Some(node) => Command::ConfirmDead { node, abandon_volumes: false },
            None => return,
        },
        16 => Command::ResumeTakeover,
        17 => match confirmed(world).filter(|_| nodes.len() > 4 && come_and_go(world.seed)) {
            Some(node) => Command::RemoveNode { node, dead: true, abandon_volumes: false },
            None => return,
        },
        18 if nodes.len() > 4 && come_and_go(world.seed) => {
            Command::RemoveNode { node, dead: false, abandon_volumes: false }
        }
        _ if begins_anew(world.seed) => return,
        _ => return join(world, leader),
    };
    world.propose(leader, command);
}

/// A node of which a person may say that nothing runs on it: each of its hosts is off, or has nothing that is manual, and was
/// placed nothing of that kind. What is automatic is the fence's.
fn confirmed(world: &mut World) -> Option<NodeId> {
    let is_manual = |node: NodeId| {
        world.truth.placed_on(node).any(|id| {
            let placement = world.truth.instances()[id].placement.as_ref().expect("it is placed");
            placement.unit.failover == Failover::Manual
        })
    };
    let is_bare = |node: &NodeId| {
        let hosts = || world.hosts.values().filter(|host| host.node == *node);
        let is_off = hosts().all(|host| !host.is_on);
        let runs = hosts().any(|host| {
            let installed = host.installed.values().any(|unit| unit.failover == Failover::Manual);
            installed || host.units.keys().any(|(_, failover)| *failover == Failover::Manual)
        });
        is_off || (!is_manual(*node) && !runs)
    };
    let is_silent = |node: &NodeId| world.truth.worker_status(*node).is_some_and(|status| !status.alive);
    let nodes = world.truth.nodes().keys().copied().filter(is_silent);
    let nodes: Vec<NodeId> = nodes.filter(is_bare).collect();
    world.random.one_of(&nodes)
}

/// Something else is declared than was.
fn declare(world: &mut World) {
    let names: Vec<&str> = world.declared.vms.keys().copied().collect();
    let name = world.random.one_of(&names).unwrap_or("web");
    let (version, replicas) = (world.random.below(3), world.random.between(1, 3));
    match world.random.below(5) {
        0 | 1 if !has_copies(world.seed) => {
            if let Some(vm) = world.declared.vms.get_mut(name) {
                let is_automatic = vm.failover == Failover::Automatic;
                vm.failover = if is_automatic { Failover::Manual } else { Failover::Automatic };
            }
        }
        2 => {
            if let Some(vm) = world.declared.vms.get_mut(name) {
                vm.version = u32::try_from(version).unwrap();
            }
        }
        3 => world.declared.vm(name, usize::try_from(replicas).unwrap(), Failover::Automatic),
        _ => {
            let other = LeaseTerms::new(6_000, 1_200, 3_000, 10_000).expect("they fit");
            world.declared.lease = if world.random.percent(50) { other } else { LeaseTerms::FAST };
        }
    }
}

/// A server, of whichever epoch of the cluster, is taken for the only one left, or all is begun with a backup; or a host that was
/// a member of before rejoins.
fn anew(world: &mut World, backups: &mut Vec<Backup>) {
    let is_up = |host: &&Host| host.is_on && host.paused_until <= world.now;
    let is_server = |host: &&Host| host.agent.as_ref().is_some_and(|agent| agent.server.is_some());
    let servers: Vec<HostId> = world.hosts.values().filter(is_up).filter(is_server).map(|host| host.id).collect();
    let is_outside = |host: &&Host| !world.is_member(host) && !host.disk.rejoins;
    let others: Vec<HostId> = world.hosts.values().filter(is_up).filter(is_outside).map(|host| host.id).collect();
    if let Some(leader) = world.leader().filter(|_| world.random.percent(5)) {
        backups.push(world.back_up(leader));
    }
    match world.random.below(100) {
        0..3 => {
            if let Some(survivor) = world.random.one_of(&servers) {
                world.recover(survivor);
            }
        }
        3..5 if !backups.is_empty() => {
            let pick = usize::try_from(world.random.below(backups.len() as u64)).expect("it is one of them");
            let (backup, id) = (&backups[pick], HostId(backups[pick].newcomer().0));
            if world.hosts.contains_key(&id) {
                world.retire(id);
            }
            world.restore(id, backup);
        }
        5..30 => {
            if let Some(other) = world.random.one_of(&others) {
                world.rejoin(other);
            }
        }
        _ => {}
    }
    // Whoever isn't in it, nobody waits for.
    let unknown = |host: &&Host| !world.truth.nodes().contains_key(&host.node);
    let unknown: Vec<HostId> = world.hosts.values().filter(unknown).map(|host| host.id).collect();
    for id in unknown {
        world.retire(id);
    }
}

/// A new host joins.
fn join(world: &mut World, leader: HostId) {
    let id = HostId(world.hosts.keys().filter(|id| id.0 <= 100).count() as u64 + 1);
    if id.0 <= HOSTS + 3 && world.truth.newest_node().0 + 1 == id.0 {
        world.propose(leader, Command::Admit(cluster::host(id.0, NodeRole::Auto)));
    }
}

/// Hosts that were admitted are installed, those that were removed switched off, and those that are off for good removed.
pub fn repair(world: &mut World) {
    let truth = &world.truth;
    let known: BTreeMap<NodeId, HostId> =
        world.hosts.values().filter(|host| host.id.0 <= 100).map(|host| (host.node, host.id)).collect();
    let admitted: Vec<NodeId> = truth.nodes().keys().copied().filter(|node| !known.contains_key(node)).collect();
    let gone: Vec<HostId> = world
        .hosts
        .values()
        .filter(|host| truth.is_removed(host.node) && !host.is_retired && host.units.is_empty())
        .map(|host| host.id)
        .collect();
    let awaited = truth.absent().keys().find(|node| known.get(node).is_some_and(|id| world.hosts[id].is_retired));
    if let Some(leader) = world.leader()
        && let Some(node) = awaited.copied()
    {
        world.propose(leader, Command::RemoveNode { node, dead: true, abandon_volumes: false });
    }
    for node in admitted {
        world.admit(HostId(node.0), node);
    }
    for id in gone {
        world.retire(id);
    }
}

/// Everybody is there and hears everybody; persons take back what keeps instances from where they could run.
fn all_is_well_again(world: &mut World) {
    world.network = Network::default();
    let ids: Vec<HostId> = world.hosts.keys().copied().collect();
    for id in ids {
        if id.0 > 100 {
            world.retire(id);
            continue;
        }
        world.wake(id);
    }
    let end = world.now + RECOVERY;
    while !(world.is_settled() && world.all_are_armed()) {
        assert!(world.now < end, "seed {}: not everything runs that is declared: {}", world.seed, world.shown());
        if let Some(leader) = world.leader() {
            let closed: Vec<NodeId> = world
                .truth
                .nodes()
                .iter()
                .filter(|(_, member)| member.availability != Availability::Active)
                .map(|(id, _)| *id)
                .collect();
            for node in closed {
                let command =
                    Command::SetAvailability { node, availability: Availability::Active, abandon_volumes: false };
                world.propose(leader, command);
            }
            if matches!(world.truth.takeover(), Takeover::Frozen { .. }) {
                world.propose(leader, Command::ResumeTakeover);
            }
        }
        let is_outside = |host: &&Host| host.is_on && !host.disk.rejoins && !world.is_member(host);
        let outside: Vec<HostId> = world.hosts.values().filter(is_outside).map(|host| host.id).collect();
        for id in outside {
            world.rejoin(id);
        }
        repair(world);
        world.run_for(200 * MILLISECOND);
    }
}
