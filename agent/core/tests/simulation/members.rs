//! Persons and hosts: who joins, who is removed, who is made anew.

use std::collections::BTreeSet;

use blixard_core::command::Command;
use blixard_core::driver::Status;
use blixard_core::membership;
use blixard_core::state::Node;
use blixard_core::types::{NodeId, NodeRole, RaftId};
use raft::eraftpb::{Entry, EntryType};

use super::cluster;
use super::image::Image;
use super::server::Server;
use super::world::{MILLISECOND, World};

/// Most members: more than may be servers.
const MAX_MEMBERS: usize = 8;

/// Of two hosts one is declared nothing.
const ROLES: [NodeRole; 4] = [NodeRole::Auto, NodeRole::Auto, NodeRole::Server, NodeRole::Worker];

/// What persons and hosts did; each is counted once it was asked for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Deed {
    Join,
    Remove,
    /// Of the node that leads.
    RemoveLeader,
    /// A dead host's name goes to one that was made anew.
    Replace,
    /// Another number of servers is wanted.
    Resize,
    /// A host has another role than it had.
    Declare,
    /// A server starts from what was on its disks once.
    RollBack,
    /// A server starts from nothing.
    Wipe,
    /// A server starts a second time, from a copy of what is or was on its disks.
    Clone,
}

impl Deed {
    pub const ALL: [Self; 9] = [
        Self::Join,
        Self::Remove,
        Self::RemoveLeader,
        Self::Replace,
        Self::Resize,
        Self::Declare,
        Self::RollBack,
        Self::Wipe,
        Self::Clone,
    ];
}

/// Lets something be done about the members, where somebody leads.
pub fn change(world: &mut World) {
    let Some(leader) = world.leader() else { return };
    if nodes(world, leader).iter().any(|node| world.dead.contains(node)) {
        // One thing at a time: of two servers that are left, none may go.
        return bury(world, leader);
    }
    match world.random.below(12) {
        0..3 => {
            let role = world.random.one_of(&ROLES).expect("they are some");
            join(world, leader, role);
        }
        3..5 => {
            let others: Vec<NodeId> =
                nodes(world, leader).into_iter().filter(|id| *id != world.servers[&leader].member).collect();
            if let Some(node) = world.random.one_of(&others) {
                remove(world, leader, node, Deed::Remove);
            }
        }
        5 => {
            let node = world.servers[&leader].member;
            remove(world, leader, node, Deed::RemoveLeader);
        }
        6..9 => replace(world, leader),
        9..11 => declare(world, leader),
        _ => {
            let servers = world.random.one_of(&[1, 3, 5, 5]).expect("they are some");
            if world.say(leader, cluster::of_servers(servers)) {
                world.facts.count(Deed::Resize);
            }
        }
    }
}

fn nodes(world: &World, at: RaftId) -> Vec<NodeId> {
    world.servers[&at].cluster().nodes().keys().copied().collect()
}

/// A new host joins, while there are not too many.
pub fn join(world: &mut World, leader: RaftId, role: NodeRole) {
    if nodes(world, leader).len() < MAX_MEMBERS {
        world.hosts += 1;
        let host = cluster::host(world.hosts, role);
        if world.say(leader, Command::Admit(host)) {
            world.facts.count(Deed::Join);
        }
    }
}

/// A host is configured anew; at least one other remains that may be a server.
fn declare(world: &mut World, leader: RaftId) {
    let all = nodes(world, leader);
    let Some(node) = world.random.one_of(&all) else { return };
    let role = world.random.one_of(&ROLES).expect("they are some");
    let cluster = world.servers[&leader].cluster();
    let may_serve = |other: &NodeId| {
        let member = &cluster.nodes()[other];
        *other != node && member.role != NodeRole::Worker && !member.leaving
    };
    if cluster.nodes()[&node].role == role || (role == NodeRole::Worker && !all.iter().any(may_serve)) {
        return;
    }
    let command = cluster::declared(node, cluster, role);
    if world.say(leader, command) {
        world.facts.count(Deed::Declare);
    }
}

/// Whether the leader lets this node be removed now, as far as it knows who answers.
fn may_go(world: &World, leader: RaftId, node: NodeId) -> bool {
    let server = &world.servers[&leader];
    let status = server.status();
    let is_of =
        |raft: RaftId, node: NodeId| server.cluster().nodes().get(&node).is_some_and(|of| of.raft == Some(raft));
    let answers = |other: NodeId| {
        let is_active = || status.peers.iter().any(|peer| peer.recently_active && is_of(peer.id, other));
        other == server.member || is_active()
    };
    let voters = &status.membership.voters;
    voters.len() > 2 && membership::objection(server.cluster(), node, voters, answers).is_none()
}

fn remove(world: &mut World, leader: RaftId, node: NodeId, deed: Deed) {
    let remove = Command::RemoveNode { node, dead: false, abandon_volumes: false };
    if may_go(world, leader, node) && world.say(leader, remove) {
        world.facts.count(deed);
    }
}

/// A host dies for good, and one that was made anew asks for its name.
fn replace(world: &mut World, leader: RaftId) {
    let voters = world.status(leader).membership.voters;
    let others: Vec<RaftId> = voters.iter().copied().filter(|id| *id != leader).collect();
    // One at a time: two that are dead of three are a quorum that is lost.
    if !is_settled(world, leader) || !voters.iter().all(|id| world.servers.get(id).is_some_and(Server::is_up)) {
        return;
    }
    let Some(id) = world.random.one_of(&others) else { return };
    let node = world.servers[&id].member;
    if may_go(world, leader, node) {
        world.retire(id);
        world.dead.insert(node);
        bury(world, leader);
        world.facts.count(Deed::Replace);
    }
}

/// Starts a follower with other disks than it had, or a second time from a copy of them, while all others are there and
/// follow one leader: one that does this may be lost, as any one may. It has to be stopped, or to be told all that it
/// lacks; of two that run from one disk, one has to be stopped. Who was alone then would ask nobody, and go on as that.
pub fn change_disks(world: &mut World) {
    if [Deed::RollBack, Deed::Wipe, Deed::Clone].iter().any(|deed| world.facts.deeds.contains_key(deed)) {
        return;
    }
    let Some(leader) = calm(world) else { return };
    let voters = world.status(leader).membership.voters;
    let others: Vec<RaftId> = voters.into_iter().filter(|id| *id != leader).collect();
    let Some(id) = world.random.one_of(&others) else { return };
    let image = world.images.remove(&id);
    let image = image
        .filter(|(log, store)| is_from_another_term(log, &world.servers[&leader]) && world.voters_on(store).len() > 1);
    match (world.random.below(4), image) {
        (0, image) => {
            let disks = image.unwrap_or_else(|| world.servers[&id].disks());
            world.facts.count(Deed::Clone);
            world.start_twin(id, disks);
            world.until("end of one of two that run from one disk", |world| world.twin.is_none());
        }
        (1..3, Some(image)) => {
            world.facts.count(Deed::RollBack);
            world.change_disk(id, image);
        }
        _ => {
            let blank = world.blank();
            world.facts.count(Deed::Wipe);
            world.change_disk(id, blank);
        }
    }
    is_stopped_or_told_all(world, id);
}

/// Returns once it has heard the leader since, and has all, or doesn't run from that disk any more.
fn is_stopped_or_told_all(world: &mut World, id: RaftId) {
    while !world.retired.contains(&id) {
        if !world.servers[&id].is_up() {
            world.start(id);
        }
        let boot = world.servers[&id].boot;
        world.run_for(200 * MILLISECOND);
        let all = world.facts.last_committed();
        let has_all = |world: &World| world.status(id).applied >= all;
        world.until("end of a server that has lost its log, or of what it lacks", |world| {
            !world.servers[&id].is_up() || has_all(world)
        });
        if world.servers[&id].is_up() && world.servers[&id].boot == boot {
            return;
        }
    }
}

/// Mends everything, and waits for a while until all servers answer one leader, and no change of them is under way; and
/// again, so that nobody's candidacy is.
fn calm(world: &mut World) -> Option<RaftId> {
    world.heal();
    world.start_all();
    let mut before = None;
    for _ in 0..6 {
        world.run_for(500 * MILLISECOND);
        let led = all_follow(world);
        if led.is_some() && led == before {
            return led.map(|(leader, _)| leader);
        }
        before = led;
    }
    None
}

/// Whom all servers follow, and in which term.
fn all_follow(world: &World) -> Option<(RaftId, u64)> {
    let leader = world.leader()?;
    let Status { membership, term, peers, .. } = world.status(leader);
    let follows = |id: &RaftId| {
        let status = world.servers.get(id).filter(|server| server.is_up()).map(Server::status);
        let answers = *id == leader || peers.iter().any(|peer| peer.id == *id && peer.recently_active);
        answers && status.is_some_and(|status| status.term == term && status.soft.leader == Some(leader))
    };
    let all_follow = membership.voters.len() >= 3 && membership.voters.iter().all(follows);
    (all_follow && is_settled(world, leader)).then_some((leader, term))
}

/// Of what is from the leader's own term and from before it was first heard, nobody can tell that it was heard since.
fn is_from_another_term(image: &Image, leader: &Server) -> bool {
    let last = image.last();
    image.hard_state.term < leader.status().term || image.term_at(last) == leader.log.live.term_at(last)
}

/// Whether no change of the servers is under way, in anybody's log, or about to be.
fn is_settled(world: &World, leader: RaftId) -> bool {
    let server = &world.servers[&leader];
    let (status, written) = (server.status(), server.log.live.last());
    let is_old = |entry: &Entry| entry.entry_type() == EntryType::EntryNormal || entry.index <= status.applied;
    let is_done = |server: &Server| server.log.live.entries.iter().all(is_old);
    let step = membership::next_step(server.cluster(), leader, &status, |_| false);
    let is_quiet = status.last_index == written && status.applied == written && step.is_none();
    is_quiet && server.cluster().emptied_nodes().next().is_none() && world.servers.values().all(is_done)
}

/// Says of every dead host that is a member still that it is dead, and lets one made anew take its name.
pub fn bury(world: &mut World, leader: RaftId) {
    let members: BTreeSet<NodeId> = nodes(world, leader).into_iter().collect();
    let dead: Vec<NodeId> = world.dead.intersection(&members).copied().collect();
    for node in dead {
        let Node { name, role, .. } = world.servers[&leader].cluster().nodes()[&node].clone();
        // The leader has missed it by then.
        world.say(leader, Command::SetWorkerAlive { node, alive: false });
        if world.say(leader, Command::RemoveNode { node, dead: true, abandon_volumes: false }) {
            world.hosts += 1;
            let anew = blixard_core::command::NewNode { name, ..cluster::host(world.hosts, role) };
            world.say(leader, Command::Admit(anew));
        }
    }
}
