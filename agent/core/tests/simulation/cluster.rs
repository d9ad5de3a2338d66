//! What the cluster says about its members: the commands of the log that change it, and what a leader does about its servers.

use std::collections::{BTreeMap, BTreeSet};

use blixard_core::command::{Command, Entry, NewNode, Origin, Worker};
use blixard_core::driver::{ELECTION_TICKS, MembershipChange, Position, Status};
use blixard_core::lease::Liveness;
use blixard_core::manifest::Manifest;
use blixard_core::membership::{self, Step};
use blixard_core::state::State;
use blixard_core::types::{ClusterId, Hash, Labels, Level, NodeId, NodeRole, RaftId, Resources, Term, Timestamp};

use super::mutations::Mutation;
use super::server::Server;

/// First byte of a client's command; no entry about members begins with it.
pub const CLIENT: u8 = 0;
/// How often a leader looks who is silent, who is so for too long, and for how long another takes its place.
const LOOK_TICKS: u64 = 10;
const SILENT_TICKS: u64 = 100;
const LOST_TICKS: u64 = 300;

/// A cluster whose members are the servers 1 to `size`, some of them declared to be servers.
pub fn founded(size: u64, seed: u64) -> State {
    let first_host = |number: u64| {
        let is_declared = (seed / 5 + number).is_multiple_of(4);
        host(number, if is_declared { NodeRole::Server } else { NodeRole::Auto })
    };
    let mut state = State::default();
    let found = Command::Found {
        cluster: ClusterId::from_bytes([7; 16]),
        ca_certificate: vec![1],
        sealed_ca_key: vec![2],
        first: first_host(1),
        listed_servers: 1,
    };
    let servers = if size > 3 { 5 } else { 3 };
    let admitted = (2..=size).map(|number| Command::Admit(first_host(number)));
    for command in [found, of_servers(servers)].into_iter().chain(admitted) {
        state.apply(0, Term(0), &entry(Position::default(), command));
    }
    state
}

/// A host.
pub fn host(number: u64, role: NodeRole) -> NewNode {
    NewNode {
        name: format!("node{number}").parse().expect("it is a name"),
        address: format!("127.0.0.1:{number}").parse().expect("it is an address"),
        key: Hash::of(&number.to_be_bytes()),
        understands: Level::NEWEST,
        role,
    }
}

/// A host starts with another role than it had.
pub fn declared(node: NodeId, state: &State, role: NodeRole) -> Command {
    let address = state.nodes()[&node].address.clone();
    let resources = Resources { cpus: 1, memory_mib: 1, disk_mib: 1 };
    let (system, kvm, hypervisors, labels) = (String::new(), false, Vec::new(), Labels::default());
    let no_fence = Some("it has none".to_owned());
    let worker = Worker { resources, system, kvm, hypervisors, labels, no_fence };
    Command::RegisterWorker {
        node,
        address,
        understands: Level::NEWEST,
        role,
        worker,
        secrets: None,
        boot: Hash::of(b"a boot"),
    }
}

/// A person wants so many servers.
pub fn of_servers(servers: usize) -> Command {
    let json = format!(r#"{{"version": 1, "cluster": {{"servers": {servers}}}, "vms": {{}}}}"#);
    let manifest = Manifest::parse(json.as_bytes()).expect("it is a manifest");
    Command::OfferManifest { manifest, from: Origin::Person("a person".to_owned()) }
}

fn entry(at: Position, command: Command) -> Entry {
    let decided_in = command.is_decision().then_some(Term(at.term));
    // No two proposals are equal.
    Entry { at: Timestamp(at.term << 32 | at.index), decided_in, request: None, command }
}

/// Proposes a command about the members; whether it was taken.
pub fn propose(server: &mut Server, command: Command) -> bool {
    let Status { term, last_index, .. } = server.status();
    server.propose(&entry(Position { index: last_index + 1, term }, command).encode())
}

/// Does to the cluster what a command says, if it is about members; whether it was.
pub fn apply(state: &mut State, at: Position, command: &[u8]) -> bool {
    let is_about_members = command.first() != Some(&CLIENT);
    if is_about_members {
        let entry = Entry::decode(command).expect("it was encoded here");
        state.apply(at.index, Term(at.term), &entry);
    }
    is_about_members
}

/// What a leader has heard, and since when it looks.
#[derive(Default)]
pub struct Watch {
    ticks: u64,
    leads: bool,
    liveness: Liveness,
    /// When each server was heard last, whoever led then.
    heard: BTreeMap<RaftId, u64>,
}

impl Watch {
    pub fn heard(&mut self, id: RaftId, state: &State) {
        self.heard.insert(id, self.ticks);
        if let Some((node, _)) = state.node_of_raft(id) {
            self.liveness.heard(node, self.ticks);
        }
    }

    /// A tick later: whether it is time to look.
    pub fn tick(&mut self, leads: bool) -> bool {
        self.ticks += 1;
        if leads && !self.leads {
            self.liveness.restart(self.ticks);
        }
        self.leads = leads;
        leads && self.ticks.is_multiple_of(LOOK_TICKS)
    }

    /// Who answers and who doesn't any more; workers do, but for the `dead`.
    fn decide(&mut self, state: &State, own: NodeId, dead: &BTreeSet<NodeId>) -> Vec<Command> {
        let workers = state.nodes().iter().filter(|(id, node)| node.raft.is_none() && !dead.contains(id));
        workers.for_each(|(id, _)| self.liveness.heard(*id, self.ticks));
        self.liveness.decide(state, own, self.ticks, SILENT_TICKS)
    }

    /// Whether a server has said anything lately; raft counts anew once in an election timeout who has.
    fn hears(&self, id: RaftId) -> bool {
        self.heard.get(&id).is_some_and(|heard| self.ticks - heard <= 2 * u64::from(ELECTION_TICKS))
    }

    fn is_lost(&self, node: NodeId) -> bool {
        self.liveness.is_silent_for(node, self.ticks, LOST_TICKS)
    }
}

/// A voter that a leader takes out of the group: who is left, and whom of them it has heard lately.
pub struct Removal {
    pub left: BTreeSet<RaftId>,
    pub heard: BTreeSet<RaftId>,
}

/// What a leader does now and then, as the agent's event loop has it: the next step towards the servers that are wanted.
pub fn lead(server: &mut Server, dead: &BTreeSet<NodeId>) -> Option<Removal> {
    let mut status = server.status();
    if server.mutation == Mutation::RemovesWithoutQuorum {
        status.peers.iter_mut().for_each(|peer| peer.recently_active = true);
    }
    let (own, member) = (server.id, server.member);
    let (cluster, watch) = server.watched();
    let mut decisions = watch.decide(cluster, member, dead);
    let step = membership::next_step(cluster, own, &status, |node| node != member && watch.is_lost(node));
    decisions.extend(membership::gone(cluster, &status.membership).map(|node| Command::ForgetNode { node }));
    let removed = |change| matches!(change, MembershipChange::Remove(id) if status.membership.voters.contains(&id));
    let mut removal = None;
    match step {
        Some(Step::Change(change)) => {
            let mut left = status.membership.voters.clone();
            left.retain(|id| change != MembershipChange::Remove(*id));
            let is_heard = |id: &&RaftId| **id == own || watch.hears(**id);
            let heard = left.iter().filter(is_heard).copied().collect();
            // Refused while another change is under way: it is tried again.
            let is_taken = server.driver().propose_membership(change, Vec::new()).is_ok();
            removal = (is_taken && removed(change)).then_some(Removal { left, heard });
        }
        Some(Step::HandOver(peer)) => _ = server.driver().transfer_leader(peer),
        Some(Step::Enlist(node)) => decisions.push(Command::Enlist { node }),
        None => {}
    }
    for decision in decisions {
        propose(server, decision);
    }
    removal
}
