//! What a unit is: what it is to run, and what systemd says of it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::types::{Exit, Failover, Generation, InstanceId, NodeEpoch, RestartPolicy, StorePath, TaskId};

/// What a VM's unit is to run: its file under the run directory, which the gate reads, and its limits.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VmUnit {
    pub instance: InstanceId,
    pub generation: Generation,
    pub runner: StorePath,
    pub restart: RestartPolicy,
    /// Whether its node's fence stops it when the node isn't heard any more.
    pub failover: Failover,
    /// Whether the runner itself says READY=1.
    pub notifies: bool,
    /// The unit's `CPUQuota`, in CPUs.
    pub cpus: u32,
    /// The unit's `MemoryMax`.
    pub memory_max_mib: u64,
}

/// What a task's unit is to run.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TaskUnit {
    pub task: TaskId,
    pub command: Vec<String>,
    pub cpus: u32,
    pub memory_max_mib: u64,
}

/// What systemd says of a unit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum UnitPhase {
    /// Activating, or waiting to be started again.
    Starting,
    Running,
    /// Deactivating: it may still run.
    Stopping,
    /// Nothing of it runs.
    Inactive,
}

/// How the last run of a unit ended, and of which generation that run was (a task has only one: 0).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ExitRecord {
    pub generation: Generation,
    pub exit: Exit,
}

/// One VM's unit on this node as it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ObservedVm {
    pub phase: UnitPhase,
    /// The file that the gate reads, where there is one.
    pub installed: Option<VmUnit>,
    /// How often systemd started it again since it was first started.
    pub restarts: u32,
    pub last_exit: Option<ExitRecord>,
}

/// One task's unit on this node as it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ObservedTask {
    pub phase: UnitPhase,
    pub installed: Option<TaskUnit>,
    pub last_exit: Option<ExitRecord>,
}

/// Every instance and task of which this node has a loaded unit, or a file under the run directory, or a GC root.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Observed {
    /// The epoch that this host's fence is armed at, if it is.
    pub armed: Option<NodeEpoch>,
    pub vms: BTreeMap<InstanceId, ObservedVm>,
    pub tasks: BTreeMap<TaskId, ObservedTask>,
}
