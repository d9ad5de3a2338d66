//! (state, standing) → what status and its relatives show; pure.

use std::collections::BTreeMap;
use std::ops::Bound;

use blixard_core::command::{InstancePhase, TaskPhase};
use blixard_core::plan;
use blixard_core::schedule::{Change, Obstacle, Rooms};
use blixard_core::state::{Diverged, Instance, Owner, Placement, Renewal, State, Task, Token, TokenUse, Vm};
use blixard_core::types::{Availability, Exit, InstanceId, NodeId, TaskId, Timestamp, TokenId, VmName};

use super::proto;
use crate::identity::anchor_of;
use crate::node::Standing;

mod failover;
mod nodes;
mod secret;

use nodes::node;

/// The status without the instances, of which there may be many.
pub fn overview(state: &State, standing: &Standing) -> proto::StatusReply {
    let nodes: Vec<_> = state.nodes().iter().map(|(id, member)| node(state, standing, *id, member)).collect();
    proto::StatusReply {
        problems: problems(state, standing, &nodes),
        cluster: Some(cluster(state, standing)),
        nodes,
        instances: Vec::new(),
        held: held(state),
    }
}

/// Some instances, in the order of their names.
#[derive(Default)]
pub struct Page {
    pub instances: Vec<proto::Instance>,
    /// What a person should look at, a line each.
    pub problems: Vec<String>,
    /// The last of them, where there may be more.
    pub last: Option<InstanceId>,
}

/// The instances behind one, or from the first on; `may_go_on` says whether another one may follow so many.
pub fn page(state: &State, after: Option<&InstanceId>, may_go_on: impl Fn(usize) -> bool) -> Page {
    let rooms = Rooms::new(state);
    let mut reasons = Reasons::default();
    let mut page = Page::default();
    let from = after.map_or(Bound::Unbounded, Bound::Excluded);
    for (id, inner) in state.instances().range::<InstanceId, _>((from, Bound::Unbounded)) {
        let mut shown = instance(state, id, inner);
        explain_pending(state, &rooms, id, &mut shown, &mut reasons);
        page.problems.extend(problem_of(&shown));
        page.problems.extend(behind(state, &rooms, id, inner));
        page.instances.push(shown);
        if !may_go_on(page.instances.len()) {
            page.last = Some(id.clone());
            break;
        }
    }
    page
}

fn cluster(state: &State, standing: &Standing) -> proto::Cluster {
    let leader = standing.leader.and_then(|raft| state.node_of_raft(raft));
    let renewal = state.cluster().and_then(|cluster| cluster.renewal);
    proto::Cluster {
        id: state.cluster().map(|cluster| cluster.id.to_string()).unwrap_or_default(),
        leader: leader.map(|(_, node)| node.name.to_string()).unwrap_or_default(),
        term: standing.term.0,
        quorum: standing.has_quorum(),
        servers: count(standing.voters.len()),
        applied: standing.applied,
        answered_by: state.name_of(standing.node),
        confirmed: false,
        feature_level: state.level().unwrap_or_default().0,
        checked_at: state.check().map_or(0, |check| check.at),
        checked_equal: state.check().map_or(0, |check| count(check.equal())),
        epoch: state.cluster().map_or(0, |cluster| cluster.epoch.number),
        renewal: renewal.map_or("", |(how, _)| renewal_word(how)).to_owned(),
        renewed_at: renewal.map_or(0, |(_, at)| at.0),
        certificate_expires: 0,
        takeover: failover::takeover(state).to_owned(),
        authority: state.cluster().and_then(anchor_of).map_or_else(String::new, |anchor| anchor.to_string()),
    }
}

fn count(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[allow(clippy::unnecessary_wraps, reason = "a message's field is an Option")]
fn amount(free: u64, total: u64) -> Option<proto::Amount> {
    Some(proto::Amount { free, total })
}

pub fn instance(state: &State, id: &InstanceId, inner: &Instance) -> proto::Instance {
    let declared = state.declared(id);
    let vm = declared.as_ref();
    let (shown, since, reason) = standing_of(state, id, inner, vm);
    let placement = inner.placement.as_ref();
    let declared = || vm.map(|vm| vm.spec.request());
    let request = placement.map(|placement| placement.request).or_else(declared).unwrap_or_default();
    let runner = placement.map(|placement| placement.unit.runner.to_string());
    let declared = || vm.and_then(|vm| vm.spec.runners.get(usize::from(id.replica))).map(ToString::to_string);
    let failover = failover::failover(state, placement.map(|placement| &**placement), vm.map(|vm| &vm.spec));
    let owner = vm.map_or("", |vm| match vm.owner {
        Owner::Manifest => "manifest",
        Owner::Cli => "cli",
    });
    proto::Instance {
        name: id.to_string(),
        vm: id.vm.to_string(),
        replica: id.replica.into(),
        state: shown.to_owned(),
        node: placement.map(|placement| state.name_of(placement.node)).unwrap_or_default(),
        since: since.0,
        restarts: placement.map_or(0, |placement| placement.restarts),
        reason,
        generation: inner.generation.0,
        runner: runner.or_else(declared).unwrap_or_default(),
        vcpus: request.cpus,
        memory_mib: request.memory_mib,
        disk_mib: request.disk_mib,
        owner: owner.to_owned(),
        failover: failover.map(|failover| failover.to_string()).unwrap_or_default(),
        priority: vm.map_or(0, |vm| vm.spec.priority.get().into()),
    }
}

/// The word for an instance's state, since when, and why it isn't running, or still runs where it is.
fn standing_of(state: &State, id: &InstanceId, inner: &Instance, vm: Option<&Vm>) -> (&'static str, Timestamp, String) {
    let Some(placement) = &inner.placement else {
        let stopped = vm.is_some_and(|vm| !vm.running);
        let how = if stopped { format!("`blixard vm start {}` starts it", id.vm) } else { String::new() };
        return (if stopped { "stopped" } else { "pending" }, Timestamp(0), how);
    };
    let silent = state.worker_status(placement.node).filter(|status| !status.alive);
    if let Some(status) = silent.filter(|_| !failover::is_over(state, placement)) {
        return ("unknown", status.since, failover::unknown(state, placement));
    }
    let (shown, reason) = shown_phase(placement, vm);
    let reason = if reason.is_empty() { nodes::kept(state, id, placement).unwrap_or_default() } else { reason };
    (shown, placement.phase_since, reason)
}

fn shown_phase(placement: &Placement, vm: Option<&Vm>) -> (&'static str, String) {
    if placement.stopping {
        let why = match vm {
            None => "it is no longer declared",
            Some(vm) if !vm.running => "it is to be stopped",
            Some(_) => "it leaves this node",
        };
        return ("stopping", why.to_owned());
    }
    let message = placement.message.clone();
    match placement.phase {
        InstancePhase::Running => ("running", String::new()),
        InstancePhase::Starting => ("starting", message),
        InstancePhase::Stopped => ("stopped", message),
        InstancePhase::Ended(exit) if exit.is_success() => ("stopped", "it ended by itself".to_owned()),
        InstancePhase::Ended(exit) if message.is_empty() => ("failed", exit.to_string()),
        InstancePhase::Ended(_) => ("failed", message),
    }
}

/// Why instances wait: all replicas of a VM wait for the same, unless volumes hold them to different nodes.
type Reasons = BTreeMap<(VmName, Option<NodeId>), String>;

/// Says why an instance waits, if it does.
fn explain_pending(
    state: &State,
    rooms: &Rooms,
    id: &InstanceId,
    instance: &mut proto::Instance,
    reasons: &mut Reasons,
) {
    if instance.state != "pending" {
        return;
    }
    let Some(spec) = state.desired(id) else { return };
    let reason = reasons
        .entry((id.vm.clone(), state.volumes_on(id)))
        .or_insert_with(|| pending_reason(state, &rooms.explain(state, id, &spec)));
    instance.reason.clone_from(reason);
}

fn problem_of(instance: &proto::Instance) -> Option<String> {
    let proto::Instance { name, state, reason, .. } = instance;
    match state.as_str() {
        "running" | "stopped" => None,
        state if reason.is_empty() => Some(format!("{name} is {state}")),
        state => Some(format!("{name} is {state}: {reason}")),
    }
}

/// Of an instance that runs on as it was, since where its volumes are there is no room for what is declared now.
fn behind(state: &State, rooms: &Rooms, id: &InstanceId, inner: &Instance) -> Option<String> {
    let placement = inner.placement.as_ref().filter(|_| state.is_unsettled(id))?;
    let Change::Held(obstacle) = rooms.change(state, id, placement, &state.desired(id)?)? else { return None };
    let node = state.name_of(placement.node);
    Some(format!("{id} runs on as it was before its declaration changed: {node}, where its volumes are: {obstacle}"))
}

/// Servers whose state wasn't that of the majority.
fn diverged(state: &State) -> Vec<String> {
    let diverged = state.check().into_iter().flat_map(|check| &check.diverged).map(|(node, diverged)| {
        let Diverged { at, own, other, .. } = diverged;
        format!(
            "{node} has stopped: its state after log entry {at} was {own}, and that of the majority {other}; its disk, \
             its memory or its agent has a fault",
            node = state.name_of(*node),
            own = own.short(),
            other = other.short()
        )
    });
    diverged.collect()
}

fn renewal_word(how: Renewal) -> &'static str {
    match how {
        Renewal::Recovered => "recovered",
        Renewal::Restored => "restored",
    }
}

/// Members of an earlier epoch of which isn't known what they run.
fn absent(state: &State) -> Option<String> {
    let (how, _) = state.cluster()?.renewal?;
    let names = absent_names(state)?;
    Some(format!(
        "the cluster was {}, and what {names} may run is not known: nothing is started before each of them has rejoined \
         (`blixard cluster rejoin`, on it) or is removed as dead (`blixard node remove NAME --dead`)",
        renewal_word(how)
    ))
}

fn absent_names(state: &State) -> Option<String> {
    let names: Vec<_> = state.absent().keys().map(|node| state.name_of(*node)).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

/// Why nothing was chosen, a few words a node.
fn pending_reason(state: &State, verdicts: &[(NodeId, Option<Obstacle>)]) -> String {
    if let Some(names) = absent_names(state) {
        return format!("{names} may run it: what is there is not known since the cluster began anew");
    }
    if verdicts.iter().any(|(_, obstacle)| obstacle.is_none()) {
        return "about to be placed".to_owned();
    }
    if verdicts.is_empty() {
        return "the cluster has no node".to_owned();
    }
    let each = verdicts
        .iter()
        .filter_map(|(node, obstacle)| Some(format!("{}: {}", state.name_of(*node), obstacle.as_ref()?)));
    format!("no node will do: {}", each.collect::<Vec<_>>().join(" · "))
}

/// What a person should look at, but for the instances.
fn problems(state: &State, standing: &Standing, nodes: &[proto::Node]) -> Vec<String> {
    let mut problems = Vec::new();
    if !standing.has_quorum() {
        problems.push("there is no leader: a majority of the servers has to be up and reach each other".to_owned());
    }
    for node in nodes.iter().filter(|node| !node.alive) {
        let name = &node.name;
        problems.push(match node.lease.as_str() {
            "dead" => {
                format!("node {name} is dead, as a person has said: `blixard node remove {name} --dead` forgets it")
            }
            _ => format!("node {name} does not answer"),
        });
    }
    problems.extend(failover::frozen(state));
    for node in nodes.iter().filter(|node| node.leaving) {
        problems.push(format!("node {} is being removed", node.name));
    }
    for node in nodes.iter().filter(|node| node.availability == Availability::Rebooting.to_string()) {
        problems.push(format!("node {} has not booted since it was drained for that", node.name));
    }
    for node in nodes.iter().filter(|node| node.worker.is_none()) {
        problems.push(format!("node {} has not registered yet", node.name));
    }
    problems.extend(failover::unfenced(state, nodes));
    problems.extend(diverged(state));
    problems.extend(rotating(state));
    problems.extend(absent(state));
    problems.extend(secret::problems(state));
    for node in state.held().keys() {
        let node = state.name_of(*node);
        problems.push(format!(
            "{node} carries an earlier manifest, which is held: see `blixard manifest ls`, then accept it or switch {node}"
        ));
    }
    problems
}

/// For whom a rotation of the authority waits.
fn rotating(state: &State) -> Option<String> {
    let step = state.cluster()?.rotation_step()?;
    let what = if step.is_reissued { "show a certificate of" } else { "trust" };
    let mut waits_for = state.not_rotated().map(|node| state.name_of(node));
    let first = waits_for.next()?;
    let more = match waits_for.count() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Some(format!("the certificate authority is being rotated, and waits for {first}{more} to {what} the new one"))
}

pub fn held(state: &State) -> Vec<proto::Held> {
    let held = state.held().iter().map(|(node, held)| proto::Held {
        node: state.name_of(*node),
        hash: held.manifest.hash().to_string(),
        since: held.since.0,
        diff: plan::lines(state, &held.manifest),
    });
    held.collect()
}

pub fn heads(state: &State) -> Vec<proto::Head> {
    let heads = state.manifests().values().map(|record| proto::Head {
        hash: record.hash.to_string(),
        at: record.at.0,
        from: state.who_offered(&record.from),
        diff: record.diff.clone(),
    });
    heads.collect()
}

/// Every instance of the VM, or the one instance, of that name.
pub fn explain(state: &State, name: &str) -> Vec<proto::Explained> {
    let rooms = Rooms::new(state);
    // One name can be both: `web-0` is the first instance of `web`, and may be a VM.
    let (vm, one) = (name.parse::<VmName>().ok(), name.parse::<InstanceId>().ok());
    let one = one.iter().filter_map(|id| state.instances().get_key_value(id));
    let named = one.chain(vm.iter().flat_map(|vm| state.instances_of(vm)));
    let explained = named.map(|(id, inner)| {
        let own = inner.placement.as_ref().map(|placement| placement.node);
        let verdicts = state.desired(id).map(|spec| rooms.explain(state, id, &spec)).unwrap_or_default();
        // It takes room where it is, so of that node the question makes no sense.
        let others = verdicts.into_iter().filter(|(node, _)| Some(*node) != own);
        let verdicts = others.map(|(node, obstacle)| proto::Verdict {
            node: state.name_of(node),
            obstacle: obstacle.map(|obstacle| obstacle.to_string()).unwrap_or_default(),
        });
        let verdicts = verdicts.collect();
        let mut instance = instance(state, id, inner);
        explain_pending(state, &rooms, id, &mut instance, &mut Reasons::default());
        let placement = inner.placement.as_deref();
        let failover = failover::explained(state, placement, state.declared(id).map(|vm| vm.spec).as_ref());
        proto::Explained { instance: Some(instance), verdicts, failover }
    });
    explained.collect()
}

pub fn tokens(state: &State) -> Vec<proto::Token> {
    let shown = |(id, token): (&TokenId, &Token)| {
        let (shown, node) = match token.used {
            TokenUse::Unused => ("unused", None),
            TokenUse::By(node) => ("used", Some(node)),
            TokenUse::Revoked => ("revoked", None),
        };
        proto::Token {
            id: id.to_string(),
            state: shown.to_owned(),
            node: node.map(|node| state.name_of(node)).unwrap_or_default(),
            created: token.created_at.0,
            expires: token.expires.0,
            role: token.role.map_or_else(String::new, |role| role.to_string()),
        }
    };
    let mut tokens: Vec<_> = state.tokens().iter().map(shown).collect();
    tokens.sort_by_key(|token| token.created);
    tokens
}

pub fn tasks(state: &State) -> Vec<proto::Task> {
    let rooms = Rooms::new(state);
    state.tasks().iter().map(|(id, inner)| task(state, &rooms, *id, inner)).collect()
}

fn task(state: &State, rooms: &Rooms, id: TaskId, task: &Task) -> proto::Task {
    let (shown, exit) = match (task.node, task.phase) {
        (None, _) => ("pending", None),
        (Some(_), None) => ("placed", None),
        (Some(_), Some(TaskPhase::Running)) => ("running", None),
        (Some(_), Some(TaskPhase::Ended(exit))) if exit.is_success() => ("done", Some(exit)),
        (Some(_), Some(TaskPhase::Ended(exit))) => ("failed", Some(exit)),
    };
    let reason = if task.node.is_none() {
        pending_reason(state, &rooms.explain_request(state, task.spec.request))
    } else {
        task.message.clone()
    };
    proto::Task {
        name: id.to_string(),
        command: task.spec.command.clone(),
        state: shown.to_owned(),
        node: task.node.map(|node| state.name_of(node)).unwrap_or_default(),
        since: task.phase_since.0,
        exit: exit.map(|exit| exit.to_string()).unwrap_or_default(),
        status: exit.and_then(|exit| if let Exit::Exited(status) = exit { Some(status) } else { None }),
        reason,
        cpus: task.spec.request.cpus,
        memory_mib: task.spec.request.memory_mib,
    }
}

#[cfg(test)]
mod tests {
    use blixard_core::command::{Command, Entry, NewNode};
    use blixard_core::manifest::VmSpec;
    use blixard_core::types::{ClusterId, Failover, Hash, Hypervisor, Labels, Level, Priority, RestartPolicy, Term};

    use super::*;

    const TERM: Term = Term(1);

    fn apply(state: &mut State, index: u64, decided_in: Option<Term>, command: Command) {
        let entry = Entry { at: Timestamp(index), decided_in, request: None, command };
        state.apply(index, TERM, &entry);
    }

    /// A VM of so many replicas, which no node has room for.
    pub fn spec(name: &str, replicas: usize) -> VmSpec {
        let runner = |replica| format!("/nix/store/{}-{name}-{replica}", "a".repeat(32)).parse().unwrap();
        VmSpec {
            runners: (0..replicas).map(runner).collect(),
            system: "x86_64-linux".to_owned(),
            hypervisor: Hypervisor::Qemu,
            vcpus: 1,
            memory_mib: 128,
            memory_overhead_mib: None,
            disk_mib: 0,
            kvm: false,
            requires: Labels::new(),
            restart: RestartPolicy::Always,
            notifies: false,
            failover: Failover::Automatic,
            priority: Priority::default(),
            min_available: None,
        }
    }

    #[test]
    fn pages_together_are_what_one_look_at_all_instances_sees() {
        let mut state = State::default();
        let first = NewNode {
            name: "alpha".parse().unwrap(),
            address: "127.0.0.1:1".parse().unwrap(),
            key: Hash::of(b"key"),
            understands: Level(1),
            role: blixard_core::types::NodeRole::Auto,
        };
        let cluster = ClusterId::from_bytes([7; 16]);
        let found =
            Command::Found { cluster, ca_certificate: vec![1], sealed_ca_key: vec![2], first, listed_servers: 1 };
        apply(&mut state, 1, Some(TERM), found);
        for (index, (name, replicas)) in (2..).zip([("db", 1), ("web", 3), ("web-0", 2)]) {
            let vm =
                Command::PutVm { name: name.parse().unwrap(), spec: spec(name, replicas), running: true, must: None };
            apply(&mut state, index, None, vm);
        }
        let whole = page(&state, None, |_| true);
        assert_eq!((whole.instances.len(), whole.problems.len(), whole.last), (6, 6, None));
        let (mut paged, mut after) = (Page::default(), None);
        loop {
            let one = page(&state, after.as_ref(), |count| count < 2);
            assert!(one.instances.len() <= 2, "it was told to stop");
            paged.instances.extend(one.instances);
            paged.problems.extend(one.problems);
            let Some(last) = one.last else { break };
            after = Some(last);
        }
        assert_eq!((paged.instances, paged.problems), (whole.instances, whole.problems));
    }
}
