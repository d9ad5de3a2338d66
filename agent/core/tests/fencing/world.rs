//! Hosts, the network between them, and time.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use blixard_core::driver::{Membership, Recovered};
use blixard_core::fence::{Reply, Request, Stage};
use blixard_core::state::State;
use blixard_core::types::{ClusterEpoch, Failover, Hash, InstanceId, NodeId, RaftId};

use super::cluster::{self, Declared};
use super::facts::Facts;
use super::host::{Agent, Disk, Host, UnitName};
use super::mutations::Mutation;
use super::random::Random;
use super::server::{Beginning, Log, Server};

mod agent;
mod anew;
mod network;
mod power;
mod units;

pub use anew::Backup;
pub use network::Network;
use network::Sent;

/// Microseconds of virtual time, by no host's clock.
pub type Time = u64;
pub const MILLISECOND: Time = 1_000;
pub const SECOND: Time = 1_000 * MILLISECOND;
pub const TICK: Time = 20 * MILLISECOND;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct HostId(pub u64);

enum Event {
    Tick {
        boot: u64,
    },
    /// An agent looks what there is to do.
    Look {
        boot: u64,
    },
    Deliver(Box<Sent>),
    /// A job of an agent goes on.
    Work {
        boot: u64,
        instance: InstanceId,
        job: u64,
    },
    /// A request reaches a fence, and its answer whoever has asked.
    Asked {
        life: u64,
        asker: Asker,
        request: Request,
    },
    Answered {
        asker: Asker,
        request: Request,
        reply: Reply,
    },
    FenceWakes {
        life: u64,
    },
    /// systemd looks whether a fence has given a sign of life.
    FenceHangs {
        life: u64,
    },
    /// systemd kills what is bound to a fence that has ended.
    FenceIsLost,
    DeviceBites,
    /// systemd starts a unit.
    Start {
        name: UnitName,
    },
    GateReads {
        name: UnitName,
        run: u64,
    },
    /// A gate has its answer, and becomes the instance.
    Executes {
        name: UnitName,
        run: u64,
    },
    /// Nobody answers a gate.
    GateGivesUp {
        name: UnitName,
        run: u64,
    },
    Dies {
        name: UnitName,
        run: u64,
    },
    StartFence,
    StartAgent,
    Boot,
    /// What a host does that is to go down waits until it is empty.
    Empties(power::Emptying),
    /// A host goes down once nothing runs on it.
    GoesDown,
}

/// Who waits for a fence's answer.
#[derive(Clone)]
enum Asker {
    Agent { boot: u64 },
    Job { boot: u64, instance: InstanceId, job: u64 },
    Gate { name: UnitName, run: u64 },
    Nobody,
}

/// Whose time it takes: what is paused does it later.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Actor {
    Agent,
    Fence,
    Systemd,
    /// The kernel, and what runs in units.
    Host,
    /// What no pause stops.
    Hardware,
}

impl Event {
    fn actor(&self) -> Actor {
        match self {
            Self::Tick { .. }
            | Self::Look { .. }
            | Self::Deliver(_)
            | Self::Work { .. }
            | Self::Answered { asker: Asker::Agent { .. } | Asker::Job { .. }, .. } => Actor::Agent,
            Self::Asked { .. } | Self::FenceWakes { .. } => Actor::Fence,
            Self::DeviceBites | Self::Boot => Actor::Hardware,
            Self::FenceHangs { .. }
            | Self::FenceIsLost
            | Self::Start { .. }
            | Self::StartFence
            | Self::StartAgent
            | Self::Empties(_)
            | Self::GoesDown => Actor::Systemd,
            _ => Actor::Host,
        }
    }
}

pub struct World {
    pub seed: u64,
    pub mutation: Mutation,
    pub random: Random,
    pub now: Time,
    queue: BTreeMap<(Time, u64), (HostId, Event)>,
    /// Numbers for whatever has to be told apart.
    numbers: u64,
    pub hosts: BTreeMap<HostId, Host>,
    /// Where each server runs, by the tag of its cluster's epoch.
    rafts: BTreeMap<(u32, RaftId), HostId>,
    /// Of the cluster's newest epoch; there may be members of an earlier one that don't know of it.
    beginning: Rc<Beginning>,
    pub network: Network,
    pub declared: Declared,
    /// What the log says up to its newest applied entry, whoever applied it.
    pub truth: State,
    truth_at: u64,
    pub facts: Facts,
    /// What happened, in order, for whoever looks into a history that didn't end well.
    pub trace: Vec<String>,
}

impl World {
    /// Hosts that have just been switched on, of which the first are servers.
    pub fn new(seed: u64, hosts: u64, mut declared: Declared, mutation: Mutation) -> Self {
        let state = cluster::founded(hosts, &mut declared);
        let servers: Vec<(RaftId, NodeId)> = state.servers().filter_map(|(id, node)| Some((node.raft?, *id))).collect();
        let voters = servers.iter().map(|(raft, _)| *raft).collect();
        let membership = Membership { voters, learners: BTreeSet::new() };
        let start = Recovered { membership, ..Recovered::default() };
        let beginning = Rc::new(Beginning { start, state: state.clone() });
        let mut world = Self {
            seed,
            mutation,
            random: Random::new(seed),
            now: 0,
            queue: BTreeMap::new(),
            numbers: 0,
            hosts: BTreeMap::new(),
            rafts: BTreeMap::new(),
            beginning: beginning.clone(),
            truth: state,
            network: Network::default(),
            declared,
            truth_at: 0,
            facts: Facts::new(seed),
            trace: Vec::new(),
        };
        for number in 1..=hosts {
            let node = NodeId(number);
            let raft = servers.iter().find(|(_, id)| *id == node).map(|(raft, _)| *raft);
            let log = raft.map(|raft| (raft, Log::blank(&beginning)));
            let disk = Disk { log, spent: raft.unwrap_or_default(), ..Disk::of(&beginning) };
            world.install(HostId(number), node, disk);
        }
        world
    }

    /// A host that begins with this disk.
    pub fn install(&mut self, id: HostId, node: NodeId, disk: Disk) {
        // Some firmwares say nothing.
        let machine = (self.seed % 5 != 2).then(|| Hash::of(&id.0.to_be_bytes()));
        self.hosts.insert(id, Host::new(id, node, machine, disk));
        self.after(0, id, Event::Boot);
    }

    pub fn note(&mut self, what: impl FnOnce() -> String) {
        let line = format!("{:>7} ms  {}", self.now / MILLISECOND, what());
        self.trace.push(line);
    }

    pub fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    fn after(&mut self, time: Time, host: HostId, event: Event) {
        let number = self.number();
        self.queue.insert((self.now + time, number), (host, event));
    }

    pub fn host(&mut self, id: HostId) -> &mut Host {
        self.hosts.get_mut(&id).expect("it was installed")
    }

    pub fn pause_fence(&mut self, id: HostId, time: Time) {
        let now = self.now;
        if let Some(process) = &mut self.host(id).fence {
            process.paused_until = now + time;
        }
    }

    /// Its agent ends at once, and starts again after a while, if at all.
    pub fn crash_agent(&mut self, id: HostId, starts_after: Option<Time>) {
        let host = self.host(id);
        if let Some(server) = host.agent.take().and_then(|agent| agent.server) {
            host.disk.log = Some((server.id, server.into_log()));
        }
        if let Some(time) = starts_after {
            self.after(time, id, Event::StartAgent);
        }
    }

    fn start_agent(&mut self, id: HostId) {
        let boot = self.number();
        let host = self.host(id);
        if !host.is_on || host.goes_down.is_some() || host.agent.is_some() || host.disk.is_forbidden {
            return;
        }
        host.agent = Some(Agent::new(boot));
        host.agent_paused_until = 0;
        if let Some((raft, log)) = host.disk.log.take() {
            self.start_server(id, raft, log);
        }
        self.after(0, id, Event::Look { boot });
        self.after(TICK, id, Event::Tick { boot });
    }

    fn start_server(&mut self, id: HostId, raft: RaftId, log: Log) {
        let (seed, mutation) = (self.seed ^ (self.number() << 32), self.mutation);
        let host = &self.hosts[&id];
        let server = Server::start((raft, host.node), (seed, mutation), log, &host.disk.beginning);
        self.rafts.insert((host.epoch().tag, raft), id);
        let host = self.host(id);
        host.disk.spent = raft;
        host.agent.as_mut().expect("it is started by its agent").server = Some(server);
        self.turns(id);
    }

    /// The newest epoch of the cluster.
    fn epoch(&self) -> ClusterEpoch {
        self.beginning.epoch()
    }

    /// The host of the leader of the highest term.
    pub fn leader(&self) -> Option<HostId> {
        let members = self.hosts.values().filter(|host| host.epoch() == self.epoch());
        let servers = members.filter_map(|host| Some((host.id, host.agent.as_ref()?.server.as_ref()?)));
        let leaders = servers.filter(|(_, server)| server.leads());
        leaders.max_by_key(|(_, server)| server.driver.term()).map(|(id, _)| id)
    }

    /// The server of a host, if it runs one.
    pub fn server(&mut self, id: HostId) -> Option<&mut Server> {
        self.host(id).agent.as_mut()?.server.as_mut()
    }

    /// The hosts that run servers of an epoch.
    fn servers_of(&self, epoch: ClusterEpoch) -> Vec<HostId> {
        let runs = |host: &&Host| host.agent.as_ref().is_some_and(|agent| agent.server.is_some());
        self.hosts.values().filter(|host| host.epoch() == epoch).filter(runs).map(|host| host.id).collect()
    }

    /// Lets what the log says become true, once.
    fn note_applied(&mut self, of: ClusterEpoch, told: &super::server::Told) {
        if of != self.epoch() {
            return;
        }
        let applied = told.applied.iter().map(|(position, entry)| (position.index, Some((*position, entry)), None));
        let removed = told.removed.iter().map(|(index, raft)| (*index, None, Some(*raft)));
        let mut all: Vec<_> = applied.chain(removed).collect();
        all.sort_by_key(|(index, ..)| *index);
        for (index, entry, removed) in all {
            if index <= self.truth_at {
                continue;
            }
            self.truth_at = index;
            if let Some((position, entry)) = entry {
                let reply = self.mutation.apply(&mut self.truth, position, entry);
                self.facts.applied(&entry.command, &reply);
                self.note(|| format!("applied {index}: {:?}: {reply:?}", entry.command));
            }
            if let Some(raft) = removed {
                self.truth.apply_removal(index, raft);
            }
        }
    }

    /// Lets the next event happen; time goes on to it.
    pub fn step(&mut self) {
        let ((time, _), (id, event)) = self.queue.pop_first().expect("clocks tick for ever");
        self.now = time;
        let host = &self.hosts[&id];
        if !host.is_on && !matches!(event, Event::Boot) {
            return;
        }
        let actor = event.actor();
        let fence_paused = host.fence.as_ref().map_or(0, |fence| fence.paused_until);
        let paused_until = match actor {
            Actor::Agent => host.agent_paused_until.max(host.paused_until),
            Actor::Fence => fence_paused.max(host.paused_until),
            Actor::Systemd => host.systemd_paused_until.max(host.paused_until),
            Actor::Host => host.paused_until,
            Actor::Hardware => 0,
        };
        if paused_until > time {
            return self.after(paused_until - time, id, event);
        }
        match event {
            Event::Boot => self.boot(id),
            Event::Empties(emptying) => self.empties(id, emptying),
            Event::GoesDown => self.go_down(id),
            Event::StartAgent => self.start_agent(id),
            Event::Tick { .. } | Event::Look { .. } | Event::Deliver(_) | Event::Work { .. } => {
                self.agent_event(id, event);
            }
            Event::Answered { asker: Asker::Gate { name, run }, reply, .. } => self.gate_hears(id, &name, run, &reply),
            Event::Answered { asker, request, reply } => self.agent_hears(id, &asker, &request, &reply),
            _ => self.unit_event(id, event),
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
        let end = self.now + 90 * SECOND;
        while !found(self) {
            assert!(self.now < end, "seed {}: no {what} within 90 s: {}", self.seed, self.shown());
            self.run_for(10 * MILLISECOND);
        }
    }

    /// The hosts on which this instance may run now.
    pub fn alive(&self, instance: &InstanceId) -> Vec<HostId> {
        let names = [Failover::Automatic, Failover::Manual].map(|failover| (instance.clone(), failover));
        let on = |host: &Host| names.iter().filter(|name| host.lives(name)).count();
        self.hosts.values().flat_map(|host| std::iter::repeat_n(host.id, on(host))).collect()
    }

    /// Whether everything that is declared runs, where the log says so.
    pub fn is_settled(&self) -> bool {
        let runs = |(id, instance): (&InstanceId, &blixard_core::state::Instance)| {
            let Some(placement) = &instance.placement else { return false };
            let is_running = placement.phase == blixard_core::command::InstancePhase::Running && !placement.stopping;
            let alive = self.alive(id);
            is_running && alive.len() == 1 && self.hosts[&alive[0]].node == placement.node
        };
        self.truth.instances().iter().all(runs) && !self.truth.instances().is_empty()
    }

    /// Whether every member has a lease.
    pub fn all_are_armed(&self) -> bool {
        let fences = || self.hosts.values().filter_map(|host| Some((host, host.fence.as_ref()?.fence.stage())));
        self.truth.nodes().iter().all(|(id, member)| {
            let is_held = |(host, stage): (&Host, Stage)| match stage {
                Stage::Armed { epoch, deadline: Some(deadline), .. } => {
                    host.node == *id && epoch == member.lease.epoch && host.clock.read(self.now) < deadline
                }
                _ => false,
            };
            member.lease.arming().is_some() && fences().any(is_held)
        })
    }

    /// How everything stands, for whoever looks into a history that didn't end well.
    pub fn shown(&self) -> String {
        let trace = self.trace[self.trace.len().saturating_sub(200)..].join("\n");
        let nodes: Vec<_> = self
            .truth
            .nodes()
            .iter()
            .map(|(id, node)| {
                (id, node.lease, node.raft, node.leaving, self.truth.worker_status(*id).map(|status| status.alive))
            })
            .collect();
        let placed: Vec<_> = self
            .truth
            .instances()
            .iter()
            .map(|(id, instance)| {
                let placement = instance.placement.as_ref();
                let placement =
                    placement.map(|p| (p.node, p.unit.generation, p.epoch, p.unit.failover, p.stopping, p.phase));
                (id.to_string(), placement, self.alive(id))
            })
            .collect();
        let hosts: Vec<_> = self
            .hosts
            .values()
            .map(|host| {
                let fence = host.fence.as_ref().map(|process| process.fence.status());
                let agent = host.agent.as_ref().map(|agent| (agent.known().0, agent.is_current(), agent.jobs.len()));
                (host.id, host.node, host.is_on, host.is_retired, fence, agent)
            })
            .collect();
        format!(
            "{trace}\nat {} s: leader {:?}, takeover {:?}\n{nodes:#?}\n{placed:#?}\n{hosts:#?}",
            self.now / SECOND,
            self.leader(),
            self.truth.takeover()
        )
    }
}
