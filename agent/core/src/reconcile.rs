//! (placements, units) → what to do about the units of this node, and what to tell the cluster about them.

use std::collections::{BTreeMap, BTreeSet};

use crate::command::{InstancePhase, MAX_MESSAGE_CHARS, TaskPhase, TaskReport, VmReport};
use crate::state::{Absence, Placement, State, Task};
use crate::types::{Exit, Failover, InstanceId, NodeEpoch, NodeId, TaskId};
use crate::unit::{Observed, ObservedTask, ObservedVm, TaskUnit, UnitPhase, VmUnit};

/// What this node must change so that its units match the placements.
///
/// An instance's stop comes before its start. While it isn't known what absent members run, no instance is started that
/// doesn't run already: it may run there. Nor is an automatic one whose epoch isn't the fence's. `observed` holds every
/// instance of which this node has a unit, a file or a GC root.
#[must_use]
pub fn reconcile(node: NodeId, state: &State, observed: &Observed, attempts: &Attempts) -> Vec<UnitAction> {
    let (mut stops, mut starts) = (Vec::new(), Vec::new());
    let may_start = |placement: &Placement| state.absent().is_empty() && is_within(placement, observed);
    let stop = |change, reason| UnitAction { change, reason };
    for (id, vm) in &observed.vms {
        match placement_here(node, state, id) {
            None => stops.push(stop(UnitChange::StopVm(id.clone()), Reason::NotPlacedHere)),
            Some(placement) if is_of_other_template(placement, vm) => {
                stops.push(stop(UnitChange::StopVm(id.clone()), Reason::FailoverChanged));
            }
            Some(placement) => {
                let other = vm.installed.as_ref().is_none_or(|unit| unit.runner != placement.unit.runner);
                if other && may_start(placement) && vm.phase != UnitPhase::Inactive {
                    stops.push(stop(UnitChange::StopVm(id.clone()), Reason::RunnerChanged));
                }
            }
        }
    }
    for (id, task) in &observed.tasks {
        let placed = state.tasks().get(id).is_some_and(|task| task.node == Some(node) && !task.is_over());
        if !placed && (task.phase != UnitPhase::Inactive || task.installed.is_some() || task.last_exit.is_some()) {
            stops.push(stop(UnitChange::StopTask(*id), Reason::TaskOver));
        }
    }
    for (id, placement) in placements_here(node, state) {
        let vm = observed.vms.get(id);
        let installed = vm.and_then(|vm| vm.installed.as_ref());
        let live = vm.is_some_and(|vm| vm.phase != UnitPhase::Inactive);
        let wanted = &placement.unit;
        let goes_on = installed.is_some_and(|unit| (&unit.runner, unit.failover) == (&wanted.runner, wanted.failover));
        if live && goes_on {
            if installed != Some(wanted) {
                let change = UnitChange::UpdateVm(placement.unit.clone(), placement.epoch);
                starts.push(UnitAction { change, reason: Reason::LimitsChanged });
            }
        } else if may_start(placement) && ended(placement, vm).is_none() {
            let change = UnitChange::StartVm(placement.unit.clone(), placement.epoch);
            starts.push(UnitAction { change, reason: Reason::PlacedHere });
        }
    }
    for (id, task) in tasks_here(node, state) {
        // A file without a unit or an exit is a start that didn't get far.
        let untouched =
            observed.tasks.get(id).is_none_or(|task| task.phase == UnitPhase::Inactive && task.last_exit.is_none());
        // Only what the cluster was told before is started, and only by the agent that said so: so it never runs twice.
        if task.phase == Some(TaskPhase::Running) && untouched && attempts.claimed.contains(id) {
            let unit = TaskUnit {
                task: *id,
                command: task.spec.command.clone(),
                cpus: task.spec.request.cpus,
                memory_max_mib: task.spec.request.memory_mib,
            };
            starts.push(UnitAction { change: UnitChange::StartTask(unit), reason: Reason::PlacedHere });
        }
    }
    stops.append(&mut starts);
    stops
}

/// Whether this node has to say that it is back in the cluster, since it has nothing more to stop: what it still runs is
/// placed on it.
#[must_use]
pub fn returns(node: NodeId, state: &State, actions: &[UnitAction]) -> bool {
    let is_stop = |action: &UnitAction| matches!(action.change, UnitChange::StopVm(_) | UnitChange::StopTask(_));
    state.absent().get(&node) == Some(&Absence::Rejoined) && !actions.iter().any(is_stop)
}

/// What is being done to instances and tasks, by their names.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Attempts {
    /// Being changed right now: nothing of it may be observed although it is about to start.
    pub under_way: BTreeSet<String>,
    /// What the last attempt came to, where it failed.
    pub failures: BTreeMap<String, String>,
    /// Tasks that this agent has reported as running since it started.
    pub claimed: BTreeSet<TaskId>,
}

impl Attempts {
    fn failure(&self, name: &str) -> String {
        let message = self.failures.get(name).map(String::as_str).unwrap_or_default();
        message.chars().take(MAX_MESSAGE_CHARS).collect()
    }
}

/// What the cluster doesn't know yet of this node's instances and tasks.
#[must_use]
pub fn report(
    node: NodeId,
    state: &State,
    observed: &Observed,
    attempts: &Attempts,
) -> (Vec<VmReport>, Vec<TaskReport>) {
    let all = state.placed_on(node).filter_map(|id| Some((id, state.instances().get(id)?.placement.as_ref()?)));
    let vms = all.filter_map(|(id, placement)| {
        let vm = observed.vms.get(id);
        let name = id.to_string();
        let message = attempts.failure(&name);
        if placement.stopping && attempts.under_way.contains(&name) {
            return None;
        }
        if placement.stopping && !is_within(placement, observed) {
            // Whatever ends its epoch frees it. On a host that is armed at another one, or at none, nothing may be seen of it
            // because it runs on another machine, from which this host's disk was copied.
            return None;
        }
        let phase = phase_of(placement, vm, !message.is_empty());
        let restarts = vm.map_or(0, |vm| vm.restarts);
        let known = placement.phase == phase && placement.restarts == restarts && placement.message == message;
        let generation = placement.unit.generation;
        (!known).then(|| VmReport { instance: id.clone(), generation, phase, restarts, message })
    });
    let tasks = tasks_here(node, state).filter_map(|(id, task)| {
        let message = attempts.failure(&id.to_string());
        let claimed = attempts.claimed.contains(id);
        let phase = task_phase(observed.tasks.get(id), task.phase.is_none() || claimed, !message.is_empty());
        (task.phase != Some(phase)).then_some(TaskReport { task: *id, phase, message })
    });
    (vms.collect(), tasks.collect())
}

fn phase_of(placement: &Placement, vm: Option<&ObservedVm>, failed: bool) -> InstancePhase {
    if placement.stopping {
        // Not before everything of it is gone: the unit, its file and its root.
        return if vm.is_none() { InstancePhase::Stopped } else { placement.phase };
    }
    let current = vm.and_then(|vm| vm.installed.as_ref()).is_some_and(|unit| *unit == placement.unit);
    match vm {
        Some(vm) if current && vm.phase == UnitPhase::Running => InstancePhase::Running,
        // Also while it runs as it was before.
        Some(vm) if vm.phase != UnitPhase::Inactive => InstancePhase::Starting,
        _ => match ended(placement, vm) {
            Some(exit) => InstancePhase::Ended(exit),
            None if failed => InstancePhase::Ended(Exit::NotStarted),
            None => InstancePhase::Starting,
        },
    }
}

/// How this generation ended, if its policy doesn't start it again.
///
/// The unit's own record is gone after a reboot; then what the cluster was told of it counts.
fn ended(placement: &Placement, vm: Option<&ObservedVm>) -> Option<Exit> {
    if vm.is_some_and(|vm| vm.phase != UnitPhase::Inactive) {
        return None;
    }
    let record = vm.and_then(|vm| vm.last_exit).filter(|record| record.generation == placement.unit.generation);
    let known = match placement.phase {
        InstancePhase::Ended(exit) if exit != Exit::NotStarted => Some(exit),
        _ => None,
    };
    let exit = record.map(|record| record.exit).or(known)?;
    (!placement.unit.restart.restarts_after(&exit)).then_some(exit)
}

/// A task is said to run before it is started; `ours` is whether this agent says so, or has.
fn task_phase(observed: Option<&ObservedTask>, ours: bool, failed: bool) -> TaskPhase {
    match observed {
        Some(unit) if unit.phase != UnitPhase::Inactive => TaskPhase::Running,
        Some(ObservedTask { last_exit: Some(record), .. }) => TaskPhase::Ended(record.exit),
        _ if failed => TaskPhase::Ended(Exit::NotStarted),
        _ if ours => TaskPhase::Running,
        // An earlier agent, or boot, may have started it.
        _ => TaskPhase::Ended(Exit::HostRestarted),
    }
}

/// Whether this host can speak for a placement: what is automatic is its fence's, in the epoch in which it was placed.
fn is_within(placement: &Placement, observed: &Observed) -> bool {
    placement.unit.failover == Failover::Manual || observed.armed == Some(placement.epoch)
}

/// Whether it was installed as automatic and is placed as manual, or the other way: what it was placed as before was freed while
/// this host was away, or the cluster began anew. What ends the one proves nothing of the other.
fn is_of_other_template(placement: &Placement, vm: &ObservedVm) -> bool {
    vm.installed.as_ref().is_some_and(|unit| unit.failover != placement.unit.failover)
}

fn placement_here<'a>(node: NodeId, state: &'a State, id: &InstanceId) -> Option<&'a Placement> {
    let placement = state.instances().get(id)?.placement.as_ref()?;
    (placement.node == node && !placement.stopping).then_some(placement)
}

fn placements_here(node: NodeId, state: &State) -> impl Iterator<Item = (&InstanceId, &Placement)> {
    state.placed_on(node).filter_map(move |id| Some((id, placement_here(node, state, id)?)))
}

fn tasks_here(node: NodeId, state: &State) -> impl Iterator<Item = (&TaskId, &Task)> {
    state.tasks_on(node).filter_map(|id| state.tasks().get_key_value(&id))
}

/// One change to this node's units, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnitAction {
    pub change: UnitChange,
    pub reason: Reason,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum UnitChange {
    /// Stop the unit and wait until nothing of it runs, then take away its file, limits and GC root.
    StopVm(InstanceId),
    /// Write the file, set the limits, start the unit and await the job; the runner is in the store already. What is automatic
    /// is started by the fence's leave, in the epoch in which it was placed.
    StartVm(VmUnit, NodeEpoch),
    /// Rewrite the file and set the limits of a unit that goes on running.
    UpdateVm(VmUnit, NodeEpoch),
    StopTask(TaskId),
    StartTask(TaskUnit),
}

impl UnitChange {
    pub const fn verb(&self) -> &'static str {
        match self {
            Self::StopVm(_) | Self::StopTask(_) => "stop",
            Self::StartVm(..) | Self::StartTask(_) => "start",
            Self::UpdateVm(..) => "update",
        }
    }
}

/// Why a unit is changed; logged with the action.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// The cluster placed it here and it doesn't run.
    PlacedHere,
    /// Nothing places it here: removed, to be stopped, moved, or never known.
    NotPlacedHere,
    /// It runs another runner than it is to.
    RunnerChanged,
    /// It was installed as automatic and is placed as manual, or the other way.
    FailoverChanged,
    /// Only limits, policy or generation differ.
    LimitsChanged,
    /// The task has ended, and the cluster knows it.
    TaskOver,
}

#[cfg(test)]
mod tests;
