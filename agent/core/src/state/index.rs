//! What follows from the rows, kept so that no decision, report or refusal has to look at all of them.

use std::collections::{BTreeMap, BTreeSet};

use super::packed::Packed;
use super::rows::Dirty;
use super::vms::Head;
use super::{Placement, State, Task, Vm};
use crate::types::{InstanceId, NodeId, Resources, TaskId, VmName};

/// Follows from nodes, VMs, instances and tasks; brought up to date with every entry.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Index {
    instances: Ledger<InstanceId>,
    tasks: Ledger<TaskId>,
    unsettled: BTreeSet<InstanceId>,
    waiting: BTreeSet<TaskId>,
    pub servers: BTreeSet<NodeId>,
    /// The nodes that have a fence.
    fenced: BTreeSet<NodeId>,
}

/// Who takes what of which node.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Ledger<K> {
    holders: BTreeMap<K, (NodeId, Resources)>,
    nodes: BTreeMap<NodeId, Account<K>>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Account<K> {
    holders: BTreeSet<K>,
    used: Resources,
}

impl<K> Default for Ledger<K> {
    fn default() -> Self {
        Self { holders: BTreeMap::new(), nodes: BTreeMap::new() }
    }
}

impl<K: Ord + Clone> Ledger<K> {
    fn full(self) -> Self {
        let account = |(node, account): (NodeId, Account<K>)| {
            (node, Account { holders: account.holders.into_iter().collect(), ..account })
        };
        let (holders, nodes) = (self.holders.into_iter(), self.nodes.into_iter());
        Self { holders: holders.collect(), nodes: nodes.map(account).collect() }
    }

    fn set(&mut self, holder: &K, holds: Option<(NodeId, Resources)>) {
        let before = match holds {
            Some(holds) => self.holders.insert(holder.clone(), holds),
            None => self.holders.remove(holder),
        };
        if before == holds {
            return;
        }
        if let Some((node, held)) = before {
            let account = self.nodes.get_mut(&node).expect("it was entered there");
            account.used = account.used.saturating_sub(held);
            account.holders.remove(holder);
            if account.holders.is_empty() {
                self.nodes.remove(&node);
            }
        }
        if let Some((node, held)) = holds {
            let empty = || Account { holders: BTreeSet::new(), used: Resources::default() };
            let account = self.nodes.entry(node).or_insert_with(empty);
            account.used = account.used.checked_add(held).expect("placements fit in a node");
            account.holders.insert(holder.clone());
        }
    }

    fn node_of(&self, holder: &K) -> Option<NodeId> {
        self.holders.get(holder).map(|(node, _)| *node)
    }

    fn used(&self, node: NodeId) -> Resources {
        self.nodes.get(&node).map(|account| account.used).unwrap_or_default()
    }

    fn on(&self, node: NodeId) -> impl Iterator<Item = &K> {
        self.nodes.get(&node).into_iter().flat_map(|account| &account.holders)
    }
}

impl State {
    /// What instances and tasks take of a node, those that are stopping included.
    pub fn used(&self, node: NodeId) -> Resources {
        let tasks = self.index.tasks.used(node);
        self.index.instances.used(node).checked_add(tasks).expect("placements fit in a node")
    }

    /// The instances that are placed on a node, those that are stopping included.
    pub fn placed_on(&self, node: NodeId) -> impl Iterator<Item = &InstanceId> {
        self.index.instances.on(node)
    }

    /// The tasks that a node was given and that aren't over.
    pub fn tasks_on(&self, node: NodeId) -> impl Iterator<Item = TaskId> {
        self.index.tasks.on(node).copied()
    }

    /// The instances that are to run and are placed nowhere, or otherwise than declared now.
    pub fn unsettled(&self) -> impl Iterator<Item = &InstanceId> {
        self.index.unsettled.iter()
    }

    /// Whether an instance is among the [`Self::unsettled`].
    pub fn is_unsettled(&self, id: &InstanceId) -> bool {
        self.index.unsettled.contains(id)
    }

    /// Whether any node has a fence.
    pub fn has_fence(&self) -> bool {
        !self.index.fenced.is_empty()
    }

    /// The tasks that no node was given yet.
    pub fn waiting_tasks(&self) -> impl Iterator<Item = TaskId> {
        self.index.waiting.iter().copied()
    }

    /// The instances of a VM, those that are being removed included.
    pub fn instances_of(&self, vm: &VmName) -> impl Iterator<Item = (&InstanceId, &super::Instance)> {
        let replica = |replica| InstanceId { vm: vm.clone(), replica };
        self.instances.range(replica(0)..=replica(u16::MAX))
    }

    pub(super) fn index_all(&mut self) {
        let (mut index, mut vms) = (Index::default(), self.vms.iter().peekable());
        for (id, instance) in &self.instances {
            // Both are in the order of the names.
            while vms.next_if(|(name, _)| **name < id.vm).is_some() {}
            let vm = vms.peek().filter(|(name, _)| **name == id.vm).map(|(_, vm)| *vm);
            index.set_instance(id, instance.placement.as_deref(), vm, self.has_to_go(instance));
        }
        self.tasks.iter().for_each(|(id, task)| index.set_task(*id, Some(task)));
        self.nodes.iter().for_each(|(id, node)| index.set_node(*id, Some(node)));
        self.index = index.full();
    }

    /// Follows what an entry has touched, and names the nodes that it is about.
    pub(super) fn index(&mut self, dirty: &Dirty) -> BTreeSet<NodeId> {
        let before = self.nodes_of(dirty);
        let of_vms = dirty.vms.iter().flat_map(|name| self.instances_of(name)).map(|(id, _)| id);
        let of_nodes = dirty.nodes.iter().flat_map(|node| self.placed_on(*node));
        for id in dirty.instances.iter().chain(of_vms).chain(of_nodes).cloned().collect::<BTreeSet<_>>() {
            self.index_instance(&id);
        }
        dirty.tasks.iter().for_each(|id| self.index.set_task(*id, self.tasks.get(id)));
        dirty.nodes.iter().chain(&dirty.workers).for_each(|id| self.index.set_node(*id, self.nodes.get(id)));
        before.into_iter().chain(self.nodes_of(dirty)).chain(dirty.leases.iter().copied()).collect()
    }

    /// Where the touched instances and tasks are, as far as it is indexed.
    fn nodes_of(&self, dirty: &Dirty) -> BTreeSet<NodeId> {
        let instances = dirty.instances.iter().filter_map(|id| self.index.instances.node_of(id));
        instances.chain(dirty.tasks.iter().filter_map(|id| self.index.tasks.node_of(id))).collect()
    }

    fn index_instance(&mut self, id: &InstanceId) {
        let instance = self.instances.get(id);
        let placement = instance.and_then(|instance| instance.placement.as_deref());
        let has_to_go = instance.is_some_and(|instance| self.has_to_go(instance));
        self.index.set_instance(id, placement, self.vms.get(&id.vm), has_to_go);
    }

    /// Whether it is on a node that is to be empty.
    fn has_to_go(&self, instance: &super::Instance) -> bool {
        instance.placement.as_ref().is_some_and(|placement| self.is_emptied(placement.node))
    }
}

impl Index {
    /// The same, in trees that are full: one that grew by one key after the other is half empty.
    fn full(self) -> Self {
        let Self { instances, tasks, unsettled, waiting, servers, fenced } = self;
        Self {
            instances: instances.full(),
            tasks: tasks.full(),
            unsettled: unsettled.into_iter().collect(),
            waiting: waiting.into_iter().collect(),
            servers,
            fenced,
        }
    }

    fn set_instance(
        &mut self,
        id: &InstanceId,
        placement: Option<&Placement>,
        vm: Option<&Packed<Vm>>,
        has_to_go: bool,
    ) {
        let is_unsettled = vm.filter(|vm| vm.head::<Head>().runs(id.replica)).is_some_and(|vm| match placement {
            None => true,
            Some(placement) => !placement.stopping && (has_to_go || !placement.is_as_declared(id, &vm.value().spec)),
        });
        self.instances.set(id, placement.map(|placement| (placement.node, placement.reserved)));
        set(&mut self.unsettled, id, is_unsettled);
    }

    fn set_task(&mut self, id: TaskId, task: Option<&Task>) {
        let open = task.filter(|task| !task.is_over());
        let held = open.and_then(|task| Some((task.node?, task.spec.request)));
        set(&mut self.waiting, &id, open.is_some() && held.is_none());
        self.tasks.set(&id, held);
    }

    fn set_node(&mut self, id: NodeId, node: Option<&super::Node>) {
        set(&mut self.servers, &id, node.is_some_and(|node| node.raft.is_some()));
        let worker = node.and_then(|node| node.worker.as_ref());
        set(&mut self.fenced, &id, worker.is_some_and(|worker| worker.no_fence.is_none()));
    }
}

fn set<K: Ord + Clone>(set: &mut BTreeSet<K>, key: &K, is_in: bool) {
    if is_in {
        set.insert(key.clone());
    } else {
        set.remove(key);
    }
}
