//! A state that is asked as a log would ask it, and checked after every entry.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::*;
use super::{index, vms};
use crate::command::VmReport;
use crate::schedule::schedule;
use crate::types::{Failover, Hypervisor, Labels, NodeRole, Nonce, Priority, RaftId};

/// A state, and the log that made it; other rooms' tests start from it too.
#[derive(Clone, Default)]
pub struct Fixture {
    pub state: State,
    pub index: u64,
    pub log: Vec<Entry>,
    pub rows: BTreeMap<(Table, Vec<u8>), Arc<[u8]>>,
}

pub const TERM: Term = Term(1);
pub const TAG: u32 = 9;

impl Fixture {
    /// A cluster of this many registered nodes, each with 4 CPUs, 4096 MiB memory and 4096 MiB disk; up to five are
    /// servers.
    pub fn of_nodes(count: u64) -> Self {
        Self::of(count, ROLE)
    }

    /// The founder alone, which has this role, and whose configuration lists so many servers.
    pub fn founded(listed_servers: usize, role: NodeRole) -> Self {
        let mut fixture = Self::default();
        fixture.decide(Command::Found {
            cluster: ClusterId::from_bytes([7; 16]),
            ca_certificate: vec![1],
            sealed_ca_key: vec![2; 9],
            first: NewNode { role, ..joiner(1) },
            listed_servers,
        });
        fixture.register(1, role);
        fixture.arm(1);
        fixture
    }

    /// The same of nodes that have this role.
    pub fn of(count: u64, role: NodeRole) -> Self {
        let mut fixture = Self::founded(1, role);
        for id in 2..=count {
            fixture.join(id, role);
        }
        fixture
    }

    /// The next node joins and registers; its raft id, where it is to be a server at once.
    pub fn join(&mut self, id: u64, role: NodeRole) -> Option<RaftId> {
        let reply = self.say(Command::Admit(NewNode { role, ..joiner(id) }));
        let Reply::Admitted { node: NodeId(node), raft } = reply else { panic!("{reply:?}") };
        assert_eq!(node, id, "ids are counted");
        self.register(id, role);
        self.arm(id);
        raft
    }

    /// A node's fence has seen that nothing runs there: the next epoch begins.
    pub fn arm(&mut self, id: u64) -> Reply {
        let (node, nonce) = (NodeId(id), Nonce([9; 16]));
        let expected = self.state.nodes()[&node].lease.epoch;
        self.say(Command::Arm { node, expected, nonce, machine: None })
    }

    /// A node says which role it has from now on.
    pub fn register(&mut self, id: u64, role: NodeRole) {
        let Command::RegisterWorker { node, address, understands, worker, .. } = register(id, worker()) else {
            unreachable!()
        };
        self.say(Command::RegisterWorker { node, address, understands, role, worker, secrets: None, boot: BOOT });
    }

    /// A node's agent starts, in this boot of its host.
    pub fn start_agent(&mut self, id: u64, in_boot: Hash) {
        let mut registering = register(id, worker());
        if let Command::RegisterWorker { boot, .. } = &mut registering {
            *boot = in_boot;
        }
        self.say(registering);
    }

    /// What anybody may propose.
    pub fn say(&mut self, command: Command) -> Reply {
        self.apply(None, command)
    }

    /// What only the leader may.
    pub fn decide(&mut self, command: Command) -> Reply {
        self.apply(Some(TERM), command)
    }

    pub fn apply(&mut self, decided_in: Option<Term>, command: Command) -> Reply {
        self.index += 1;
        let entry = Entry { at: Timestamp(self.index * 1000), decided_in, request: None, command };
        let before = self.state.clone();
        let outcome = self.state.apply(self.index, TERM, &entry);
        if matches!(outcome.answer.reply, Reply::Refused(_)) {
            assert_eq!(self.state, before, "what is refused leaves the state as it was: {entry:?}");
            assert!(outcome.changes.is_empty(), "{entry:?}");
        }
        self.keep(outcome.changes);
        check(self, &before, &entry.command);
        self.log.push(entry);
        outcome.answer.reply
    }

    /// The raft group has removed a server.
    pub fn remove_server(&mut self, raft: RaftId) {
        self.index += 1;
        let outcome = self.state.apply_removal(self.index, raft);
        self.keep(outcome.changes);
        the_rows_are_the_state(self);
    }

    fn keep(&mut self, changes: Vec<Change>) {
        for change in changes {
            let key = (change.table, change.key);
            match change.value {
                Some(value) => self.rows.insert(key, value),
                None => self.rows.remove(&key),
            };
        }
    }

    /// Lets the cluster begin anew, which no entry does.
    ///
    /// # Errors
    /// As [`State::begin_epoch`].
    pub fn begin_epoch(&mut self, beginner: Beginner) -> Result<(NodeId, RaftId), BeginError> {
        let before = self.state.clone();
        let begun = self.state.begin_epoch(Renewal::Recovered, beginner, TAG, Timestamp(self.index * 1000));
        if begun.is_err() {
            assert_eq!(self.state, before, "what is refused leaves the state as it was");
        }
        let rows = self.state.all_rows().into_iter();
        self.rows = rows.map(|row| ((row.table, row.key), row.value.expect("it is there"))).collect();
        the_rows_are_the_state(self);
        begun
    }

    /// Makes `vms` the head, as a person.
    pub fn declare(&mut self, vms: &[(&str, VmSpec)]) -> Reply {
        let manifest = manifest(vms);
        self.say(Command::OfferManifest { manifest, from: Origin::Person("test".to_owned()) })
    }

    /// Lets the scheduler decide until it has nothing more to say.
    pub fn settle(&mut self) {
        for _ in 0..10 {
            let decisions = schedule(&self.state);
            if decisions.is_empty() {
                return;
            }
            for decision in decisions {
                let reply = self.decide(decision.clone());
                assert_eq!(reply, Reply::Done, "a decision on the newest state is carried out: {decision:?}");
            }
        }
        panic!("the scheduler does not come to rest: {:?}", schedule(&self.state));
    }

    /// Lets the scheduler decide, and what is placed runs.
    pub fn run(&mut self) {
        self.settle();
        for id in self.state.instances().keys().map(ToString::to_string).collect::<Vec<_>>() {
            if self.placement(&id).is_some_and(|placement| !placement.stopping) {
                self.report(&id, InstancePhase::Running);
            }
        }
    }

    /// The node of an instance says this of the generation that is placed.
    pub fn report(&mut self, instance: &str, phase: InstancePhase) {
        let placement = self.placement(instance).expect("it is placed");
        let report = VmReport {
            instance: id(instance),
            generation: placement.unit.generation,
            phase,
            restarts: 0,
            message: String::new(),
        };
        let node = placement.node;
        assert_eq!(self.say(Command::Report { node, vms: vec![report], tasks: vec![] }), Reply::Done);
    }

    pub fn placement(&self, instance: &str) -> Option<Box<Placement>> {
        self.state.instances().get(&id(instance))?.placement.clone()
    }

    pub fn node_of(&self, instance: &str) -> Option<u64> {
        self.placement(instance).map(|placement| placement.node.0)
    }
}

/// Asserts that it was refused, in these words among others.
pub fn is_refused(reply: &Reply, words: &[&str]) {
    let Reply::Refused(why) = reply else { panic!("{reply:?}") };
    assert!(words.iter().all(|word| why.contains(word)), "{why}");
}

pub fn id(instance: &str) -> InstanceId {
    instance.parse().expect("a test names it right")
}

pub fn manifest(vms: &[(&str, VmSpec)]) -> Manifest {
    let vms = vms.iter().map(|(name, spec)| (name.parse().expect("a name"), spec.clone()));
    Manifest::new(vms.collect()).expect("a valid manifest")
}

/// A VM of 1 CPU and 1024 MiB with its overhead; the name makes its runners' paths.
pub fn vm(name: &str, replicas: usize) -> VmSpec {
    let runner = |replica| format!("/nix/store/{}-{name}-{replica}", "a".repeat(32)).parse().expect("a store path");
    VmSpec {
        runners: (0..replicas).map(runner).collect(),
        system: "x86_64-linux".to_owned(),
        hypervisor: Hypervisor::Qemu,
        vcpus: 1,
        memory_mib: 896,
        memory_overhead_mib: None,
        disk_mib: 0,
        kvm: false,
        requires: Labels::new(),
        restart: crate::types::RestartPolicy::Always,
        notifies: false,
        failover: Failover::Automatic,
        priority: Priority::default(),
        min_available: None,
    }
}

pub fn worker() -> Worker {
    Worker {
        resources: Resources { cpus: 4, memory_mib: 4096, disk_mib: 4096 },
        system: "x86_64-linux".to_owned(),
        kvm: false,
        hypervisors: Hypervisor::ALL.to_vec(),
        labels: Labels::new(),
        no_fence: None,
    }
}

/// A node says what it has.
/// So that up to five are servers.
const ROLE: NodeRole = NodeRole::Server;
/// In which every host is at first.
pub const BOOT: Hash = Hash::from_bytes([1; 32]);
pub const NEXT_BOOT: Hash = Hash::from_bytes([2; 32]);

pub fn register(id: u64, worker: Worker) -> Command {
    let (node, address, understands) = (NodeId(id), address(id), Level::NEWEST);
    Command::RegisterWorker { node, address, understands, role: ROLE, worker, secrets: None, boot: BOOT }
}

pub fn joiner(id: u64) -> NewNode {
    NewNode {
        name: format!("node{id}").parse().expect("a label"),
        address: address(id),
        key: Hash::of(&id.to_be_bytes()),
        understands: Level::NEWEST,
        role: ROLE,
    }
}

pub fn address(id: u64) -> Address {
    format!("10.0.0.{id}:7420").parse().expect("an address")
}

/// The invariants, after every entry.
fn check(fixture: &Fixture, before: &State, command: &Command) {
    no_entry_places_more_on_a_node_than_it_has(&fixture.state, before);
    what_is_declared_has_an_instance_and_what_is_not_is_going(&fixture.state);
    vms::what_is_not_to_run_is_nowhere_or_going(&fixture.state);
    vms::the_manifest_has_the_vms_of_the_head_and_no_others(&fixture.state);
    vms::no_instance_is_placed_off_its_volumes(&fixture.state, before);
    vms::only_the_command_line_changes_its_own(&fixture.state, before, command);
    index::what_is_used_is_the_sum_of_what_is_placed(&fixture.state);
    index::the_scheduler_sees_whatever_is_not_as_declared(&fixture.state);
    index::the_servers_are_the_nodes_that_have_a_raft_id(&fixture.state);
    what_is_automatic_is_of_an_epoch_that_holds(&fixture.state);
    events::tests::what_an_entry_changes_is_told(&fixture.state, before, fixture.index);
    the_rows_are_the_state(fixture);
}

/// Or it is over. Whatever ends an epoch has freed it.
fn what_is_automatic_is_of_an_epoch_that_holds(state: &State) {
    for (id, instance) in &state.instances {
        let Some(placement) = &instance.placement else { continue };
        let lease = &state.nodes[&placement.node].lease;
        let ended = matches!(lease.standing, Standing::Fenced | Standing::Gone);
        let holds = !ended && lease.epoch == placement.epoch;
        let is_bound = placement.unit.failover == Failover::Automatic && !placement.is_over();
        assert!(!is_bound || holds, "{id} on {}, {lease:?}", placement.node);
    }
}

/// A node that has shrunk may have too much on it already.
fn no_entry_places_more_on_a_node_than_it_has(state: &State, before: &State) {
    for (node, member) in &state.nodes {
        let has = member.worker.as_ref().map_or(Resources::default(), |worker| worker.resources);
        let (placed, had) = (state.used(*node), before.used(*node));
        assert!(placed.fits_in(has) || placed.fits_in(had), "{placed:?} on {node}, which has {has:?} and had {had:?}");
    }
}

fn what_is_declared_has_an_instance_and_what_is_not_is_going(state: &State) {
    for (name, vm) in &state.vms {
        assert!(vm.value().spec.instances(name).all(|id| state.instances.contains_key(&id)), "{name}");
    }
    for (id, instance) in &state.instances {
        if state.declared(id).is_none() {
            assert!(instance.placement.as_ref().is_some_and(|placement| placement.stopping), "{id}");
        }
    }
}

fn the_rows_are_the_state(fixture: &Fixture) {
    let rows = fixture.rows.iter().map(|((table, key), value)| (*table, key, value));
    assert_eq!(State::from_rows(rows).expect("rows read back"), fixture.state);
}
