//! &State → the decisions of the leader: place, replace, unplace; and why an instance is where it is, or nowhere.
//!
//! The instances that are nowhere are tried on every node, those of the highest priority first, then in the order of their
//! names, so equal states give equal decisions. Of the nodes that will do, one with the fewest replicas of the same VM is
//! taken, then the one that is the least full, then the one with the lowest id.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;

use crate::command::{Command, InstancePhase};
use crate::manifest::{Constraints, VmSpec};
use crate::state::{Instance, Node, Placement, State};
use crate::types::{
    Availability, Failover, Generation, Hypervisor, InstanceId, NodeId, NodeName, Resources, Timestamp, VmName,
};

/// The decisions that bring the placements closer to what is declared. The leader proposes them, and asks again once
/// they are applied. There are none while members are absent of which isn't known what they run: what is stopped could not be
/// started elsewhere.
#[must_use]
pub fn schedule(state: &State) -> Vec<Command> {
    let mut decisions = Vec::new();
    let is_idle = state.unsettled().next().is_none() && state.waiting_tasks().next().is_none();
    if is_idle || !state.absent().is_empty() {
        return decisions;
    }
    let (mut rooms, mut evictions) = (Rooms::new(state), Evictions::default());
    let mut nowhere = Vec::new();
    let unsettled = state.unsettled().filter_map(|id| Some((id, state.desired(id)?, state.instances().get(id)?)));
    for (id, spec, instance) in unsettled {
        let Some(placement) = &instance.placement else {
            nowhere.push((Reverse(spec.priority), id, instance.generation));
            continue;
        };
        let generation = placement.unit.generation;
        match rooms.change(state, id, placement, &spec) {
            None | Some(Change::Held(_)) => {}
            Some(_) if state.has_outlived_its_epoch(placement) => {
                decisions.push(Command::Unplace { instance: id.clone(), generation });
            }
            Some(_) if !is_alive(state, placement.node) => {}
            Some(Change::Move(obstacle))
                if obstacle.empties() && !evictions.begin(state, id, placement.node, &spec) => {}
            Some(Change::Move(_)) => decisions.push(Command::Unplace { instance: id.clone(), generation }),
            Some(Change::Restart | Change::InPlace) if !may_change(state, placement) => {}
            Some(Change::Restart | Change::InPlace) => {
                rooms.take(placement.node, placement.reserved.max(spec.request()).saturating_sub(placement.reserved));
                decisions.push(Command::Place {
                    instance: id.clone(),
                    node: placement.node,
                    generation: next(instance.generation),
                });
            }
        }
    }
    nowhere.sort_unstable();
    for (_, id, generation) in nowhere {
        let spec = state.desired(id).expect("it is to run");
        if let Some(node) = rooms.choose(state, id, &spec) {
            rooms.take(node, spec.request());
            *rooms.replicas(state, &id.vm).entry(node).or_default() += 1;
            decisions.push(Command::Place { instance: id.clone(), node, generation: next(generation) });
        }
    }
    for id in state.waiting_tasks() {
        let request = state.tasks().get(&id).expect("a task that waits is there").spec.request;
        if let Some(node) = rooms.least_full(state, request) {
            rooms.take(node, request);
            decisions.push(Command::PlaceTask { task: id, node });
        }
    }
    decisions
}

/// What has to leave the nodes that are emptied: of each node one instance after the other, of each VM no more at once than
/// may be away.
#[derive(Default)]
struct Evictions {
    /// Whether something of a node is on its way already.
    nodes: BTreeMap<NodeId, bool>,
    /// How many of a VM are to leave by the decisions so far.
    vms: BTreeMap<VmName, usize>,
}

impl Evictions {
    /// Whether this instance is the next to leave its node.
    fn begin(&mut self, state: &State, id: &InstanceId, node: NodeId, spec: &VmSpec) -> bool {
        let is_stopping = |id: &InstanceId| {
            let placement = state.instances().get(id).and_then(|instance| instance.placement.as_ref());
            placement.is_some_and(|placement| placement.stopping)
        };
        let of_node = self.nodes.entry(node).or_insert_with(|| state.placed_on(node).any(is_stopping));
        if *of_node {
            return false;
        }
        let of_vm = self.vms.entry(id.vm.clone()).or_default();
        *of_node = away(state, id, node).count() + *of_vm < spec.may_be_away();
        *of_vm += usize::from(*of_node);
        *of_node
    }
}

/// The other instance of its VM for which this one stays on a node that is emptied: it is one too many that is to run, and
/// doesn't.
#[must_use]
pub fn keeps<'a>(state: &'a State, id: &InstanceId) -> Option<&'a InstanceId> {
    let here = state.instances().get(id)?.placement.as_ref()?.node;
    away(state, id, here).nth(state.desired(id)?.may_be_away() - 1)
}

/// The other instances of a VM that are to run, and don't, but for those that wait for longer than this one may stay on the node
/// `here`: for their volumes there, or for any node to be opened.
fn away<'a>(state: &'a State, id: &InstanceId, here: NodeId) -> impl Iterator<Item = &'a InstanceId> {
    let is_away = |instance: &Instance| match &instance.placement {
        Some(placement) => {
            placement.stopping || placement.phase == InstancePhase::Starting || !is_alive(state, placement.node)
        }
        None => true,
    };
    let is_any_open = state.nodes().values().any(|node| closed(node).is_none());
    let comes = move |other| is_any_open && state.desired(other).is_some() && state.volumes_on(other) != Some(here);
    let others = state.instances_of(&id.vm).filter(move |(other, _)| *other != id);
    others.filter(move |(other, instance)| is_away(instance) && comes(other)).map(|(other, _)| other)
}

/// What a changed declaration asks of a placement; the smallest that does it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// Limits or policy alone: it runs on.
    InPlace,
    /// Another runner on the same node.
    Restart,
    /// Its node won't do any more.
    Move(Obstacle),
    /// Its node won't do any more, but its volumes are there: it runs on as it is.
    Held(Obstacle),
}

/// Why a node won't do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Obstacle {
    NotRegistered,
    /// Nothing on it stops an automatic instance in time.
    NoFence {
        why: String,
    },
    /// Its fence has no lease.
    NotArmed,
    /// It is being removed.
    Leaving,
    Cordoned,
    Draining,
    Rebooting,
    NotAlive {
        since: Timestamp,
    },
    System {
        has: String,
        needs: String,
    },
    NoKvm,
    Hypervisor {
        needs: Hypervisor,
    },
    Label {
        key: String,
        has: Option<String>,
        needs: String,
    },
    Cpus {
        needs: u32,
        free: u32,
        total: u32,
    },
    Memory {
        needs: u64,
        free: u64,
        total: u64,
    },
    Disk {
        needs: u64,
        free: u64,
        total: u64,
    },
    /// It was there before, and has volumes.
    Volumes {
        on: NodeName,
    },
}

impl Obstacle {
    /// Whether it is one to what a node runs already.
    fn empties(&self) -> bool {
        matches!(self, Self::Leaving | Self::Draining | Self::Rebooting)
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotRegistered => write!(f, "has not registered yet"),
            Self::NoFence { why } => write!(f, "has no fence, which an automatic instance needs: {why}"),
            Self::NotArmed => write!(f, "has no lease"),
            Self::Leaving => write!(f, "is being removed"),
            Self::Cordoned => write!(f, "is cordoned"),
            Self::Draining => write!(f, "is being drained"),
            Self::Rebooting => write!(f, "is drained until its host has booted"),
            Self::NotAlive { .. } => write!(f, "does not answer"),
            Self::System { has, needs } => write!(f, "is {has}, needs {needs}"),
            Self::NoKvm => write!(f, "has no /dev/kvm"),
            Self::Hypervisor { needs } => write!(f, "does not run {needs}"),
            Self::Label { key, has: Some(has), needs } => write!(f, "label {key} is {has:?}, needs {needs:?}"),
            Self::Label { key, has: None, needs } => write!(f, "has no label {key}, needs {needs:?}"),
            Self::Cpus { needs, free, total } => write!(f, "{free} of {total} CPUs free, needs {needs}"),
            Self::Memory { needs, free, total } => write!(f, "{free} of {total} MiB memory free, needs {needs} MiB"),
            Self::Disk { needs, free, total } => write!(f, "{free} of {total} MiB disk free, needs {needs} MiB"),
            Self::Volumes { on } => write!(f, "its volumes are on {on}"),
        }
    }
}

/// What is free on each node, and how many replicas of each VM it has: what decisions and explanations are made from.
pub struct Rooms {
    free: BTreeMap<NodeId, Resources>,
    /// Only of the VMs that were asked for.
    replicas: BTreeMap<VmName, BTreeMap<NodeId, u32>>,
}

impl Rooms {
    #[must_use]
    pub fn new(state: &State) -> Self {
        let free = state.nodes().iter().filter_map(|(id, node)| {
            let worker = node.worker.as_ref()?;
            Some((*id, worker.resources.saturating_sub(state.used(*id))))
        });
        Self { free: free.collect(), replicas: BTreeMap::new() }
    }

    /// How many replicas of a VM each node has, those just decided included.
    fn replicas(&mut self, state: &State, vm: &VmName) -> &mut BTreeMap<NodeId, u32> {
        self.replicas.entry(vm.clone()).or_insert_with(|| {
            let mut counts = BTreeMap::new();
            for (_, instance) in state.instances_of(vm) {
                if let Some(placement) = &instance.placement {
                    *counts.entry(placement.node).or_default() += 1;
                }
            }
            counts
        })
    }

    fn take(&mut self, node: NodeId, request: Resources) {
        if let Some(free) = self.free.get_mut(&node) {
            *free = free.saturating_sub(request);
        }
    }

    /// What `spec` asks of a placement; nothing where that is as declared.
    #[must_use]
    pub fn change(&self, state: &State, id: &InstanceId, placement: &Placement, spec: &VmSpec) -> Option<Change> {
        let node = state.nodes().get(&placement.node)?;
        if let Some(obstacle) = closed(node).filter(Obstacle::empties) {
            return Some(Change::Move(obstacle));
        }
        if placement.is_as_declared(id, spec) {
            return None;
        }
        let unit = spec.unit(id, placement.unit.generation, placement.unit.failover)?;
        let (request, constraints) = (spec.request(), spec.constraints());
        let worker = node.worker.as_ref()?;
        let growth = placement.reserved.max(request).saturating_sub(placement.reserved);
        let suits = if constraints == placement.constraints { Ok(()) } else { suits(node, &constraints) };
        let free = self.free.get(&placement.node).copied().unwrap_or_default();
        Some(match suits.and_then(|()| has_room(growth, free, worker.resources)) {
            Err(obstacle) if placement.request.disk_mib > 0 => Change::Held(obstacle),
            Err(obstacle) => Change::Move(obstacle),
            Ok(()) if unit.runner != placement.unit.runner => Change::Restart,
            Ok(()) => Change::InPlace,
        })
    }

    /// Every node, and what stands against placing this instance there now; nothing where it could go.
    #[must_use]
    pub fn explain(&self, state: &State, id: &InstanceId, spec: &VmSpec) -> Vec<(NodeId, Option<Obstacle>)> {
        let mut verdicts = self.verdicts(state, Some((&spec.constraints(), state.failover(spec))), spec.request());
        if let Some((home, member)) = state.volumes_on(id).and_then(|home| Some((home, state.nodes().get(&home)?))) {
            for (_, obstacle) in verdicts.iter_mut().filter(|(node, _)| *node != home) {
                *obstacle = Some(Obstacle::Volumes { on: member.name.clone() });
            }
        }
        verdicts
    }

    /// The same for a task, which runs anywhere where there is room.
    #[must_use]
    pub fn explain_request(&self, state: &State, request: Resources) -> Vec<(NodeId, Option<Obstacle>)> {
        self.verdicts(state, None, request)
    }

    /// What stands against placing such an instance on this node now, wherever its volumes are; nothing where it could go.
    #[must_use]
    pub fn obstacle(&self, state: &State, node: NodeId, spec: &VmSpec) -> Option<Obstacle> {
        let member = state.nodes().get(&node)?;
        let what = (&spec.constraints(), state.failover(spec));
        self.verdict(state, node, member, Some(what), spec.request()).err()
    }

    fn verdicts(
        &self,
        state: &State,
        constraints: Option<(&Constraints, Failover)>,
        request: Resources,
    ) -> Vec<(NodeId, Option<Obstacle>)> {
        let verdict = |(id, node): (&NodeId, &Node)| (*id, self.verdict(state, *id, node, constraints, request).err());
        state.nodes().iter().map(verdict).collect()
    }

    fn choose(&mut self, state: &State, id: &InstanceId, spec: &VmSpec) -> Option<NodeId> {
        let bound_for = state.instances().get(id).and_then(|instance| instance.bound_for);
        self.replicas(state, &id.vm);
        let replicas = &self.replicas[&id.vm];
        let (constraints, failover) = (spec.constraints(), state.failover(spec));
        let home = state.volumes_on(id);
        let candidates =
            state.nodes().iter().filter(|(node, _)| home.is_none_or(|home| home == **node)).filter(|(node, member)| {
                self.verdict(state, **node, member, Some((&constraints, failover)), spec.request()).is_ok()
            });
        let rank = |node| {
            let replicas = replicas.get(&node).copied().unwrap_or_default();
            (bound_for != Some(node), replicas, self.fullness(state, node), node)
        };
        candidates.map(|(node, _)| *node).min_by_key(|node| rank(*node))
    }

    fn least_full(&self, state: &State, request: Resources) -> Option<NodeId> {
        let candidates =
            state.nodes().iter().filter(|(node, member)| self.verdict(state, **node, member, None, request).is_ok());
        candidates.map(|(node, _)| *node).min_by_key(|node| (self.fullness(state, *node), *node))
    }

    /// How much of a node's scarcest resource is taken, in thousandths.
    fn fullness(&self, state: &State, node: NodeId) -> u64 {
        let total = state.nodes().get(&node).and_then(|node| node.worker.as_ref()).map(|worker| worker.resources);
        let (Some(total), Some(free)) = (total, self.free.get(&node)) else { return 1000 };
        let part = |free: u64, total: u64| {
            let taken = u128::from(total.saturating_sub(free)) * 1000 / u128::from(total.max(1));
            u64::try_from(taken).unwrap_or(1000)
        };
        part(u64::from(free.cpus), u64::from(total.cpus))
            .max(part(free.memory_mib, total.memory_mib))
            .max(part(free.disk_mib, total.disk_mib))
    }

    fn verdict(
        &self,
        state: &State,
        id: NodeId,
        node: &Node,
        constraints: Option<(&Constraints, Failover)>,
        request: Resources,
    ) -> Result<(), Obstacle> {
        let worker = node.worker.as_ref().ok_or(Obstacle::NotRegistered)?;
        if let Some(obstacle) = closed(node) {
            return Err(obstacle);
        }
        match state.worker_status(id) {
            Some(status) if status.alive => {}
            Some(status) => return Err(Obstacle::NotAlive { since: status.since }),
            None => return Err(Obstacle::NotRegistered),
        }
        if let Some((constraints, failover)) = constraints {
            suits(node, constraints)?;
            if failover == Failover::Automatic && node.lease.arming().is_none() {
                let no_fence = worker.no_fence.clone().map(|why| Obstacle::NoFence { why });
                return Err(no_fence.unwrap_or(Obstacle::NotArmed));
            }
        }
        has_room(request, self.free.get(&id).copied().unwrap_or_default(), worker.resources)
    }
}

/// Why nothing is placed on a node, by a person's will.
fn closed(node: &Node) -> Option<Obstacle> {
    match node.availability {
        _ if node.leaving => Some(Obstacle::Leaving),
        Availability::Active => None,
        Availability::Cordoned => Some(Obstacle::Cordoned),
        Availability::Draining => Some(Obstacle::Draining),
        Availability::Rebooting => Some(Obstacle::Rebooting),
    }
}

fn suits(node: &Node, constraints: &Constraints) -> Result<(), Obstacle> {
    let worker = node.worker.as_ref().ok_or(Obstacle::NotRegistered)?;
    if worker.system != constraints.system {
        return Err(Obstacle::System { has: worker.system.clone(), needs: constraints.system.clone() });
    }
    if constraints.kvm && !worker.kvm {
        return Err(Obstacle::NoKvm);
    }
    if !worker.hypervisors.contains(&constraints.hypervisor) {
        return Err(Obstacle::Hypervisor { needs: constraints.hypervisor });
    }
    for (key, needs) in constraints.requires.iter() {
        let has = worker.labels.get(key);
        if has != Some(needs) {
            return Err(Obstacle::Label { key: key.clone(), has: has.cloned(), needs: needs.clone() });
        }
    }
    Ok(())
}

fn has_room(needs: Resources, free: Resources, total: Resources) -> Result<(), Obstacle> {
    if needs.memory_mib > free.memory_mib {
        return Err(Obstacle::Memory { needs: needs.memory_mib, free: free.memory_mib, total: total.memory_mib });
    }
    if needs.cpus > free.cpus {
        return Err(Obstacle::Cpus { needs: needs.cpus, free: free.cpus, total: total.cpus });
    }
    if needs.disk_mib > free.disk_mib {
        return Err(Obstacle::Disk { needs: needs.disk_mib, free: free.disk_mib, total: total.disk_mib });
    }
    Ok(())
}

/// Whether its node has the lease by which it is started; if not, it is placed anew once that has ended for sure.
fn may_change(state: &State, placement: &Placement) -> bool {
    let node = state.nodes().get(&placement.node);
    placement.unit.failover == Failover::Manual || node.is_some_and(|node| node.lease.arming().is_some())
}

fn is_alive(state: &State, node: NodeId) -> bool {
    state.worker_status(node).is_some_and(|status| status.alive)
}

fn next(generation: Generation) -> Generation {
    Generation(generation.0 + 1)
}

#[cfg(test)]
mod tests;
