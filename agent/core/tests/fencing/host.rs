//! One host: its clock, its processes, its units, and what of it outlives them.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use blixard_core::fence::{Fence, Group, Stage};
use blixard_core::reconcile::UnitChange;
use blixard_core::state::State;
use blixard_core::types::{BootTime, ClusterEpoch, Failover, Generation, Hash, InstanceId, NodeEpoch, NodeId, RaftId};
use blixard_core::unit::{Observed, ObservedVm, UnitPhase, VmUnit};

use super::server::{Beginning, Log, Server};
use super::world::{HostId, Time};

/// A unit: an instance, and the template that it is of.
pub type UnitName = (InstanceId, Failover);

pub struct Host {
    pub id: HostId,
    pub node: NodeId,
    /// What its firmware says.
    pub machine: Option<Hash>,
    pub clock: Clock,
    pub is_on: bool,
    /// It goes down in order, and is booted after this time.
    pub goes_down: Option<Time>,
    /// It never runs again.
    pub is_retired: bool,
    /// All of it stands still until then.
    pub paused_until: Time,
    pub agent: Option<Agent>,
    pub agent_paused_until: Time,
    pub systemd_paused_until: Time,
    pub fence: Option<FenceProcess>,
    /// What lies under the run directory, for the gate.
    pub installed: BTreeMap<InstanceId, VmUnit>,
    pub units: BTreeMap<UnitName, Unit>,
    /// What is killed until then doesn't die before.
    pub stuck_until: Time,
    pub device: Device,
    pub disk: Disk,
}

/// What a crash and a reboot leave.
#[derive(Clone)]
pub struct Disk {
    /// Of the cluster that it is a member of.
    pub beginning: Rc<Beginning>,
    /// What it had of that is put aside: it joins anew.
    pub rejoins: bool,
    /// A server found its log to lack what it has acknowledged: no agent goes on from it.
    pub is_forbidden: bool,
    pub log: Option<(RaftId, Log)>,
    /// The newest raft id that it was a server by.
    pub spent: RaftId,
}

impl Disk {
    /// Of a member that never was a server.
    pub fn of(beginning: &Rc<Beginning>) -> Self {
        Self { beginning: beginning.clone(), rejoins: false, is_forbidden: false, log: None, spent: RaftId::default() }
    }
}

/// The watchdog device: it resets the host unless it gets a sign of life in time.
#[derive(Default)]
pub struct Device {
    pub timeout: Option<Time>,
    pub bites_at: Option<Time>,
}

/// `CLOCK_BOOTTIME`, which isn't right.
#[derive(Clone, Copy)]
pub struct Clock {
    booted: Time,
    /// Parts that it counts, of a million.
    rate: u64,
}

impl Clock {
    pub fn new(booted: Time, rate: u64) -> Self {
        Self { booted, rate }
    }

    pub fn read(self, now: Time) -> BootTime {
        BootTime((now - self.booted) * self.rate / 1000)
    }

    /// By which a host's boots are told apart.
    pub fn boot(self) -> Hash {
        Hash::of(&self.booted.to_be_bytes())
    }

    /// When it will show this.
    pub fn when(self, time: BootTime) -> Time {
        self.booted + (time.0 * 1000).div_ceil(self.rate)
    }
}

pub struct FenceProcess {
    pub life: u64,
    pub fence: Fence,
    pub paused_until: Time,
    /// After how long without a sign of life systemd takes it for hung, and when.
    pub watchdog: Time,
    pub hangs_at: Time,
    /// When it is to look again; a later turn may have said otherwise.
    pub wakes_at: Time,
}

/// What systemd knows of a unit that isn't inactive.
pub struct Unit {
    /// Which of all starts it is.
    pub run: u64,
    pub phase: RunPhase,
    pub generation: Generation,
    /// It was told to end, and systemd or the kernel sees to it that it does.
    pub is_killed: bool,
    /// A person has said that it doesn't run, though it does.
    pub is_denied: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RunPhase {
    /// The gate runs in it.
    Gate,
    Running,
    /// It may still run.
    Stopping,
}

/// What an agent loses when it crashes.
pub struct Agent {
    pub boot: u64,
    pub server: Option<Server>,
    /// What it was told as a worker, and as of which entry.
    pub told: (u64, State),
    /// The cluster knows of this boot of its host.
    pub is_registered: bool,
    /// Its request for a barrier, and the entry up to which it has to know all.
    pub barrier: Option<u64>,
    pub needs: Option<u64>,
    /// Of which epoch each renewal is, and when it was sent, as its clock has it.
    pub renewals: BTreeMap<u64, (NodeEpoch, BootTime)>,
    pub beats_at: BootTime,
    pub proposes_at: BootTime,
    pub jobs: BTreeMap<InstanceId, Job>,
}

/// What is being done to an instance, in order.
pub struct Job {
    pub id: u64,
    pub since: Time,
    pub changes: VecDeque<UnitChange>,
}

impl Agent {
    pub fn new(boot: u64) -> Self {
        Self {
            boot,
            server: None,
            told: (0, State::default()),
            is_registered: false,
            barrier: None,
            needs: None,
            renewals: BTreeMap::new(),
            beats_at: BootTime(0),
            proposes_at: BootTime(0),
            jobs: BTreeMap::new(),
        }
    }

    /// The newest that it knows of the cluster, and as of which entry.
    pub fn known(&self) -> (u64, &State) {
        match &self.server {
            Some(server) if server.applied.index >= self.told.0 => (server.applied.index, &server.state),
            _ => (self.told.0, &self.told.1),
        }
    }

    /// Whether it knows all that was acknowledged before it started.
    pub fn is_current(&self) -> bool {
        self.needs.is_some_and(|index| self.known().0 >= index)
    }
}

impl Host {
    pub fn new(id: HostId, node: NodeId, machine: Option<Hash>, disk: Disk) -> Self {
        Self {
            id,
            node,
            machine,
            clock: Clock::new(0, 1_000_000),
            is_on: false,
            goes_down: None,
            is_retired: false,
            paused_until: 0,
            agent: None,
            agent_paused_until: 0,
            systemd_paused_until: 0,
            fence: None,
            installed: BTreeMap::new(),
            units: BTreeMap::new(),
            stuck_until: 0,
            device: Device::default(),
            disk,
        }
    }

    /// The epoch of the cluster that it is a member of.
    pub fn epoch(&self) -> ClusterEpoch {
        self.disk.beginning.epoch()
    }

    /// Whether it never was a server.
    pub fn is_worker(&self) -> bool {
        let serves = self.agent.as_ref().is_some_and(|agent| agent.server.is_some());
        !serves && self.disk.spent == RaftId::default()
    }

    /// Whether it may be running: whatever its gate has let through and nobody has seen dead, or said to be.
    pub fn lives(&self, name: &UnitName) -> bool {
        self.units.get(name).is_some_and(|unit| unit.phase != RunPhase::Gate && !unit.is_denied)
    }

    /// Whether there is nothing in the slice that the fence kills.
    pub fn is_slice_empty(&self) -> bool {
        self.units.keys().all(|(_, failover)| *failover == Failover::Manual)
    }

    /// The control group of an instance, as the fence finds it when `run` asks, or somebody else.
    pub fn group(&self, instance: &InstanceId, run: Option<u64>) -> Group {
        match self.units.get(&(instance.clone(), Failover::Automatic)) {
            None => Group::Empty,
            Some(unit) if Some(unit.run) == run => Group::Asking,
            Some(_) => Group::Populated,
        }
    }

    /// What the agent sees of its units.
    pub fn observed(&self) -> Observed {
        let stage = self.fence.as_ref().map(|process| process.fence.status().stage);
        let armed = stage.and_then(|stage| if let Stage::Armed { epoch, .. } = stage { Some(epoch) } else { None });
        let mut observed = Observed { armed, ..Observed::default() };
        let names = self.installed.keys().chain(self.units.keys().map(|(instance, _)| instance));
        for instance in names {
            let phases = [Failover::Automatic, Failover::Manual]
                .map(|failover| self.units.get(&(instance.clone(), failover)).map(|unit| unit.phase));
            let phase = match phases.into_iter().flatten().next() {
                None => UnitPhase::Inactive,
                Some(RunPhase::Gate) => UnitPhase::Starting,
                Some(RunPhase::Running) => UnitPhase::Running,
                Some(RunPhase::Stopping) => UnitPhase::Stopping,
            };
            let vm =
                ObservedVm { phase, installed: self.installed.get(instance).cloned(), restarts: 0, last_exit: None };
            observed.vms.insert(instance.clone(), vm);
        }
        observed
    }
}
