use proptest::prelude::*;

use super::*;
use crate::command::{MAX_MESSAGE_CHARS, ManifestReply, Presence, VmReport};
use crate::schedule::schedule;
use crate::types::{Exit, StorePath};

mod fixture;
mod index;
mod requests;
mod vms;

pub use fixture::*;

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
