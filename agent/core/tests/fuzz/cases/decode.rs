//! Bytes that become entries, rows and manifests, or don't; and what a state makes of an entry that nobody meant to write.

use std::collections::BTreeMap;

use blixard_core::command::{
    Command, Entry, InstancePhase, NewNode, Origin, Presence, Reply, Request, Resealed, TaskPhase, TaskReport,
    TaskSpec, VmReport, Worker,
};
use blixard_core::manifest::Manifest;
use blixard_core::state::{Change, State, Table};
use blixard_core::types::{
    ClientId, ClusterEpoch, ClusterId, Exit, Failover, Generation, Hash, Hypervisor, Labels, Level, NodeId, NodeRole,
    PublicKey, Resources, SecretId, SecretIds, TaskId, Term, Timestamp, TokenId,
};

use super::bytes::Bytes;

const TERM: Term = Term(1);
const MOST_ENTRIES: u64 = 100;
const MANIFEST: &str = r#"{ "version": 1, "vms": {
    "web": { "runners": ["/nix/store/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-web-0", "/nix/store/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-web-1"],
        "system": "x86_64-linux", "hypervisor": "qemu", "vcpus": 1, "memoryMiB": 96, "restart": "always" },
    "db": { "runners": ["/nix/store/bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb-db"], "system": "x86_64-linux", "hypervisor": "firecracker",
        "vcpus": 2, "memoryMiB": 512, "memoryOverheadMiB": 12, "diskMiB": 100, "kvm": false, "requires": { "disk": "ssd" },
        "notifies": true, "failover": "manual", "priority": 900, "minAvailable": 0 } },
    "nodes": { "node3": { "publicKey": "MCowBQYDK2VwAyEAAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM=" } } }"#;

/// A log whose entries are damaged on their way: what can be read at all does no harm.
///
/// # Panics
/// When something is not as it has to be.
pub fn entries(bytes: &[u8]) {
    let mut bytes = Bytes::new(bytes);
    let mut state = State::default();
    let mut rows = BTreeMap::new();
    let samples = samples();
    for index in 1..=MOST_ENTRIES {
        // What makes a cluster comes first, so that there is something to harm.
        let founding = usize::try_from(index - 1).ok().filter(|place| *place < 5);
        let sample = founding.map_or_else(|| bytes.one_of(&samples), |place| samples[place].clone());
        let mut encoded = sample.encode();
        if founding.is_none() && bytes.happens(160) {
            bytes.damage(&mut encoded);
        }
        if bytes.happens(4) {
            encoded = bytes.take(255).to_vec();
        }
        if let Ok(entry) = Entry::decode(&encoded) {
            assert_eq!(Entry::decode(&entry.encode()).expect("it was encoded just now"), entry);
            for Change { table, key, value } in what_is_refused_leaves_the_state_as_it_was(&mut state, index, &entry) {
                match value {
                    Some(value) => rows.insert((table, key), value.to_vec()),
                    None => rows.remove(&(table, key)),
                };
            }
        }
        if bytes.is_empty() && founding.is_none() {
            break;
        }
    }
    rows_are_the_state_or_are_refused(&state, rows, &mut bytes);
}

/// As a snapshot brings them, and as one that is damaged does.
fn rows_are_the_state_or_are_refused(state: &State, rows: BTreeMap<(Table, Vec<u8>), Vec<u8>>, bytes: &mut Bytes) {
    let Change { table, key, value } = state.sessions_row();
    let sessions = value.map(|value| (table, key, value.to_vec()));
    let mut rows: Vec<_> = rows.into_iter().map(|((table, key), value)| (table, key, value)).chain(sessions).collect();
    let read = State::from_rows(rows.clone()).expect("it was written just now");
    assert!(read == *state, "another state comes back");
    for _ in 0..4 {
        let place = bytes.below(rows.len());
        let (_, key, value) = &mut rows[place];
        let what = if bytes.happens(64) { key } else { value };
        bytes.damage(what);
        drop(State::from_rows(rows.clone()));
    }
}

fn what_is_refused_leaves_the_state_as_it_was(state: &mut State, index: u64, entry: &Entry) -> Vec<Change> {
    let before = state.clone();
    let outcome = state.apply(index, TERM, entry);
    // That it was refused is kept for who asks again.
    if entry.request.is_none() && matches!(outcome.answer.reply, Reply::Refused(_)) {
        assert!(*state == before && outcome.changes.is_empty(), "{entry:?}");
    }
    outcome.changes
}

/// A manifest that is damaged, or made of bytes.
///
/// # Panics
/// When something is not as it has to be.
pub fn manifest(bytes: &[u8]) {
    let mut damaged = MANIFEST.as_bytes().to_vec();
    Bytes::new(bytes).damage(&mut damaged);
    for json in [bytes, &damaged] {
        if let Ok(manifest) = Manifest::parse(json) {
            manifest.validate().expect("it was parsed");
            let has_unit =
                |id| manifest.vms.values().any(|spec| spec.unit(&id, Generation(1), Failover::Manual).is_some());
            assert!(manifest.instances().all(has_unit), "{json:?}");
            let entry = Entry { command: offer(manifest), ..entry(Command::AcceptManifest { node: NodeId(1) }) };
            assert_eq!(Entry::decode(&entry.encode()).expect("it was encoded just now"), entry);
        }
    }
}

fn offer(manifest: Manifest) -> Command {
    Command::OfferManifest { manifest, from: Origin::Host { node: NodeId(1), activated: true, authority: false } }
}

fn entry(command: Command) -> Entry {
    let decided_in = command.is_decision().then_some(TERM);
    Entry { at: Timestamp(1_700_000_000_000), decided_in, request: None, command }
}

fn joiner(id: u64) -> NewNode {
    let address = format!("10.0.0.{id}:7420").parse().expect("an address");
    let name = format!("node{id}").parse().expect("a name");
    NewNode { name, address, key: Hash::of(&[7]), understands: Level::NEWEST, role: NodeRole::Auto }
}

/// Those about who comes, goes, and is a server.
fn of_members() -> Vec<Command> {
    let node = NodeId(2);
    vec![
        Command::CreateToken {
            token: TokenId(1),
            secret: Hash::of(&[8]),
            ttl_ms: 3_600_000,
            role: Some(NodeRole::Worker),
        },
        Command::Redeem {
            token: TokenId(1),
            secret: Hash::of(&[8]),
            expires: Timestamp(1),
            host: joiner(3),
            was_in: None,
        },
        Command::RevokeToken { token: TokenId(1) },
        Command::Rejoin { host: joiner(2), was_in: ClusterEpoch::FIRST },
        Command::ReturnNode { node },
        Command::Enlist { node },
        Command::AdmitDeclared { key: PublicKey::from_bytes([3; 32]), host: joiner(3), was_in: None },
        Command::Reseal { keys: vec![Resealed { was: Hash::of(&[2; 9]), sealed: vec![3; 9] }] },
        Command::RemoveNode { node, dead: false, abandon_volumes: true },
        Command::ForgetNode { node },
    ]
}

/// One entry of each kind; the first ones found a cluster with a worker, which has something to run.
fn samples() -> Vec<Entry> {
    let node = NodeId(1);
    let generation = Generation(1);
    let instance = || "web-0".parse().expect("an instance");
    let name = || "cli".parse().expect("a name");
    let manifest = Manifest::parse(MANIFEST.as_bytes()).expect("it is valid");
    let spec = manifest.vms.values().next().expect("it declares two").clone();
    let resources = Resources { cpus: 4, memory_mib: 4096, disk_mib: 4096 };
    let worker = Worker {
        resources,
        system: "x86_64-linux".to_owned(),
        kvm: true,
        hypervisors: Hypervisor::ALL.to_vec(),
        labels: Labels::new(),
        no_fence: Some("it has none".to_owned()),
    };
    let report = |phase| VmReport { instance: instance(), generation, phase, restarts: 1, message: "so".to_owned() };
    let task = TaskId(1);
    let commands = [
        Command::Found {
            cluster: ClusterId::from_bytes([7; 16]),
            ca_certificate: vec![1],
            sealed_ca_key: vec![2; 9],
            first: joiner(1),
            listed_servers: 3,
        },
        Command::RegisterWorker {
            node,
            address: joiner(1).address,
            understands: Level(2),
            role: NodeRole::Server,
            worker,
            secrets: Some(SecretIds { current: SecretId([2; 8]), next: Some(SecretId([3; 8])) }),
            boot: Hash::of(b"a boot"),
        },
        offer(manifest),
        Command::Place { instance: instance(), node, generation },
        Command::RunTask(TaskSpec { command: vec!["true".to_owned()], request: resources }),
        Command::Admit(joiner(2)),
        Command::AcceptManifest { node },
        Command::RollBackManifest { from: "me".to_owned() },
        Command::Report { node, vms: vec![report(InstancePhase::Running)], tasks: vec![] },
        Command::Report { node, vms: vec![report(InstancePhase::Ended(Exit::Exited(1)))], tasks: vec![] },
        Command::Report {
            node,
            vms: vec![report(InstancePhase::Stopped)],
            tasks: vec![TaskReport { task, phase: TaskPhase::Running, message: String::new() }],
        },
        Command::SetWorkerAlive { node, alive: true },
        Command::Unplace { instance: instance(), generation },
        Command::PlaceTask { task, node },
        Command::PutVm { name: name(), spec, running: true, must: Some(Presence::Absent) },
        Command::SetVmRunning { name: name(), running: false },
        Command::RemoveVm { name: name() },
        Command::RaiseLevel { level: Level(2) },
        Command::CheckState,
        Command::StateHash { node, at: 19, hash: Hash::of(&[7]) },
    ];
    let mut samples: Vec<Entry> = commands.into_iter().chain(of_members()).map(entry).collect();
    let request = Request { client: ClientId(3), sequence: 2, answered: 1, until: 40 };
    let asked =
        samples.iter().skip(5).map(|entry| Entry { request: Some(request), ..entry.clone() }).collect::<Vec<_>>();
    samples.extend(asked);
    samples
}
