//! The replicated state and its one door: `apply(index, entry) → Outcome {reply, changes}`.
//!
//! Deterministic: equal entries make equal states on every server. What `apply` refuses leaves the state as it was.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::command::{Answer, Command, Entry, InstancePhase, NewNode, Origin, Reply, TaskPhase, TaskSpec, Worker};
use crate::manifest::{ClusterSettings, Constraints, DeclaredNode, Manifest, VmSpec};
use crate::types::{
    Address, Availability, ClusterEpoch, ClusterId, Exit, Generation, Hash, InstanceId, Level, NodeEpoch, NodeId,
    NodeName, NodeRole, RaftId, Resources, RotationStep, SecretIds, TaskId, Term, Timestamp, TokenId, VmName,
};
use crate::unit::VmUnit;
use packed::Packed;
use sessions::Known;

mod assignment;
mod authority;
mod check;
mod declared;
mod drain;
mod epoch;
mod events;
mod index;
mod lease;
mod level;
mod manifests;
mod nodes;
mod packed;
mod placements;
mod removal;
mod roles;
mod rows;
mod secret;
mod sessions;
mod tasks;
mod tokens;
mod vms;

pub use assignment::{Assignment, AssignmentError};
pub use authority::{Other, Rotation};
pub use check::{Check, Diverged};
pub use epoch::{Absence, BeginError, Beginner, Renewal};
pub use events::{
    Event, Happening, LostBecause, MAX_EVENTS, OfCluster, OfInstance, OfNode, PlacedBecause, StopBecause,
};
pub use lease::{Arming, Lease, ManualBecause, Standing, Takeover};
pub use rows::{Change, Loading, RowError, Table};
pub use sessions::WINDOW;
pub use tokens::{MAX_TOKENS, MAX_TTL_MS, MIN_TTL_MS, Token, TokenUse};
pub use vms::{Conflict, MAX_VMS};

/// Everything that the cluster agrees on.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct State {
    cluster: Option<Cluster>,
    counters: Counters,
    nodes: BTreeMap<NodeId, Node>,
    worker_status: BTreeMap<NodeId, WorkerStatus>,
    vms: BTreeMap<VmName, Packed<Vm>>,
    /// Which VM has each runner; follows from `vms`.
    runners: BTreeMap<vms::RunnerKey, VmName>,
    instances: BTreeMap<InstanceId, Instance>,
    tasks: BTreeMap<TaskId, Task>,
    /// By the number of the log entry that made it head.
    manifests: BTreeMap<u64, HeadRecord>,
    held: BTreeMap<NodeId, Held>,
    tokens: BTreeMap<TokenId, Token>,
    /// The last comparison of the servers' states.
    check: Option<Check>,
    events: events::Events,
    sessions: sessions::Sessions,
    index: index::Index,
    /// Rows that the entry being applied has written or removed.
    dirty: rows::Dirty,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Cluster {
    pub id: ClusterId,
    /// DER.
    pub ca_certificate: Vec<u8>,
    /// The authority's key, sealed with the cluster secret, whose id it begins with.
    pub sealed_ca_key: Vec<u8>,
    /// Another authority is taking its place.
    pub rotation: Option<Rotation>,
    pub founded_at: Timestamp,
    /// What `apply` does.
    pub level: Level,
    /// Only the certificates of this epoch are its members'.
    pub epoch: ClusterEpoch,
    /// How this epoch began, and when; nothing where it is the first.
    pub renewal: Option<(Renewal, Timestamp)>,
    /// Its members as of when the epoch began that haven't come back to it.
    pub absent: BTreeMap<NodeId, Absence>,
    pub takeover: Takeover,
    /// How many servers the configuration of its founder lists: so many hosts are to join.
    pub listed_servers: usize,
}

/// The last id given out of each kind; ids start at 1 and are never reused.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Counters {
    pub node: NodeId,
    pub raft: RaftId,
    pub task: u64,
    /// No instance starts below it: the highest generation of the instances that are gone.
    pub generation_floor: Generation,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Node {
    pub name: NodeName,
    pub address: Address,
    pub key: Hash,
    /// By which it is, or is to be, a server.
    pub raft: Option<RaftId>,
    pub role: NodeRole,
    /// The role of the token that it has joined with: its configuration changes nothing about that.
    pub bound: Option<NodeRole>,
    pub joined_at: Timestamp,
    /// The newest level that its agent understood when it last said so.
    pub understands: Level,
    /// Nothing until it has registered; nothing is placed on it before.
    pub worker: Option<Worker>,
    /// It is being removed: what runs on it goes, nothing comes.
    pub leaving: bool,
    /// Until a person says otherwise, or, where it is rebooting, its host has booted.
    pub availability: Availability,
    /// The boot of its host in which its agent registered last.
    pub boot: Option<Hash>,
    /// How far it has come with the last rotation of the authority of which it said so.
    pub rotated: Option<RotationStep>,
    /// The cluster secrets that it said last that it has; nothing where it joins otherwise.
    pub secrets: Option<SecretIds>,
    pub lease: Lease,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct WorkerStatus {
    pub alive: bool,
    pub since: Timestamp,
}

/// A VM, and who decides about it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Vm {
    pub owner: Owner,
    /// Whether it is to run; what a manifest declares always is.
    pub running: bool,
    pub spec: VmSpec,
}

/// Who made a VM, and alone may change or remove it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Owner {
    Manifest,
    /// The command line: no manifest touches it.
    Cli,
}

/// One replica of a VM, or of one that is being removed.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Instance {
    /// The newest generation that was ever placed.
    pub generation: Generation,
    /// Boxed: instances that are nowhere take little.
    pub placement: Option<Box<Placement>>,
    /// Where it was placed last, if it had volumes then: they are there still, also while it is stopped.
    pub volumes_on: Option<NodeId>,
    /// Where a person wants it next, if that will do then.
    pub bound_for: Option<NodeId>,
}

/// Where an instance is to run, or still runs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Placement {
    pub node: NodeId,
    pub unit: VmUnit,
    /// Of the node, when it was placed.
    pub epoch: NodeEpoch,
    pub request: Resources,
    /// What it takes of the node: more than `request` until the node has confirmed that it runs this generation.
    pub reserved: Resources,
    pub constraints: Constraints,
    /// It is to stop; once that is confirmed the placement ends.
    pub stopping: bool,
    pub placed_at: Timestamp,
    pub phase: InstancePhase,
    pub phase_since: Timestamp,
    pub restarts: u32,
    pub message: String,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Task {
    pub spec: TaskSpec,
    pub submitted_at: Timestamp,
    pub node: Option<NodeId>,
    /// Nothing until the node has said that it runs.
    pub phase: Option<TaskPhase>,
    pub phase_since: Timestamp,
    pub message: String,
}

/// A manifest that was head, or is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HeadRecord {
    pub hash: Hash,
    pub at: Timestamp,
    pub from: Origin,
    /// What it changed, a line a VM.
    pub diff: Vec<String>,
    /// The newest few are kept whole, so that a person can go back to one.
    pub manifest: Option<Manifest>,
}

/// What a host carries that has been head before and isn't.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Held {
    pub manifest: Manifest,
    pub since: Timestamp,
}

/// What came of an entry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// Its entry is an earlier one where the same request was carried out before.
    pub answer: Answer,
    /// The rows that the store is to write; empty when nothing changed.
    pub changes: Vec<Change>,
    /// The nodes that have something to do: what is placed on them isn't as it was.
    pub nodes: BTreeSet<NodeId>,
}

impl State {
    /// Carries out one committed entry of this `term`.
    pub fn apply(&mut self, index: u64, term: Term, entry: &Entry) -> Outcome {
        let Some(request) = &entry.request else {
            let reply = self.carry_out(index, term, entry);
            return self.outcome(Answer { index, reply });
        };
        match self.sessions.look_up(index, request) {
            Known::Nothing => {
                let reply = self.carry_out(index, term, entry);
                self.sessions.record(index, request, reply.clone());
                self.outcome(Answer { index, reply })
            }
            Known::Outcome(answer) => self.outcome(answer),
            Known::Expired => self.outcome(Answer { index, reply: Reply::Expired }),
        }
    }

    /// Carries out that the raft group has removed a server, as of one committed entry: its id is spent.
    pub fn apply_removal(&mut self, index: u64, raft: RaftId) -> Outcome {
        self.dismiss(raft);
        self.outcome(Answer { index, reply: Reply::Done })
    }

    /// What was touched since the last outcome.
    fn outcome(&mut self, answer: Answer) -> Outcome {
        let dirty = std::mem::take(&mut self.dirty);
        let mut nodes = self.index(&dirty);
        if dirty.cluster {
            // Whether anything may be started at all is the cluster's.
            nodes.extend(self.nodes.keys());
        }
        Outcome { answer, nodes, changes: self.rows(dirty) }
    }

    fn carry_out(&mut self, index: u64, term: Term, entry: &Entry) -> Reply {
        match entry.decided_in {
            Some(decided) if decided != term => {
                Reply::Refused(format!("decided in term {decided}, committed in term {term}: its leader was deposed"))
            }
            None if entry.command.is_decision() => {
                Reply::Refused("a decision without the term of the leader that made it".to_owned())
            }
            _ => {
                let reply = self.dispatch(index, entry.at, &entry.command);
                self.enter_events(index, entry.at);
                reply.unwrap_or_else(|Refusal(why)| Reply::Refused(why))
            }
        }
    }

    fn dispatch(&mut self, index: u64, at: Timestamp, command: &Command) -> Result<Reply, Refusal> {
        if self.cluster.is_none() && !matches!(command, Command::Found { .. }) {
            return refuse("there is no cluster yet");
        }
        match command {
            Command::Found { cluster, ca_certificate, sealed_ca_key, first, listed_servers } => {
                self.found(*cluster, (ca_certificate, sealed_ca_key), first, *listed_servers, at)
            }
            Command::Admit(host) => self.check_undeclared(&host.name).and_then(|()| self.admit(host, at)),
            Command::RegisterWorker { node, address, understands, role, worker, secrets, boot } => {
                let reply = self.register_worker(*node, address, *understands, *role, worker, at)?;
                self.note_secrets(*node, *secrets);
                self.note_boot(*node, *boot);
                Ok(reply)
            }
            Command::SetWorkerAlive { node, alive } => self.set_worker_alive(*node, *alive, at),
            Command::OfferManifest { manifest, from } => self.offer_manifest(index, manifest, from, at),
            Command::AcceptManifest { node } => self.accept_manifest(index, *node, at),
            Command::RollBackManifest { from } => self.roll_back_manifest(index, from, at),
            Command::Report { node, vms, tasks } => self.report(*node, vms, tasks, at),
            Command::RunTask(spec) => self.run_task(spec, at),
            Command::Place { instance, node, generation } => self.place(instance, *node, *generation, at),
            Command::Unplace { instance, generation } => self.unplace(instance, *generation, at),
            Command::PlaceTask { task, node } => self.place_task(*task, *node, at),
            Command::PutVm { name, spec, running, must } => self.put_vm(name, spec, *running, *must, at),
            Command::SetVmRunning { name, running } => self.set_vm_running(name, *running, at),
            Command::RemoveVm { name } => self.remove_vm(name, at),
            Command::RaiseLevel { level } => self.raise_level(*level),
            Command::CheckState => Ok(self.begin_check(index)),
            Command::StateHash { node, at, hash } => self.enter_hash(*node, *at, *hash),
            Command::RemoveNode { node, dead, abandon_volumes } => self.remove_node(*node, *dead, *abandon_volumes, at),
            Command::ForgetNode { node } => self.forget_node(*node),
            Command::Rejoin { host, was_in } => {
                self.check_undeclared(&host.name).and_then(|()| self.rejoin(host, *was_in, |bound| bound))
            }
            Command::ReturnNode { node } => self.return_node(*node),
            Command::CreateToken { token, secret, ttl_ms, role } => {
                self.create_token(*token, *secret, (*ttl_ms, *role), at)
            }
            Command::RevokeToken { token } => self.revoke_token(*token, at),
            Command::Redeem { token, secret, expires, host, was_in } => {
                self.redeem(*token, (*secret, *expires), (host, *was_in), at)
            }
            Command::Enlist { node } => self.enlist(*node),
            Command::AdmitDeclared { key, host, was_in } => self.admit_declared(key, host, *was_in, at),
            Command::RotateAuthority { certificate, sealed_key } => {
                self.rotate_authority(index, certificate, sealed_key)
            }
            Command::Rotated { node, step } => self.note_rotated(*node, *step),
            Command::Reseal { keys } => self.reseal(keys),
            Command::SetAvailability { node, availability, abandon_volumes } => {
                self.set_availability(*node, *availability, *abandon_volumes)
            }
            Command::Move { instance, to, abandon_volumes } => self.move_instance(instance, *to, *abandon_volumes, at),
            Command::Arm { node, expected, nonce, machine } => self.arm(*node, *expected, *nonce, *machine),
            Command::Fence { node, epoch } => self.fence(*node, *epoch),
            Command::ConfirmDead { node, abandon_volumes } => self.confirm_dead(*node, *abandon_volumes, at),
            Command::SetTakeover { is_frozen } => Ok(self.set_takeover(*is_frozen, at)),
            Command::ResumeTakeover => self.resume_takeover(),
        }
    }

    fn found(
        &mut self,
        id: ClusterId,
        (ca_certificate, sealed_ca_key): (&[u8], &[u8]),
        first: &NewNode,
        listed_servers: usize,
        at: Timestamp,
    ) -> Result<Reply, Refusal> {
        if let Some(cluster) = &self.cluster {
            return refuse(format!("this is cluster {} already", cluster.id));
        }
        self.cluster = Some(Cluster {
            id,
            ca_certificate: ca_certificate.to_vec(),
            sealed_ca_key: sealed_ca_key.to_vec(),
            rotation: None,
            founded_at: at,
            level: first.understands,
            epoch: ClusterEpoch::FIRST,
            renewal: None,
            absent: BTreeMap::new(),
            takeover: Takeover::Free,
            listed_servers,
        });
        self.dirty.cluster = true;
        self.admit(first, at)
    }

    pub fn cluster(&self) -> Option<&Cluster> {
        self.cluster.as_ref()
    }
    pub fn nodes(&self) -> &BTreeMap<NodeId, Node> {
        &self.nodes
    }
    pub fn node_named(&self, name: &NodeName) -> Option<(NodeId, &Node)> {
        self.nodes.iter().find(|(_, node)| node.name == *name).map(|(id, node)| (*id, node))
    }
    pub fn worker_status(&self, node: NodeId) -> Option<WorkerStatus> {
        self.worker_status.get(&node).copied()
    }
    pub fn vm(&self, name: &VmName) -> Option<Vm> {
        self.vms.get(name).map(Packed::value)
    }
    pub fn instances(&self) -> &BTreeMap<InstanceId, Instance> {
        &self.instances
    }
    pub fn tasks(&self) -> &BTreeMap<TaskId, Task> {
        &self.tasks
    }
    /// The manifests that were head, oldest first, by the index of the entry that made them so.
    pub fn manifests(&self) -> &BTreeMap<u64, HeadRecord> {
        &self.manifests
    }
    pub fn head(&self) -> Option<&HeadRecord> {
        self.manifests.values().next_back()
    }
    /// What the head says of the cluster itself.
    pub fn settings(&self) -> ClusterSettings {
        let manifest = self.head().and_then(|head| head.manifest.as_ref());
        manifest.map(|manifest| manifest.cluster).unwrap_or_default()
    }
    /// What the head says of hosts.
    pub fn declared_nodes(&self) -> &BTreeMap<NodeName, DeclaredNode> {
        const NONE: &BTreeMap<NodeName, DeclaredNode> = &BTreeMap::new();
        let manifest = self.head().and_then(|head| head.manifest.as_ref());
        manifest.map_or(NONE, |manifest| &manifest.nodes)
    }
    pub fn held(&self) -> &BTreeMap<NodeId, Held> {
        &self.held
    }

    /// The tokens that a host may join with, and those that were used or revoked, for as long as they are remembered.
    pub fn tokens(&self) -> &BTreeMap<TokenId, Token> {
        &self.tokens
    }

    /// The VM that this is an instance of, whether or not it is to run; nothing if it is being removed.
    pub fn declared(&self, instance: &InstanceId) -> Option<Vm> {
        self.vm(&instance.vm).filter(|vm| usize::from(instance.replica) < vm.spec.runners.len())
    }

    /// What this instance is to run as; nothing if it is to be stopped, or is being removed.
    pub fn desired(&self, instance: &InstanceId) -> Option<VmSpec> {
        self.declared(instance).filter(|vm| vm.running).map(|vm| vm.spec)
    }

    /// The one node on which this instance finds its volumes, if it has any yet.
    pub fn volumes_on(&self, instance: &InstanceId) -> Option<NodeId> {
        let home = self.instances.get(instance)?.volumes_on?;
        self.declared(instance).filter(|vm| vm.spec.disk_mib > 0).map(|_| home)
    }
}

impl Placement {
    /// Whether it is what `spec` asks for now.
    pub fn is_as_declared(&self, id: &InstanceId, spec: &VmSpec) -> bool {
        spec.unit(id, self.unit.generation, self.unit.failover).is_none_or(|unit| unit == self.unit)
            && spec.request() == self.request
            && spec.constraints() == self.constraints
    }

    /// Whether it has ended, and its policy doesn't start it again.
    pub fn is_over(&self) -> bool {
        match self.phase {
            InstancePhase::Ended(exit) => exit != Exit::NotStarted && !self.unit.restart.restarts_after(&exit),
            _ => false,
        }
    }
}

/// Why a command changes nothing.
struct Refusal(String);

fn refuse<T>(why: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal(why.into()))
}

#[cfg(test)]
pub mod tests;
