//! Servers, their disks, the network and their clocks, in virtual time: one seed is one history.

use std::collections::{BTreeMap, BTreeSet};

use blixard_core::command::Command;
use blixard_core::driver::{Checkpoint, Content, Membership, MembershipChange, Role, Status};
use blixard_core::state;
use blixard_core::types::{NodeId, RaftId};

use super::cluster;
use super::disk::{Failed, State, StoreDisk};
use super::facts::Facts;
use super::image::Image;
use super::mutations::Mutation;
use super::random::Random;
use super::server::Server;
use super::told::Told;

mod network;

pub use network::shown;
use network::{Network, Sent};

pub const FOUNDER: RaftId = RaftId(1);

/// Microseconds of virtual time.
pub type Time = u64;
pub const MILLISECOND: Time = 1_000;
pub const SECOND: Time = 1_000 * MILLISECOND;
/// What a server's clock calls a tick, by a clock that is right.
pub const TICK: Time = 10 * MILLISECOND;

enum Event {
    Tick {
        server: RaftId,
        boot: u64,
        due: Time,
    },
    Deliver(Sent),
    LogDone {
        server: RaftId,
        boot: u64,
    },
    StoreDone {
        server: RaftId,
        boot: u64,
    },
    /// The rows of a snapshot reach a follower, or don't.
    Fetched {
        sent: Sent,
        state: Box<State>,
        arrived: bool,
    },
    /// A leader has waited long enough for a follower to have its snapshot.
    OfferExpires {
        server: RaftId,
        boot: u64,
        peer: RaftId,
    },
}

impl Event {
    /// The server that it happens to, and the process where that is known by now.
    fn process(&self) -> (RaftId, Option<u64>) {
        match self {
            Self::Tick { server, boot, .. }
            | Self::LogDone { server, boot }
            | Self::StoreDone { server, boot }
            | Self::OfferExpires { server, boot, .. } => (*server, Some(*boot)),
            Self::Deliver(sent) | Self::Fetched { sent, .. } => (RaftId(sent.message.to), None),
        }
    }
}

pub struct World {
    pub seed: u64,
    pub mutation: Mutation,
    pub random: Random,
    pub now: Time,
    queue: BTreeMap<(Time, u64), Event>,
    queued: u64,
    pub servers: BTreeMap<RaftId, Server>,
    /// A second process of one of them, from a copy of its disk.
    pub twin: Option<Server>,
    /// Which of them had one.
    cloned: Option<RaftId>,
    /// How many starts and disks there were.
    boots: u64,
    disks: u64,
    /// Those that never start again: they were told that they are no servers any more, or their host is dead.
    pub retired: BTreeSet<RaftId>,
    pub dead: BTreeSet<NodeId>,
    /// What was on somebody's disks once.
    pub images: BTreeMap<RaftId, (Image, StoreDisk)>,
    /// How many hosts there were.
    pub hosts: u64,
    /// Whether leaders see to it that the servers are those that the cluster wants.
    pub is_managed: bool,
    founding: (Membership, state::State),
    pub network: Network,
    pub facts: Facts,
    /// What happened, in order: messages that were delivered, writes that were begun, entries that were applied.
    pub trace: Vec<String>,
    commands: u64,
}

impl World {
    /// A founder that runs alone and leads.
    pub fn founded(seed: u64) -> Self {
        let mut world = Self::empty(seed, 1, Mutation::None);
        world.install(FOUNDER);
        world.with(FOUNDER, |server| server.driver().campaign_if_alone());
        world.until("leader", |world| world.leader().is_some());
        world
    }

    /// Servers 1 to `size`, all voters from the start, none of which leads yet.
    pub fn of_voters(seed: u64, size: u64, mutation: Mutation) -> Self {
        let mut world = Self::empty(seed, size, mutation);
        (1..=size).for_each(|id| world.install(RaftId(id)));
        world
    }

    /// Before any of the `size` servers that it is to begin with starts.
    fn empty(seed: u64, size: u64, mutation: Mutation) -> Self {
        let voters = (1..=size).map(RaftId).collect();
        let membership = Membership { voters, learners: BTreeSet::new() };
        let mut facts = Facts::new(seed);
        facts.founded(&membership);
        Self {
            seed,
            mutation,
            random: Random::new(seed),
            now: 0,
            queue: BTreeMap::new(),
            queued: 0,
            servers: BTreeMap::new(),
            twin: None,
            cloned: None,
            boots: 0,
            disks: 0,
            retired: BTreeSet::new(),
            dead: BTreeSet::new(),
            images: BTreeMap::new(),
            hosts: size,
            is_managed: false,
            founding: (membership, cluster::founded(size, seed)),
            network: Network { latency: 2 * MILLISECOND, ..Network::default() },
            facts,
            trace: Vec::new(),
            commands: 0,
        }
    }

    /// A blank server, started, of the node that has the same number.
    pub fn install(&mut self, id: RaftId) {
        self.install_on(NodeId(id.0), id);
    }

    fn install_on(&mut self, node: NodeId, id: RaftId) {
        let blank = self.blank();
        let server = self.made((id, node), blank);
        self.servers.insert(id, server);
        self.start(id);
    }

    /// A server that is to start from a disk that holds this.
    fn made(&mut self, of: (RaftId, NodeId), disks: (Image, StoreDisk)) -> Server {
        let (membership, cluster) = &self.founding;
        self.disks += 1;
        Server::blank(of, membership, cluster, self.mutation).on_disk(self.disks, disks)
    }

    /// Takes a server away for good.
    pub fn retire(&mut self, id: RaftId) {
        self.crash(id);
        self.retired.insert(id);
    }

    pub fn start(&mut self, id: RaftId) {
        self.boots += 1;
        let (seed, boot) = (self.seed, self.boots);
        self.servers.get_mut(&id).expect("it was installed").start(seed, boot);
        self.begin(id, boot);
    }

    /// Starts everybody that is down and may start.
    pub fn start_all(&mut self) {
        for id in self.ids() {
            if !self.servers[&id].is_up() && !self.retired.contains(&id) {
                self.start(id);
            }
        }
    }

    /// Starts a second process of a server that runs, from a disk that holds this.
    pub fn start_twin(&mut self, id: RaftId, disks: (Image, StoreDisk)) {
        let mut twin = self.made((id, self.servers[&id].member), disks);
        self.boots += 1;
        let boot = self.boots;
        twin.start(self.seed, boot);
        (self.twin, self.cloned) = (Some(twin), Some(id));
        self.begin(id, boot);
    }

    /// Starts a server from another disk than it had.
    pub fn change_disk(&mut self, id: RaftId, disks: (Image, StoreDisk)) {
        self.crash(id);
        let server = self.made((id, self.servers[&id].member), disks);
        self.servers.insert(id, server);
        self.start(id);
    }

    fn begin(&mut self, id: RaftId, boot: u64) {
        self.act(id, boot, |_| ());
        self.tick_after(TICK, id, boot);
    }

    fn tick_after(&mut self, time: Time, server: RaftId, boot: u64) {
        self.after(time, Event::Tick { server, boot, due: self.now + time });
    }

    /// Lets a server's clock tick, which jumps where that is `late`.
    pub fn tick(&mut self, id: RaftId, late: Time) {
        self.tick_of(id, self.servers[&id].boot, late);
    }

    fn tick_of(&mut self, id: RaftId, boot: u64, late: Time) {
        let ticks = self.act(id, boot, |server| server.tick(late));
        self.facts.jumps += u64::from(ticks > 1);
    }

    /// Loses everything that isn't on its disks; of a write that is under way, all or nothing is.
    pub fn crash(&mut self, id: RaftId) {
        let keeps = self.random.percent(50);
        let server = self.servers.get_mut(&id).unwrap();
        self.facts.crashes += 1;
        self.facts.overtaken.crashes += u64::from(server.is_up() && server.store.installed);
        server.crash(keeps);
        self.facts.check_disks(server);
    }

    pub fn ids(&self) -> Vec<RaftId> {
        self.servers.keys().copied().collect()
    }

    pub fn running(&self) -> Vec<RaftId> {
        self.servers.values().filter(|server| server.is_up()).map(|server| server.id).collect()
    }

    pub fn status(&self, id: RaftId) -> Status {
        self.servers[&id].status()
    }

    /// The leader of the highest term, if it runs.
    pub fn leader(&self) -> Option<RaftId> {
        let running = self.servers.values().filter(|server| server.is_up());
        let leaders = running.filter(|server| server.status().soft.role == Role::Leader);
        leaders.max_by_key(|server| server.status().term).map(|server| server.id)
    }

    /// Takes the ways between `id` and all others away, in both directions.
    pub fn isolate(&mut self, id: RaftId) {
        for other in self.ids().into_iter().filter(|other| *other != id) {
            self.network.cut.extend([(id, other), (other, id)]);
        }
    }

    pub fn heal(&mut self) {
        self.network = Network { latency: 2 * MILLISECOND, ..Network::default() };
        for server in self.servers.values_mut() {
            (server.log.writes_left, server.store.writes_left) = (None, None);
            (server.sync_time, server.clock_percent, server.paused_until) = (0, 100, 0);
        }
    }

    /// Nothing, as the group's beginning has it.
    pub fn blank(&self) -> (Image, StoreDisk) {
        (Image::default(), StoreDisk::founded(&self.founding.1))
    }

    /// Who votes as of a store.
    pub fn voters_on<'a>(&'a self, store: &'a StoreDisk) -> &'a BTreeSet<RaftId> {
        let Checkpoint { position, membership } = &store.checkpoint;
        if position.index == 0 { &self.founding.0.voters } else { &membership.voters }
    }

    /// Proposes a command that nobody proposed before.
    pub fn propose(&mut self, id: RaftId) -> Option<Vec<u8>> {
        self.commands += 1;
        let command = self.commands.to_be_bytes().to_vec();
        let taken = self.with(id, |server| server.propose(&command));
        taken.then_some(command)
    }

    /// Proposes a command about the members.
    pub fn say(&mut self, id: RaftId, command: Command) -> bool {
        self.with(id, |server| cluster::propose(server, command))
    }

    pub fn change(&mut self, id: RaftId, change: MembershipChange) -> Result<(), blixard_core::driver::ProposeError> {
        self.with(id, |server| server.driver().propose_membership(change, Vec::new()).map(drop))
    }

    pub fn read(&mut self, id: RaftId) {
        let known = self.facts.last_acknowledged();
        self.with(id, |server| server.read(known));
    }

    /// Does something on a server, and all that follows from it at once.
    pub fn with<T>(&mut self, id: RaftId, act: impl FnOnce(&mut Server) -> T) -> T {
        self.act(id, self.servers[&id].boot, act)
    }

    /// The same on one process of it.
    fn act<T>(&mut self, id: RaftId, boot: u64, act: impl FnOnce(&mut Server) -> T) -> T {
        let server = self.processes_mut(id).find(|server| server.boot == boot).expect("it was started");
        let done = act(server);
        match server.turns() {
            Ok(told) => self.follow_up(id, boot, told),
            Err(failed) => {
                *self.facts.failed.entry(failed).or_default() += 1;
                if failed != Failed::LostLog {
                    self.crash(id);
                } else if self.end(id, boot) {
                    // A person gives its place to a host that is made anew.
                    self.retired.insert(id);
                    self.dead.insert(self.servers[&id].member);
                }
            }
        }
        done
    }

    /// The processes of a server: the one that it is, and its twin.
    fn processes_mut(&mut self, id: RaftId) -> impl Iterator<Item = &mut Server> {
        let twin = self.twin.as_mut().filter(|twin| twin.id == id);
        self.servers.get_mut(&id).into_iter().chain(twin)
    }

    /// A process ends that is not to start again by itself; whether it was the last one of its server.
    fn end(&mut self, id: RaftId, boot: u64) -> bool {
        if self.twin.take_if(|twin| twin.boot == boot).is_some() {
            return false;
        }
        self.crash(id);
        let twin = self.twin.take();
        let is_last = twin.is_none();
        self.servers.extend(twin.map(|twin| (id, twin)));
        is_last
    }

    /// Sends, begins and checks what a server's turns ask for.
    fn follow_up(&mut self, id: RaftId, boot: u64, told: Told) {
        let all: Vec<&Server> = self.servers.values().chain(&self.twin).collect();
        let server = *all.iter().find(|server| server.id == id && server.boot == boot).expect("it has acted");
        self.facts.check(server, &told, &all);
        let snapshot = told.installed.as_ref().map(|_| server.store.checkpoint.position.index);
        self.note(id, &told, snapshot);
        if let Some(time) = told.log_takes {
            self.after(time, Event::LogDone { server: id, boot });
        }
        if let Some(time) = told.store_takes {
            self.after(time, Event::StoreDone { server: id, boot });
        }
        for message in told.messages {
            self.send(Sent { message, boot, at: self.now });
        }
        for (node, raft) in told.enlisted {
            if !self.servers.contains_key(&raft) && !self.dead.contains(&node) {
                self.install_on(node, raft);
            }
        }
    }

    fn note(&mut self, id: RaftId, told: &Told, snapshot: Option<u64>) {
        if let Some(soft) = told.soft {
            self.trace.push(format!("{id} is a {:?}", soft.role).to_lowercase());
        }
        if told.log_takes.is_some() {
            self.trace.push(format!("{id} writes"));
        }
        if let Some(index) = snapshot {
            self.trace.push(format!("{id} installs a snapshot up to {index}"));
        }
        if let (Some(first), Some(last)) = (told.committed.first(), told.committed.last()) {
            self.trace.push(format!("{id} applies {} to {}", first.position.index, last.position.index));
        }
        for entry in &told.committed {
            if let Content::Membership { change, .. } = &entry.content {
                self.trace.push(format!("{id} applies {}: {change}", entry.position.index));
            }
        }
    }

    fn after(&mut self, time: Time, event: Event) {
        self.queued += 1;
        self.queue.insert((self.now + time, self.queued), event);
    }

    /// Lets the next event happen; time goes on to it.
    pub fn step(&mut self) {
        let ((time, _), event) = self.queue.pop_first().expect("clocks tick for ever");
        self.now = time;
        let (id, boot) = event.process();
        // Where two processes are one server, the network leads to either.
        let skips = usize::from(boot.is_none() && self.twin.is_some() && self.random.percent(50));
        let is_meant = |server: &&mut Server| server.is_up() && boot.is_none_or(|boot| server.boot == boot);
        let Some(server) = self.processes_mut(id).filter(is_meant).take(skips + 1).last() else { return };
        if server.paused_until > time {
            // All of it happens at once when it goes on.
            let pause = server.paused_until - time;
            return self.after(pause, event);
        }
        let (boot, clock_percent) = (server.boot, server.clock_percent);
        match event {
            Event::Tick { due, .. } => {
                self.tick_of(id, boot, time - due);
                let is_managed = self.is_managed;
                if is_managed && self.processes_mut(id).any(|server| server.boot == boot && server.decides()) {
                    let dead = self.dead.clone();
                    if let Some(removal) = self.act(id, boot, |server| cluster::lead(server, &dead)) {
                        self.facts.no_removal_loses_the_quorum(id, &removal);
                    }
                }
                self.tick_after(TICK * 100 / clock_percent, id, boot);
            }
            Event::Deliver(sent) => {
                if self.takes(id, boot, &sent) {
                    self.trace.push(shown(&sent.message));
                    self.act(id, boot, |server| server.step(sent.message));
                }
            }
            Event::LogDone { .. } => self.act(id, boot, Server::log_done),
            Event::StoreDone { .. } => self.act(id, boot, Server::store_done),
            Event::Fetched { sent, state, arrived } => {
                if arrived && self.takes(id, boot, &sent) {
                    self.fetched((id, boot), sent.message, *state);
                }
            }
            Event::OfferExpires { peer, .. } => {
                if server.driver().awaits_snapshot(peer) {
                    self.act(id, boot, |server| server.driver().snapshot_failed(peer));
                }
            }
        }
    }

    pub fn run_for(&mut self, time: Time) {
        let end = self.now + time;
        while self.queue.first_key_value().is_some_and(|((at, _), _)| *at <= end) {
            self.step();
        }
        self.now = end;
    }

    /// Lets time pass until `found` says so.
    pub fn until(&mut self, what: &str, mut found: impl FnMut(&Self) -> bool) {
        let end = self.now + 60 * SECOND;
        while !found(self) {
            if self.now > end {
                let all: Vec<_> = self.running().into_iter().map(|id| (id, self.status(id))).collect();
                panic!("seed {}: no {what} within a minute; last: {all:#?}", self.seed);
            }
            self.step();
        }
    }

    pub fn elect(&mut self) -> RaftId {
        self.until("leader that all follow", |world| {
            let Some(leader) = world.leader() else { return false };
            let follows = |id: &RaftId| world.status(*id).soft.leader == Some(leader);
            world.status(leader).commit > 0 && world.running().iter().all(follows)
        });
        self.leader().unwrap()
    }
}
