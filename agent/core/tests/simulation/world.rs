//! Servers, their disks, the network and their clocks, in virtual time: one seed is one history.

use std::collections::{BTreeMap, BTreeSet};

use blixard_core::command::Command;
use blixard_core::driver::{Checkpoint, Membership, MembershipChange, Message, Role, Status};
use blixard_core::state;
use blixard_core::types::{NodeId, RaftId};
use raft::eraftpb::MessageType;

use super::cluster;
use super::disk::{Failed, State, StoreDisk};
use super::facts::Facts;
use super::image::Image;
use super::random::Random;
use super::server::{Server, Told};

pub const FOUNDER: RaftId = RaftId(1);

/// Microseconds of virtual time.
pub type Time = u64;
pub const MILLISECOND: Time = 1_000;
pub const SECOND: Time = 1_000 * MILLISECOND;
/// How long a leader waits for a follower to fetch its snapshot.
const OFFER: Time = 500 * MILLISECOND;
/// What a server's clock calls a tick, by a clock that is right.
pub const TICK: Time = 10 * MILLISECOND;

/// What the world itself does wrong on purpose.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Mutation {
    #[default]
    None,
    /// What depends on a write is said before the write is done.
    SpeaksBeforeItWrites,
    ForgetsSyncs,
    ForgetsVotes,
    /// The store is made durable though the log doesn't hold its commit index yet.
    StoresBeforeItLogs,
    /// The log is cut up to what was applied, and not up to what the store holds.
    CutsTooMuch,
    ForgetsRestarts,
    /// A snapshot that is installed isn't on disk before the next checkpoint.
    ForgetsSnapshots,
    /// A snapshot that is installed is offered to others before the next checkpoint.
    OffersBeforeItCanRead,
    /// A server starts with the servers that the group began with.
    ForgetsChanges,
    /// A checkpoint that failed is taken for done.
    PassesOverFailures,
    /// A proposal is acknowledged once it is appended.
    AcknowledgesAtAppend,
    /// A proposal is taken for done by whatever entry stands where it was appended.
    SkipsTheTerm,
    /// A server goes on though a leader says that its log lost what it held.
    GoesOnWithoutItsLog,
    /// A leader answers reads by its own word.
    ReadsWithoutQuorum,
}

enum Event {
    Tick {
        server: RaftId,
        boot: u64,
        due: Time,
    },
    Deliver(Message),
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
        message: Message,
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
    fn server(&self) -> RaftId {
        match self {
            Self::Tick { server, .. }
            | Self::LogDone { server, .. }
            | Self::StoreDone { server, .. }
            | Self::OfferExpires { server, .. } => *server,
            Self::Deliver(message) | Self::Fetched { message, .. } => RaftId(message.to),
        }
    }
}

/// How the network is.
#[derive(Default)]
pub struct Network {
    /// Ways that nothing goes, one direction each.
    pub cut: BTreeSet<(RaftId, RaftId)>,
    pub drop_percent: u64,
    pub twice_percent: u64,
    /// Longest that a message is under way.
    pub latency: Time,
}

pub struct World {
    pub seed: u64,
    pub mutation: Mutation,
    pub random: Random,
    pub now: Time,
    queue: BTreeMap<(Time, u64), Event>,
    queued: u64,
    pub servers: BTreeMap<RaftId, Server>,
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
            retired: BTreeSet::new(),
            dead: BTreeSet::new(),
            images: BTreeMap::new(),
            hosts: size,
            is_managed: false,
            founding: (membership, cluster::founded(size)),
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
        let (membership, cluster) = &self.founding;
        self.servers.insert(id, Server::blank((id, node), membership, cluster, self.mutation));
        self.start(id);
    }

    /// Takes a server away for good.
    pub fn retire(&mut self, id: RaftId) {
        self.crash(id);
        self.retired.insert(id);
    }

    pub fn start(&mut self, id: RaftId) {
        let seed = self.seed;
        let boot = self.with(id, |server| {
            server.start(seed);
            server.boot
        });
        self.tick_after(TICK, id, boot);
    }

    fn tick_after(&mut self, time: Time, server: RaftId, boot: u64) {
        self.after(time, Event::Tick { server, boot, due: self.now + time });
    }

    /// Lets a server's clock tick, which jumps where that is `late`.
    pub fn tick(&mut self, id: RaftId, late: Time) {
        let ticks = self.with(id, |server| server.tick(late));
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
        let server = self.servers.get_mut(&id).expect("it was installed");
        let done = act(server);
        match server.turns() {
            Ok(told) => self.follow_up(id, told),
            Err(failed) => {
                *self.facts.failed.entry(failed).or_default() += 1;
                self.crash(id);
                if failed == Failed::LostLog {
                    // A person gives its place to a host that is made anew.
                    self.retired.insert(id);
                    self.dead.insert(self.servers[&id].member);
                }
            }
        }
        done
    }

    /// Sends, begins and checks what a server's turns ask for.
    fn follow_up(&mut self, id: RaftId, told: Told) {
        let server = &self.servers[&id];
        self.facts.check(server, &told, &self.servers);
        let boot = server.boot;
        self.note(id, &told);
        if let Some(time) = told.log_takes {
            self.after(time, Event::LogDone { server: id, boot });
        }
        if let Some(time) = told.store_takes {
            self.after(time, Event::StoreDone { server: id, boot });
        }
        for message in told.messages {
            self.send(message);
        }
        for (node, raft) in told.enlisted {
            if !self.servers.contains_key(&raft) && !self.dead.contains(&node) {
                self.install_on(node, raft);
            }
        }
    }

    fn note(&mut self, id: RaftId, told: &Told) {
        if let Some(soft) = told.soft {
            self.trace.push(format!("{id} is a {:?}", soft.role).to_lowercase());
        }
        if told.log_takes.is_some() {
            self.trace.push(format!("{id} writes"));
        }
        if let Some(first) = told.installed.as_ref().map(|_| self.servers[&id].store.checkpoint.position.index) {
            self.trace.push(format!("{id} installs a snapshot up to {first}"));
        }
        if let (Some(first), Some(last)) = (told.committed.first(), told.committed.last()) {
            self.trace.push(format!("{id} applies {} to {}", first.position.index, last.position.index));
        }
    }

    fn send(&mut self, message: Message) {
        let way = (RaftId(message.from), RaftId(message.to));
        if message.msg_type == i32::from(MessageType::MsgSnapshot) {
            return self.send_snapshot(message);
        }
        if self.network.cut.contains(&way) || self.random.percent(self.network.drop_percent) {
            return;
        }
        if self.random.percent(self.network.twice_percent) {
            let late = self.random.below(50 * MILLISECOND);
            self.after(late, Event::Deliver(message.clone()));
        }
        let latency = self.random.between(200, self.network.latency);
        self.after(latency, Event::Deliver(message));
    }

    /// The rows go on their own way, which takes longer, and breaks off now and then.
    fn send_snapshot(&mut self, message: Message) {
        let (from, to) = (RaftId(message.from), RaftId(message.to));
        let server = &self.servers[&from];
        let (state, from_boot) = (Box::new(server.store.state.clone()), server.boot);
        let held = &server.store.checkpoint;
        let is_held = blixard_core::driver::announced(&message).as_ref() == Some(held);
        assert!(is_held, "seed {}: server {from} offers what its store lacks, as it is at {held:?}", self.seed);
        assert!(!server.store.installed, "seed {}: server {from} offers what it cannot read yet", self.seed);
        let arrived = !self.network.cut.contains(&(from, to)) && !self.random.percent(self.network.drop_percent * 2);
        let takes = self.random.between(MILLISECOND, 40 * MILLISECOND + self.network.latency * 2);
        self.after(takes, Event::Fetched { message, state, arrived });
        self.after(takes + OFFER, Event::OfferExpires { server: from, boot: from_boot, peer: to });
    }

    fn after(&mut self, time: Time, event: Event) {
        self.queued += 1;
        self.queue.insert((self.now + time, self.queued), event);
    }

    /// Lets the next event happen; time goes on to it.
    pub fn step(&mut self) {
        let ((time, _), event) = self.queue.pop_first().expect("clocks tick for ever");
        self.now = time;
        let id = event.server();
        let Some(server) = self.servers.get_mut(&id) else { return };
        if server.paused_until > time {
            // All of it happens at once when it goes on.
            let pause = server.paused_until - time;
            return self.after(pause, event);
        }
        match event {
            Event::Tick { boot, due, .. } => {
                if server.boot != boot || !server.is_up() {
                    return;
                }
                let next = TICK * 100 / server.clock_percent;
                self.tick(id, time - due);
                if self.is_managed && self.servers.get_mut(&id).is_some_and(Server::decides) {
                    let dead = self.dead.clone();
                    self.with(id, |server| cluster::lead(server, &dead));
                }
                self.tick_after(next, id, boot);
            }
            Event::Deliver(message) => {
                let from = RaftId(message.from);
                if server.is_up() && self.servers[&id].dismisses(self.servers[&from].member, from) {
                    // What it sent is refused, and it is told why.
                    if !self.network.cut.contains(&(id, from)) && !self.retired.contains(&from) {
                        self.retire(from);
                    }
                } else if self.servers[&id].is_up() {
                    self.trace.push(shown(&message));
                    self.with(id, |server| server.step(message));
                }
            }
            Event::LogDone { boot, .. } => {
                if server.boot == boot && server.is_up() {
                    self.with(id, Server::log_done);
                }
            }
            Event::StoreDone { boot, .. } => {
                if server.boot == boot && server.is_up() {
                    self.with(id, Server::store_done);
                }
            }
            Event::Fetched { message, state, arrived } => self.fetched(message, *state, arrived),
            Event::OfferExpires { boot, peer, .. } => {
                if server.boot == boot && server.is_up() && server.driver().awaits_snapshot(peer) {
                    self.with(id, |server| server.driver().snapshot_failed(peer));
                }
            }
        }
    }

    fn fetched(&mut self, message: Message, state: State, arrived: bool) {
        let to = RaftId(message.to);
        if arrived && self.servers[&to].is_up() {
            self.trace.push(shown(&message));
            let checkpoint = blixard_core::driver::announced(&message).expect("it was sent as one");
            self.with(to, |server| server.fetched(message, checkpoint, state));
            let dies = self.network.drop_percent > 0 && self.random.percent(10);
            if dies && self.servers[&to].is_up() {
                self.crash(to);
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

/// A message on one line, with what matters of its kind.
pub fn shown(message: &Message) -> String {
    use std::fmt::Write as _;
    let Message { from, to, term, index, log_term, commit, .. } = message;
    let mut line = format!("{from}→{to} {:?} term {term}", message.msg_type());
    for (name, value) in [("index", index), ("log_term", log_term), ("commit", commit)] {
        if *value != 0 {
            write!(line, " {name} {value}").unwrap();
        }
    }
    if let Some(Checkpoint { position, .. }) = blixard_core::driver::announced(message) {
        write!(line, " snapshot {} of term {}", position.index, position.term).unwrap();
    }
    if !message.entries.is_empty() {
        write!(line, " entries {}", message.entries.len()).unwrap();
    }
    if message.reject {
        line.push_str(" reject");
    }
    line
}
