//! The state as rows: what the store keeps, one table per kind.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::events::{Event, Events, Happening};
use super::packed::{Packed, decode, encode};
use super::vms::{Head, RunnerKey};
use super::{HeadRecord, Held, Instance, Lease, Node, State, Task, Token, Vm, WorkerStatus};
use crate::command::Worker;
use crate::types::{InstanceId, NodeId, TaskId, TokenId, VmName};

/// A kind of row. The names are those of the store's tables.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Table {
    /// One row, with an empty key.
    Cluster,
    /// One row, with an empty key.
    Counters,
    Nodes,
    Workers,
    WorkerStatus,
    Vms,
    /// An instance that was never placed has no row: it follows from its VM.
    Placements,
    Tasks,
    Manifests,
    Held,
    /// One row, with an empty key.
    Check,
    /// One row, with an empty key: what clients may ask again. It changes with every request, so it isn't among an
    /// entry's changes: [`State::sessions_row`] gives it.
    Sessions,
    Tokens,
    Leases,
    /// What has happened, by its number.
    Events,
}

impl Table {
    pub const ALL: [Self; 15] = [
        Self::Cluster,
        Self::Counters,
        Self::Nodes,
        Self::Workers,
        Self::WorkerStatus,
        Self::Vms,
        Self::Placements,
        Self::Tasks,
        Self::Manifests,
        Self::Held,
        Self::Check,
        Self::Sessions,
        Self::Tokens,
        Self::Leases,
        Self::Events,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Cluster => "cluster",
            Self::Counters => "counters",
            Self::Nodes => "nodes",
            Self::Workers => "workers",
            Self::WorkerStatus => "worker_status",
            Self::Vms => "vms",
            Self::Placements => "placements",
            Self::Tasks => "tasks",
            Self::Manifests => "manifests",
            Self::Held => "held",
            Self::Check => "check",
            Self::Sessions => "sessions",
            Self::Tokens => "tokens",
            Self::Leases => "leases",
            Self::Events => "events",
        }
    }
}

/// One row to write, or to remove where there is no value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    pub table: Table,
    pub key: Vec<u8>,
    pub value: Option<Arc<[u8]>>,
}

/// Which rows an entry has touched.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Dirty {
    pub cluster: bool,
    pub counters: bool,
    pub check: bool,
    pub nodes: BTreeSet<NodeId>,
    pub workers: BTreeSet<NodeId>,
    pub worker_status: BTreeSet<NodeId>,
    pub vms: BTreeSet<VmName>,
    pub instances: BTreeSet<InstanceId>,
    pub tasks: BTreeSet<TaskId>,
    pub manifests: BTreeSet<u64>,
    pub held: BTreeSet<NodeId>,
    pub tokens: BTreeSet<TokenId>,
    pub leases: BTreeSet<NodeId>,
    pub events: BTreeSet<u64>,
    /// What has no number yet, in its order.
    pub happened: Vec<Happening>,
}

/// A row that doesn't make sense: the store is corrupt, or a newer agent wrote it.
#[derive(Debug, thiserror::Error)]
#[error("the row {key:02x?} of table {table} can't be read: written by a newer agent, or corrupt", table = .table.name())]
pub struct RowError {
    pub table: Table,
    pub key: Vec<u8>,
}

impl State {
    /// The touched rows as they are now.
    pub(super) fn rows(&self, dirty: Dirty) -> Vec<Change> {
        let mut changes = Vec::new();
        let mut put = |table, key: Vec<u8>, value: Option<Arc<[u8]>>| changes.push(Change { table, key, value });
        if dirty.cluster {
            put(Table::Cluster, Vec::new(), row(self.cluster.as_ref()));
        }
        if dirty.counters {
            put(Table::Counters, Vec::new(), row(Some(&self.counters)));
        }
        if dirty.check {
            put(Table::Check, Vec::new(), row(self.check.as_ref()));
        }
        for id in dirty.nodes {
            let node = self.nodes.get(&id).map(|node| Node { worker: None, lease: Lease::default(), ..node.clone() });
            put(Table::Nodes, number(id.0), row(node.as_ref()));
        }
        for id in dirty.workers {
            let worker = self.nodes.get(&id).and_then(|node| node.worker.as_ref());
            put(Table::Workers, number(id.0), row(worker));
        }
        for id in dirty.worker_status {
            put(Table::WorkerStatus, number(id.0), row(self.worker_status.get(&id)));
        }
        for name in dirty.vms {
            put(Table::Vms, text(&name), self.vms.get(&name).map(Packed::bytes));
        }
        for id in dirty.instances {
            let instance = self.instances.get(&id).filter(|instance| **instance != Instance::default());
            put(Table::Placements, text(&id), row(instance));
        }
        for id in dirty.tasks {
            put(Table::Tasks, number(id.0), row(self.tasks.get(&id)));
        }
        for index in dirty.manifests {
            put(Table::Manifests, number(index), row(self.manifests.get(&index)));
        }
        for id in dirty.held {
            put(Table::Held, number(id.0), row(self.held.get(&id)));
        }
        for id in dirty.tokens {
            put(Table::Tokens, number(id.0), row(self.tokens.get(&id)));
        }
        for id in dirty.leases {
            let lease = self.nodes.get(&id).map(|node| node.lease).filter(|lease| *lease != Lease::default());
            put(Table::Leases, number(id.0), row(lease.as_ref()));
        }
        for event in dirty.events {
            put(Table::Events, number(event), self.events.row(event).map(Packed::bytes));
        }
        changes
    }

    /// Every row.
    pub fn all_rows(&self) -> Vec<Change> {
        let mut rows = self.rows(Dirty {
            cluster: self.cluster.is_some(),
            counters: true,
            check: self.check.is_some(),
            workers: self.nodes.iter().filter(|(_, node)| node.worker.is_some()).map(|(id, _)| *id).collect(),
            worker_status: self.worker_status.keys().copied().collect(),
            nodes: self.nodes.keys().copied().collect(),
            vms: self.vms.keys().cloned().collect(),
            instances: self.instances.keys().cloned().collect(),
            tasks: self.tasks.keys().copied().collect(),
            manifests: self.manifests.keys().copied().collect(),
            held: self.held.keys().copied().collect(),
            tokens: self.tokens.keys().copied().collect(),
            leases: self.nodes.keys().copied().collect(),
            events: self.events.numbers().collect(),
            happened: Vec::new(),
        });
        rows.retain(|change| change.value.is_some());
        rows.push(self.sessions_row());
        rows
    }

    /// What clients may ask again, as of now.
    pub fn sessions_row(&self) -> Change {
        Change { table: Table::Sessions, key: Vec::new(), value: row(Some(&self.sessions)) }
    }

    /// The state that these rows are, in any order.
    ///
    /// # Errors
    /// The first row that can't be read.
    pub fn from_rows(
        rows: impl IntoIterator<Item = (Table, impl AsRef<[u8]>, impl AsRef<[u8]>)>,
    ) -> Result<Self, RowError> {
        let mut loading = Loading::default();
        rows.into_iter().for_each(|(table, key, value)| loading.add(table, key.as_ref(), value.as_ref()));
        loading.finish()
    }
}

/// A state that is being read, row by row.
///
/// The rows of a table are collected before a tree is made of them: a tree that is made of all at once is full, and one
/// that grows by one after the other is half empty.
#[derive(Default)]
pub struct Loading {
    state: State,
    nodes: Vec<(NodeId, Node)>,
    workers: Vec<(NodeId, Worker)>,
    worker_status: Vec<(NodeId, WorkerStatus)>,
    vms: Vec<(VmName, Packed<Vm>)>,
    runners: Vec<(RunnerKey, VmName)>,
    instances: Vec<(InstanceId, Instance)>,
    tasks: Vec<(TaskId, Task)>,
    manifests: Vec<(u64, HeadRecord)>,
    held: Vec<(NodeId, Held)>,
    tokens: Vec<(TokenId, Token)>,
    leases: Vec<(NodeId, Lease)>,
    events: Vec<(u64, Packed<Event>)>,
    wrong: Option<RowError>,
}

/// Where a row can't be read, [`Loading::finish`] says so.
impl<'a> Extend<(Table, &'a [u8], &'a [u8])> for Loading {
    fn extend<T: IntoIterator<Item = (Table, &'a [u8], &'a [u8])>>(&mut self, rows: T) {
        rows.into_iter().for_each(|(table, key, value)| self.add(table, key, value));
    }
}

impl Loading {
    fn add(&mut self, table: Table, key: &[u8], value: &[u8]) {
        let taken = match table {
            Table::Cluster => decode(value).map(|cluster| self.state.cluster = Some(cluster)),
            Table::Counters => decode(value).map(|counters| self.state.counters = counters),
            Table::Check => decode(value).map(|check| self.state.check = Some(check)),
            Table::Sessions => decode(value).map(|sessions| self.state.sessions = sessions),
            Table::Workers => put(&mut self.workers, node_key(key), value),
            Table::Nodes => put(&mut self.nodes, node_key(key), value),
            Table::WorkerStatus => put(&mut self.worker_status, node_key(key), value),
            Table::Held => put(&mut self.held, node_key(key), value),
            Table::Vms => text_key(key).zip(Packed::read(value)).map(|(name, vm): (_, Packed<Vm>)| {
                self.runners.extend(vm.head::<Head>().owned_by(&name));
                self.vms.push((name, vm));
            }),
            Table::Placements => put(&mut self.instances, text_key(key), value),
            Table::Tasks => put(&mut self.tasks, number_key(key).map(TaskId), value),
            Table::Manifests => put(&mut self.manifests, number_key(key), value),
            Table::Tokens => put(&mut self.tokens, number_key(key).map(TokenId), value),
            Table::Leases => put(&mut self.leases, node_key(key), value),
            Table::Events => number_key(key).zip(Packed::read(value)).map(|event| self.events.push(event)),
        };
        if taken.is_none() && self.wrong.is_none() {
            self.wrong = Some(RowError { table, key: key.to_owned() });
        }
    }

    /// # Errors
    /// The first row that can't be read.
    pub fn finish(self) -> Result<State, RowError> {
        let Self { mut state, workers, leases, instances, wrong, .. } = self;
        if let Some(wrong) = wrong {
            return Err(wrong);
        }
        state.nodes = self.nodes.into_iter().collect();
        state.worker_status = self.worker_status.into_iter().collect();
        state.vms = self.vms.into_iter().collect();
        state.runners = self.runners.into_iter().collect();
        state.tasks = self.tasks.into_iter().collect();
        state.manifests = self.manifests.into_iter().collect();
        state.held = self.held.into_iter().collect();
        state.tokens = self.tokens.into_iter().collect();
        state.events = Events::of(self.events);
        for (id, worker) in workers {
            let key = || RowError { table: Table::Workers, key: number(id.0) };
            state.nodes.get_mut(&id).ok_or_else(key)?.worker = Some(worker);
        }
        for (id, lease) in leases {
            let key = || RowError { table: Table::Leases, key: number(id.0) };
            state.nodes.get_mut(&id).ok_or_else(key)?.lease = lease;
        }
        state.instances = whole(instances, &state);
        state.index_all();
        Ok(state)
    }
}

/// The instances that have rows, and those that follow from their VMs; with one text for each name.
fn whole(mut rows: Vec<(InstanceId, Instance)>, state: &State) -> BTreeMap<InstanceId, Instance> {
    rows.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
    let (mut rows, mut all) = (rows.into_iter().peekable(), Vec::new());
    for (name, vm) in &state.vms {
        let id = |replica| InstanceId { vm: name.clone(), replica };
        all.extend(std::iter::from_fn(|| rows.next_if(|(id, _)| id.vm < *name)));
        for id in vm.head::<Head>().replicas().map(id) {
            let row = rows.next_if(|(row, _)| *row == id);
            all.push((id, row.map(|(_, instance)| instance).unwrap_or_default()));
        }
        let going = std::iter::from_fn(|| rows.next_if(|(id, _)| id.vm == *name));
        all.extend(going.map(|(row, instance)| (id(row.replica), instance)));
    }
    all.extend(rows);
    all.into_iter().collect()
}

fn row<T: Serialize>(value: Option<&T>) -> Option<Arc<[u8]>> {
    value.map(encode)
}

fn put<K, V: DeserializeOwned>(rows: &mut Vec<(K, V)>, key: Option<K>, value: &[u8]) -> Option<()> {
    rows.push((key?, decode(value)?));
    Some(())
}

/// Big-endian, so that the table's order is the numbers'.
fn number(id: u64) -> Vec<u8> {
    id.to_be_bytes().to_vec()
}

fn text(id: &impl std::fmt::Display) -> Vec<u8> {
    id.to_string().into_bytes()
}

fn number_key(key: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(key.try_into().ok()?))
}

fn node_key(key: &[u8]) -> Option<NodeId> {
    number_key(key).map(NodeId)
}

fn text_key<T: std::str::FromStr>(key: &[u8]) -> Option<T> {
    std::str::from_utf8(key).ok()?.parse().ok()
}
