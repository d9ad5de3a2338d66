//! The shape of `blixard status --json`. It is stable: fields are added, never renamed or removed.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::api::proto;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// No problems.
    healthy: bool,
    /// One line each.
    problems: Vec<String>,
    cluster: Cluster,
    nodes: Vec<Node>,
    vms: Vec<Vm>,
    held: Vec<Held>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Cluster {
    id: String,
    /// A node's name; null when none is known.
    leader: Option<String>,
    term: u64,
    quorum: bool,
    servers: u32,
    /// Index of the newest log entry that is in this picture.
    applied: u64,
    /// The node that answered.
    answered_by: String,
    /// A quorum has confirmed that nothing newer was acknowledged before.
    confirmed: bool,
    /// What the servers do with each command; raised once every node's agent understands the next one.
    feature_level: u64,
    /// Log entry after which the servers' states were last compared; null before the first time.
    checked_at: Option<u64>,
    /// How many servers had the same state then.
    checked_equal: u32,
    /// 1, and one more each time that the cluster was recovered or restored.
    epoch: u64,
    /// How this epoch began, recovered or restored; null in the first.
    renewal: Option<String>,
    /// Unix time in milliseconds since when it is in this epoch; null in the first.
    renewed_at: Option<u64>,
    /// Unix time in milliseconds when the certificate of the node that answered expires.
    certificate_expires: u64,
    /// Whether instances of nodes that don't answer start elsewhere: free, frozen or resumed.
    takeover: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Node {
    name: String,
    id: u64,
    address: String,
    /// leader, follower, learner or absent.
    role: String,
    alive: bool,
    /// Unix time in milliseconds.
    since: u64,
    cpus: Amount,
    #[serde(rename = "memoryMiB")]
    memory_mib: Amount,
    #[serde(rename = "diskMiB")]
    disk_mib: Amount,
    system: String,
    kvm: bool,
    hypervisors: Vec<String>,
    labels: BTreeMap<String, String>,
    /// It is being removed.
    leaving: bool,
    /// active, cordoned or draining.
    availability: String,
    /// How many instances and tasks are on it that aren't over.
    held: u32,
    /// none, unarmed, armed, fenced or dead.
    lease: String,
    /// Why it has no fence, if it has none.
    no_fence: Option<String>,
    /// How often it has armed.
    epoch: u64,
}

#[derive(Serialize, Default)]
struct Amount {
    free: u64,
    total: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Vm {
    /// The VM's name; `instance` names the replica.
    name: String,
    replica: u32,
    instance: String,
    /// pending, starting, running, stopping, stopped, failed or unknown.
    state: String,
    /// Null while it is nowhere.
    node: Option<String>,
    /// Unix time in milliseconds since when it is in this state; null when it was never placed.
    since: Option<u64>,
    restarts: u32,
    /// Why it isn't running, or still runs where it is; null when there is nothing to say.
    reason: Option<String>,
    /// Grows each time it is placed.
    generation: u64,
    runner: String,
    vcpus: u32,
    #[serde(rename = "memoryMiB")]
    memory_mib: u64,
    #[serde(rename = "diskMiB")]
    disk_mib: u64,
    /// manifest or cli; null while it is being removed.
    owner: Option<String>,
    /// automatic or manual; null while it is being removed and is nowhere.
    failover: Option<String>,
    /// Of the VM: those of the highest are placed first.
    priority: u32,
}

#[derive(Serialize)]
struct Held {
    node: String,
    hash: String,
    /// Unix time in milliseconds.
    since: u64,
    /// What accepting it would change, a line an instance.
    diff: Vec<String>,
}

impl From<proto::StatusReply> for Status {
    fn from(reply: proto::StatusReply) -> Self {
        let cluster = reply.cluster.unwrap_or_default();
        Self {
            healthy: reply.problems.is_empty(),
            problems: reply.problems,
            cluster: Cluster {
                id: cluster.id,
                leader: some(cluster.leader),
                term: cluster.term,
                quorum: cluster.quorum,
                servers: cluster.servers,
                applied: cluster.applied,
                answered_by: cluster.answered_by,
                confirmed: cluster.confirmed,
                feature_level: cluster.feature_level,
                checked_at: (cluster.checked_at != 0).then_some(cluster.checked_at),
                checked_equal: cluster.checked_equal,
                epoch: cluster.epoch,
                renewal: (!cluster.renewal.is_empty()).then_some(cluster.renewal),
                renewed_at: (cluster.renewed_at != 0).then_some(cluster.renewed_at),
                certificate_expires: cluster.certificate_expires,
                takeover: cluster.takeover,
            },
            nodes: reply.nodes.into_iter().map(Node::from).collect(),
            vms: reply.instances.into_iter().map(Vm::from).collect(),
            held: reply.held.into_iter().map(Held::from).collect(),
        }
    }
}

impl From<proto::Node> for Node {
    fn from(node: proto::Node) -> Self {
        let worker = node.worker.unwrap_or_default();
        let amount = |amount: Option<proto::Amount>| {
            amount.map_or_else(Amount::default, |amount| Amount { free: amount.free, total: amount.total })
        };
        Self {
            name: node.name,
            id: node.id,
            address: node.address,
            role: node.role,
            alive: node.alive,
            since: node.since,
            cpus: amount(worker.cpus),
            memory_mib: amount(worker.memory_mib),
            disk_mib: amount(worker.disk_mib),
            system: worker.system,
            kvm: worker.kvm,
            hypervisors: worker.hypervisors,
            labels: worker.labels.into_iter().collect(),
            leaving: node.leaving,
            availability: node.availability,
            held: node.held,
            lease: node.lease,
            no_fence: Some(worker.no_fence).filter(|why| !why.is_empty()),
            epoch: node.epoch,
        }
    }
}

impl From<proto::Instance> for Vm {
    fn from(instance: proto::Instance) -> Self {
        Self {
            name: instance.vm,
            replica: instance.replica,
            instance: instance.name,
            state: instance.state,
            node: some(instance.node),
            since: (instance.since != 0).then_some(instance.since),
            restarts: instance.restarts,
            reason: some(instance.reason),
            generation: instance.generation,
            runner: instance.runner,
            vcpus: instance.vcpus,
            memory_mib: instance.memory_mib,
            disk_mib: instance.disk_mib,
            owner: some(instance.owner),
            failover: some(instance.failover),
            priority: instance.priority,
        }
    }
}

impl From<proto::Held> for Held {
    fn from(held: proto::Held) -> Self {
        Self { node: held.node, hash: held.hash, since: held.since, diff: held.diff }
    }
}

fn some(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}
