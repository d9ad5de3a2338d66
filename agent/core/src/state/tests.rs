use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::command::{MAX_MESSAGE_CHARS, ManifestReply, Presence, VmReport};
use crate::schedule::schedule;
use crate::types::{Exit, Hypervisor, Labels, StorePath};

mod index;
mod requests;
mod vms;

/// A state, and the log that made it; other rooms' tests start from it too.
#[derive(Clone, Default)]
pub struct Fixture {
    pub state: State,
    pub index: u64,
    log: Vec<Entry>,
    rows: BTreeMap<(Table, Vec<u8>), Arc<[u8]>>,
}

pub const TERM: Term = Term(1);

impl Fixture {
    /// A cluster of this many registered nodes, each with 4 CPUs, 4096 MiB memory and 4096 MiB disk.
    pub fn of_nodes(count: u64) -> Self {
        let mut fixture = Self::default();
        fixture.decide(Command::Found {
            cluster: ClusterId::from_bytes([7; 16]),
            ca_certificate: vec![1],
            sealed_ca_key: vec![2],
            first: joiner(1),
        });
        for id in 2..=count {
            fixture.say(Command::Admit(joiner(id)));
        }
        for id in 1..=count {
            fixture.say(register(id, worker()));
        }
        fixture
    }

    /// What anybody may propose.
    pub fn say(&mut self, command: Command) -> Reply {
        self.apply(None, command)
    }

    /// What only the leader may.
    pub fn decide(&mut self, command: Command) -> Reply {
        self.apply(Some(TERM), command)
    }

    fn apply(&mut self, decided_in: Option<Term>, command: Command) -> Reply {
        self.index += 1;
        let entry = Entry { at: Timestamp(self.index * 1000), decided_in, request: None, command };
        let before = self.state.clone();
        let outcome = self.state.apply(self.index, TERM, &entry);
        if matches!(outcome.answer.reply, Reply::Refused(_)) {
            assert_eq!(self.state, before, "what is refused leaves the state as it was: {entry:?}");
            assert!(outcome.changes.is_empty(), "{entry:?}");
        }
        for change in outcome.changes {
            let key = (change.table, change.key);
            match change.value {
                Some(value) => self.rows.insert(key, value),
                None => self.rows.remove(&key),
            };
        }
        check(self, &before, &entry.command);
        self.log.push(entry);
        outcome.answer.reply
    }

    /// Lets the cluster begin anew, which no entry does.
    ///
    /// # Errors
    /// As [`State::begin_epoch`].
    pub fn begin_epoch(&mut self, beginner: Beginner) -> Result<(NodeId, RaftId), BeginError> {
        let before = self.state.clone();
        let begun = self.state.begin_epoch(Renewal::Recovered, beginner, Timestamp(self.index * 1000));
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
    }
}

pub fn worker() -> Worker {
    Worker {
        resources: Resources { cpus: 4, memory_mib: 4096, disk_mib: 4096 },
        system: "x86_64-linux".to_owned(),
        kvm: false,
        hypervisors: Hypervisor::ALL.to_vec(),
        labels: Labels::new(),
    }
}

/// A node says what it has.
pub fn register(id: u64, worker: Worker) -> Command {
    Command::RegisterWorker { node: NodeId(id), address: address(id), understands: Level::NEWEST, worker }
}

pub fn joiner(id: u64) -> NewNode {
    NewNode {
        name: format!("node{id}").parse().expect("a label"),
        address: address(id),
        key: Hash::of(&id.to_be_bytes()),
        understands: Level::NEWEST,
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
    the_rows_are_the_state(fixture);
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

#[test]
fn a_decision_that_commits_in_another_term_is_refused() {
    let mut fixture = Fixture::of_nodes(1);
    fixture.declare(&[("web", vm("web", 1))]);
    let place = Command::Place { instance: id("web-0"), node: NodeId(1), generation: Generation(1) };
    assert!(matches!(fixture.apply(Some(Term(0)), place.clone()), Reply::Refused(_)));
    assert!(matches!(fixture.apply(None, place.clone()), Reply::Refused(_)));
    assert_eq!(fixture.decide(place), Reply::Done);
}

#[test]
fn a_placement_of_a_stale_generation_is_refused() {
    let mut fixture = Fixture::of_nodes(2);
    fixture.declare(&[("web", vm("web", 1))]);
    fixture.settle();
    let node = fixture.placement("web-0").unwrap().node;
    for generation in [0, 1, 3] {
        let place = Command::Place { instance: id("web-0"), node, generation: Generation(generation) };
        assert!(matches!(fixture.decide(place), Reply::Refused(_)), "{generation}");
    }
}

#[test]
fn what_may_still_run_elsewhere_is_not_placed() {
    let mut fixture = Fixture::of_nodes(2);
    fixture.declare(&[("web", vm("web", 1))]);
    fixture.settle();
    assert_eq!(fixture.node_of("web-0"), Some(1));
    let elsewhere = Command::Place { instance: id("web-0"), node: NodeId(2), generation: Generation(2) };
    assert!(matches!(fixture.decide(elsewhere.clone()), Reply::Refused(_)));
    fixture.decide(Command::Unplace { instance: id("web-0"), generation: Generation(1) });
    assert!(matches!(fixture.decide(elsewhere.clone()), Reply::Refused(_)), "it is stopping, not stopped");
    fixture.report("web-0", InstancePhase::Stopped);
    assert_eq!(fixture.decide(elsewhere), Reply::Done);
}

#[test]
fn a_report_about_the_past_changes_nothing() {
    let mut fixture = Fixture::of_nodes(2);
    fixture.declare(&[("web", vm("web", 1))]);
    fixture.settle();
    let before = fixture.state.clone();
    let report = |node, generation, phase| Command::Report {
        node: NodeId(node),
        vms: vec![VmReport {
            instance: id("web-0"),
            generation: Generation(generation),
            phase,
            restarts: 3,
            message: String::new(),
        }],
        tasks: vec![],
    };
    fixture.say(report(1, 0, InstancePhase::Running));
    fixture.say(report(2, 1, InstancePhase::Running));
    fixture.say(report(1, 1, InstancePhase::Stopped));
    assert_eq!(fixture.state, before);
    fixture.say(report(1, 1, InstancePhase::Ended(Exit::Exited(3))));
    assert_eq!(fixture.placement("web-0").unwrap().phase, InstancePhase::Ended(Exit::Exited(3)));
}

#[test]
fn a_report_that_says_nothing_new_changes_no_row() {
    let mut fixture = Fixture::of_nodes(1);
    fixture.declare(&[("web", vm("web", 1))]);
    fixture.settle();
    let report = VmReport {
        instance: id("web-0"),
        generation: Generation(1),
        phase: InstancePhase::Ended(Exit::NotStarted),
        restarts: 0,
        message: "é".repeat(3 * MAX_MESSAGE_CHARS),
    };
    let command = Command::Report { node: NodeId(1), vms: vec![report], tasks: vec![] };
    fixture.say(command.clone());
    assert_eq!(fixture.placement("web-0").unwrap().message.chars().count(), MAX_MESSAGE_CHARS);
    let entry = Entry { at: Timestamp(99), decided_in: None, request: None, command };
    assert_eq!(fixture.state.apply(fixture.index + 1, TERM, &entry).changes, []);
}

#[test]
fn room_is_kept_for_the_old_run_until_the_new_one_runs() {
    let mut fixture = Fixture::of_nodes(1);
    fixture.declare(&[("web", VmSpec { vcpus: 3, ..vm("web", 1) })]);
    fixture.settle();
    fixture.report("web-0", InstancePhase::Running);
    fixture.declare(&[("web", vm("other", 1))]);
    fixture.settle();
    fixture.report("web-0", InstancePhase::Starting);
    assert_eq!(fixture.state.used(NodeId(1)).cpus, 3);
    fixture.report("web-0", InstancePhase::Running);
    assert_eq!(fixture.state.used(NodeId(1)).cpus, 1);
}

#[test]
fn a_removed_vm_is_gone_only_once_it_is_confirmed_stopped() {
    let mut fixture = Fixture::of_nodes(1);
    fixture.declare(&[("web", vm("web", 1)), ("db", vm("db", 1))]);
    fixture.settle();
    fixture.declare(&[("db", vm("db", 1))]);
    assert!(fixture.placement("web-0").unwrap().stopping);
    assert_eq!(fixture.state.used(NodeId(1)).cpus, 2, "it takes its room until it has stopped");
    fixture.report("web-0", InstancePhase::Stopped);
    assert_eq!(fixture.state.instances().len(), 1);
    assert_eq!(fixture.state.used(NodeId(1)).cpus, 1);
}

#[test]
fn a_generation_never_comes_again_when_a_vm_is_declared_again() {
    let mut fixture = Fixture::of_nodes(1);
    fixture.declare(&[("web", vm("web", 1))]);
    fixture.settle();
    let first = fixture.placement("web-0").unwrap().unit.generation;
    fixture.declare(&[]);
    fixture.report("web-0", InstancePhase::Stopped);
    fixture.declare(&[("web", vm("web", 1))]);
    fixture.settle();
    assert!(fixture.placement("web-0").unwrap().unit.generation > first);
}

fn offer(fixture: &mut Fixture, vms: &[(&str, VmSpec)], activated: bool, authority: bool) -> Option<ManifestReply> {
    let from = Origin::Host { node: NodeId(1), activated, authority };
    result_of(&fixture.say(Command::OfferManifest { manifest: manifest(vms), from }))
}

fn result_of(reply: &Reply) -> Option<ManifestReply> {
    if let Reply::Manifest { result, .. } = reply { Some(*result) } else { None }
}

#[test]
fn a_manifest_that_was_head_before_is_held_and_a_new_one_applied() {
    let mut fixture = Fixture::of_nodes(1);
    let (old, new) = ([("web", vm("web", 1))], [("web", vm("web", 2))]);
    assert_eq!(offer(&mut fixture, &old, true, false), Some(ManifestReply::Applied));
    assert_eq!(offer(&mut fixture, &old, true, false), Some(ManifestReply::Equal));
    assert_eq!(offer(&mut fixture, &new, false, false), Some(ManifestReply::Applied));
    assert_eq!(offer(&mut fixture, &old, true, false), Some(ManifestReply::Held));
    assert_eq!(offer(&mut fixture, &old, false, true), Some(ManifestReply::Held), "never at boot");
    assert_eq!(fixture.state.instances().len(), 2);
    assert_eq!(result_of(&fixture.say(Command::AcceptManifest { node: NodeId(1) })), Some(ManifestReply::Applied));
    assert_eq!(fixture.state.instances().len(), 1);
    assert!(fixture.state.held().is_empty());
    assert_eq!(offer(&mut fixture, &new, true, true), Some(ManifestReply::Applied), "an authority");
}

#[test]
fn what_is_held_is_forgotten_when_the_host_carries_the_head_again() {
    let mut fixture = Fixture::of_nodes(1);
    let (old, new) = ([("web", vm("web", 1))], [("web", vm("web", 2))]);
    offer(&mut fixture, &old, true, false);
    offer(&mut fixture, &new, true, false);
    offer(&mut fixture, &old, true, false);
    assert_eq!(fixture.state.held().len(), 1);
    offer(&mut fixture, &new, true, false);
    assert!(fixture.state.held().is_empty());
}

#[test]
fn a_roll_back_makes_the_manifest_before_the_head() {
    let mut fixture = Fixture::of_nodes(1);
    let back = Command::RollBackManifest { from: "test".to_owned() };
    assert!(matches!(fixture.say(back.clone()), Reply::Refused(_)));
    fixture.declare(&[("web", vm("web", 1))]);
    fixture.declare(&[("web", vm("web", 2))]);
    assert_eq!(result_of(&fixture.say(back)), Some(ManifestReply::Applied));
    assert_eq!(fixture.state.instances().len(), 1);
}

#[test]
fn a_task_runs_once_and_its_exit_is_kept() {
    let mut fixture = Fixture::of_nodes(1);
    let request = Resources { cpus: 1, memory_mib: 64, disk_mib: 0 };
    let spec = TaskSpec { command: vec!["true".to_owned()], request };
    assert_eq!(fixture.say(Command::RunTask(spec)), Reply::Task(TaskId(1)));
    fixture.settle();
    let report = |phase| crate::command::TaskReport { task: TaskId(1), phase, message: String::new() };
    let over = TaskPhase::Ended(Exit::Exited(3));
    for phase in [TaskPhase::Running, over, TaskPhase::Running] {
        fixture.say(Command::Report { node: NodeId(1), vms: vec![], tasks: vec![report(phase)] });
    }
    assert_eq!(fixture.state.tasks()[&TaskId(1)].phase, Some(over), "what is over stays over");
    assert_eq!(fixture.state.used(NodeId(1)), Resources::default());
}

/// Steps of a random history; small numbers, so that they meet.
#[derive(Clone, Debug)]
enum Step {
    Declare(Vec<(usize, u32)>),
    Schedule,
    Report { instance: usize, phase: u8 },
    Alive { node: u64, alive: bool },
    Capacity { node: u64, cpus: u32 },
    Task { cpus: u32 },
    Put { vm: usize, replicas: usize, running: bool, must: Option<Presence> },
    Run { vm: usize, running: bool },
    Remove { vm: usize },
}

const NAMES: [&str; 4] = ["web", "db", "mail", "wiki"];

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        prop::collection::vec((0..4_usize, 1..4_u32), 0..3).prop_map(Step::Declare),
        Just(Step::Schedule),
        Just(Step::Schedule),
        (0..8_usize, 0..4_u8).prop_map(|(instance, phase)| Step::Report { instance, phase }),
        (1..4_u64, any::<bool>()).prop_map(|(node, alive)| Step::Alive { node, alive }),
        (1..4_u64, 1..8_u32).prop_map(|(node, cpus)| Step::Capacity { node, cpus }),
        (1..3_u32).prop_map(|cpus| Step::Task { cpus }),
        vms::step(),
    ];
    prop::collection::vec(step, 0..40)
}

fn perform(fixture: &mut Fixture, step: &Step) {
    match step {
        Step::Declare(vms) => {
            let vms: Vec<_> = (NAMES.into_iter().zip(vms))
                .map(|(name, (replicas, vcpus))| (name, VmSpec { vcpus: *vcpus, ..vm(name, (*replicas).max(1)) }))
                .collect();
            fixture.declare(&vms);
        }
        Step::Schedule => fixture.settle(),
        Step::Report { instance, phase } => {
            let placed = fixture.state.instances().iter().filter(|(_, instance)| instance.placement.is_some());
            let Some(name) = placed.map(|(id, _)| id.to_string()).nth(*instance) else { return };
            let exit = InstancePhase::Ended(Exit::Exited(1));
            let phases = [InstancePhase::Starting, InstancePhase::Running, exit, InstancePhase::Stopped];
            fixture.report(&name, phases[usize::from(*phase)]);
        }
        Step::Alive { node, alive } => {
            fixture.decide(Command::SetWorkerAlive { node: NodeId(*node), alive: *alive });
        }
        Step::Capacity { node, cpus } => {
            let worker = Worker { resources: Resources { cpus: *cpus, ..worker().resources }, ..worker() };
            fixture.say(register(*node, worker));
        }
        Step::Task { cpus } => {
            let request = Resources { cpus: *cpus, memory_mib: 64, disk_mib: 0 };
            fixture.say(Command::RunTask(TaskSpec { command: vec!["true".to_owned()], request }));
        }
        Step::Put { .. } | Step::Run { .. } | Step::Remove { .. } => vms::perform(fixture, step),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn any_history_keeps_the_invariants(steps in steps()) {
        let mut fixture = Fixture::of_nodes(3);
        for step in &steps {
            perform(&mut fixture, step);
        }
    }

    #[test]
    fn equal_logs_make_equal_states(steps in steps()) {
        let mut fixture = Fixture::of_nodes(3);
        for step in &steps {
            perform(&mut fixture, step);
        }
        let mut replayed = State::default();
        for (index, entry) in (1..).zip(&fixture.log) {
            let read = Entry::decode(&entry.encode()).expect("what was encoded decodes");
            replayed.apply(index, TERM, &read);
        }
        prop_assert_eq!(replayed, fixture.state);
    }
}
