use super::*;
use crate::command::Command;
use crate::manifest::VmSpec;
use crate::state::Beginner;
use crate::state::tests::{Fixture, id, vm};
use crate::types::{Generation, NodeEpoch, RestartPolicy};
use crate::unit::ExitRecord;

const HERE: NodeId = NodeId(1);

fn fixture() -> Fixture {
    let mut fixture = Fixture::of_nodes(1);
    fixture.declare(&[("web", vm("web", 1))]);
    fixture.settle();
    fixture
}

fn observed(fixture: &Fixture, phase: UnitPhase) -> Observed {
    let installed = Some(fixture.placement("web-0").expect("it is placed").unit);
    let unit = ObservedVm { phase, installed, restarts: 0, last_exit: None };
    Observed { vms: [(id("web-0"), unit)].into(), ..Observed::default() }
}

fn changes(fixture: &Fixture, observed: &Observed) -> Vec<UnitChange> {
    reconcile(HERE, &fixture.state, observed, &Attempts::default()).into_iter().map(|action| action.change).collect()
}

fn phases(fixture: &Fixture, observed: &Observed) -> Vec<InstancePhase> {
    let (vms, _) = report(HERE, &fixture.state, observed, &Attempts::default());
    vms.into_iter().map(|report| report.phase).collect()
}

#[test]
fn what_is_placed_here_is_started_and_then_left_alone() {
    let fixture = fixture();
    let unit = fixture.placement("web-0").unwrap().unit;
    assert_eq!(changes(&fixture, &Observed::default()), [UnitChange::StartVm(unit, NodeEpoch(1))]);
    for phase in [UnitPhase::Starting, UnitPhase::Running, UnitPhase::Stopping] {
        assert_eq!(changes(&fixture, &observed(&fixture, phase)), []);
    }
}

#[test]
fn what_is_automatic_is_started_and_confirmed_to_have_stopped_only_in_the_epoch_of_the_fence() {
    let mut fixture = Fixture::of_nodes(3);
    fixture.declare(&[("web", vm("web", 1))]);
    fixture.settle();
    let placement = fixture.placement("web-0").unwrap();
    assert_eq!((placement.node, placement.unit.failover), (HERE, Failover::Automatic));
    let armed = |armed| Observed { armed, ..Observed::default() };
    let (own, others) = (Some(placement.epoch), [None, Some(placement.epoch.next())]);
    assert_eq!(changes(&fixture, &armed(own)), [UnitChange::StartVm(placement.unit, placement.epoch)]);
    assert_eq!(others.map(|other| changes(&fixture, &armed(other))), [[], []]);
    fixture.declare(&[]);
    assert_eq!(others.map(|other| phases(&fixture, &armed(other))), [[], []], "it may be on a copy of the disk");
    assert_eq!(phases(&fixture, &armed(own)), [InstancePhase::Stopped]);
}

#[test]
fn what_is_placed_elsewhere_is_nothing_to_this_node() {
    let fixture = fixture();
    assert_eq!(reconcile(NodeId(2), &fixture.state, &Observed::default(), &Attempts::default()), []);
}

#[test]
fn what_is_not_placed_here_is_stopped_whatever_is_left_of_it() {
    let mut fixture = fixture();
    let mut units = observed(&fixture, UnitPhase::Running);
    fixture.declare(&[]);
    assert_eq!(changes(&fixture, &units), [UnitChange::StopVm(id("web-0"))]);
    assert_eq!(phases(&fixture, &units), [], "it isn't stopped as long as anything is left");
    units.vms.get_mut(&id("web-0")).unwrap().phase = UnitPhase::Inactive;
    assert_eq!(changes(&fixture, &units), [UnitChange::StopVm(id("web-0"))]);
    assert_eq!(phases(&fixture, &Observed::default()), [InstancePhase::Stopped]);
}

#[test]
fn a_changed_runner_is_stopped_before_the_new_one_starts() {
    let mut fixture = fixture();
    let units = observed(&fixture, UnitPhase::Running);
    fixture.declare(&[("web", vm("other", 1))]);
    fixture.settle();
    let unit = fixture.placement("web-0").unwrap().unit;
    assert_eq!(changes(&fixture, &units), [UnitChange::StopVm(id("web-0")), UnitChange::StartVm(unit, NodeEpoch(1))]);
    assert_eq!(phases(&fixture, &units), [], "the old generation's unit doesn't count as the new one running");
}

#[test]
fn what_was_installed_as_the_other_of_automatic_and_manual_is_stopped_though_nothing_may_start_yet() {
    let mut fixture = Fixture::of_nodes(3);
    fixture.declare(&[("web", vm("web", 1))]);
    fixture.settle();
    let mut units = observed(&fixture, UnitPhase::Running);
    units.armed = Some(NodeEpoch(1));
    assert_eq!(changes(&fixture, &units), []);
    let installed = units.vms.get_mut(&id("web-0")).unwrap().installed.as_mut().unwrap();
    installed.failover = Failover::Manual;
    let unit = fixture.placement("web-0").unwrap().unit;
    let stop = UnitChange::StopVm(id("web-0"));
    assert_eq!(changes(&fixture, &units), [stop.clone(), UnitChange::StartVm(unit, NodeEpoch(1))]);
    fixture.begin_epoch(Beginner::Survivor(NodeId(2))).unwrap();
    assert_eq!(changes(&fixture, &units), [stop]);
}

#[test]
fn changed_limits_leave_the_vm_running() {
    let mut fixture = fixture();
    let units = observed(&fixture, UnitPhase::Running);
    fixture.declare(&[("web", VmSpec { vcpus: 2, ..vm("web", 1) })]);
    fixture.settle();
    let unit = fixture.placement("web-0").unwrap().unit;
    assert_eq!(changes(&fixture, &units), [UnitChange::UpdateVm(unit, NodeEpoch(1))]);
}

#[test]
fn a_vm_that_ended_is_started_again_only_if_its_policy_says_so() {
    for (restart, exit, restarts) in [
        (RestartPolicy::Always, Exit::Exited(0), true),
        (RestartPolicy::OnFailure, Exit::Exited(0), false),
        (RestartPolicy::OnFailure, Exit::Exited(1), true),
        (RestartPolicy::OnFailure, Exit::Killed(9), true),
        (RestartPolicy::Never, Exit::Exited(1), false),
    ] {
        let mut fixture = Fixture::of_nodes(1);
        fixture.declare(&[("web", VmSpec { restart, ..vm("web", 1) })]);
        fixture.settle();
        let mut units = observed(&fixture, UnitPhase::Inactive);
        let generation = fixture.placement("web-0").unwrap().unit.generation;
        units.vms.get_mut(&id("web-0")).unwrap().last_exit = Some(ExitRecord { generation, exit });
        assert_eq!(!changes(&fixture, &units).is_empty(), restarts, "{restart:?} {exit:?}");
        let ended = [InstancePhase::Ended(exit)];
        assert_eq!(phases(&fixture, &units), if restarts { &[][..] } else { &ended }, "{restart:?} {exit:?}");
        // The exit of an earlier generation says nothing about this one.
        units.vms.get_mut(&id("web-0")).unwrap().last_exit = Some(ExitRecord { generation: Generation(0), exit });
        assert!(!changes(&fixture, &units).is_empty(), "{restart:?} {exit:?}");
    }
}

#[test]
fn a_failed_start_is_reported_with_its_message_and_tried_again() {
    let fixture = fixture();
    let failures = BTreeMap::from([("web-0".to_owned(), "no such path".to_owned())]);
    let attempts = Attempts { failures, ..Attempts::default() };
    let (vms, _) = report(HERE, &fixture.state, &Observed::default(), &attempts);
    assert_eq!(vms[0].phase, InstancePhase::Ended(Exit::NotStarted));
    assert_eq!(vms[0].message, "no such path");
    assert_eq!(changes(&fixture, &Observed::default()).len(), 1);
}

#[test]
fn nothing_is_confirmed_stopped_while_a_start_of_it_is_under_way() {
    let mut fixture = fixture();
    fixture.declare(&[]);
    let under_way = BTreeSet::from(["web-0".to_owned()]);
    let attempts = Attempts { under_way, ..Attempts::default() };
    let (vms, _) = report(HERE, &fixture.state, &Observed::default(), &attempts);
    assert_eq!(vms, []);
    assert_eq!(phases(&fixture, &Observed::default()), [InstancePhase::Stopped]);
}

#[test]
fn a_long_failure_is_reported_once() {
    let mut fixture = fixture();
    let failures = BTreeMap::from([("web-0".to_owned(), "é".repeat(3 * MAX_MESSAGE_CHARS))]);
    let attempts = Attempts { failures, ..Attempts::default() };
    let (vms, tasks) = report(HERE, &fixture.state, &Observed::default(), &attempts);
    assert_eq!(vms.len(), 1);
    fixture.say(Command::Report { node: HERE, vms, tasks });
    let (vms, _) = report(HERE, &fixture.state, &Observed::default(), &attempts);
    assert_eq!(vms, []);
}

#[test]
fn what_ended_by_its_policy_stays_so_after_a_reboot() {
    let mut fixture = Fixture::of_nodes(1);
    fixture.declare(&[("web", VmSpec { restart: RestartPolicy::OnFailure, ..vm("web", 1) })]);
    fixture.settle();
    fixture.report("web-0", InstancePhase::Ended(Exit::Exited(0)));
    assert_eq!(changes(&fixture, &Observed::default()), []);
    fixture.report("web-0", InstancePhase::Ended(Exit::NotStarted));
    assert_eq!(changes(&fixture, &Observed::default()).len(), 1, "a failed start is tried again");
}

#[test]
fn a_failed_change_of_limits_is_no_failed_start() {
    let mut fixture = fixture();
    let units = observed(&fixture, UnitPhase::Running);
    fixture.report("web-0", InstancePhase::Running);
    fixture.declare(&[("web", VmSpec { vcpus: 2, ..vm("web", 1) })]);
    fixture.settle();
    let failures = BTreeMap::from([("web-0".to_owned(), "no limits".to_owned())]);
    let (vms, _) = report(HERE, &fixture.state, &units, &Attempts { failures, ..Attempts::default() });
    assert_eq!((vms[0].phase, vms[0].message.as_str()), (InstancePhase::Starting, "no limits"));
}

#[test]
fn what_the_cluster_knows_is_not_reported_again() {
    let mut fixture = fixture();
    let units = observed(&fixture, UnitPhase::Running);
    assert_eq!(phases(&fixture, &units), [InstancePhase::Running]);
    fixture.report("web-0", InstancePhase::Running);
    assert_eq!(phases(&fixture, &units), []);
}

/// A task that is placed here.
fn placed_task() -> Fixture {
    let mut fixture = Fixture::of_nodes(1);
    let request = crate::types::Resources { cpus: 1, memory_mib: 64, disk_mib: 0 };
    fixture.say(Command::RunTask(crate::command::TaskSpec { command: vec!["true".to_owned()], request }));
    fixture.settle();
    fixture
}

/// Lets the cluster hear what this node says of its tasks; what it said.
fn tell(fixture: &mut Fixture, observed: &Observed, attempts: &Attempts) -> Vec<TaskPhase> {
    let (_, tasks) = report(HERE, &fixture.state, observed, attempts);
    let phases = tasks.iter().map(|report| report.phase).collect();
    fixture.say(Command::Report { node: HERE, vms: vec![], tasks });
    phases
}

fn claim() -> Attempts {
    Attempts { claimed: BTreeSet::from([TaskId(1)]), ..Attempts::default() }
}

fn starts(fixture: &Fixture, observed: &Observed, attempts: &Attempts) -> bool {
    let actions = reconcile(HERE, &fixture.state, observed, attempts);
    matches!(&actions[..], [UnitAction { change: UnitChange::StartTask(_), .. }])
}

fn observed_task(phase: UnitPhase, exit: Option<Exit>) -> Observed {
    let last_exit = exit.map(|exit| ExitRecord { generation: Generation(0), exit });
    let task = ObservedTask { phase, installed: None, last_exit };
    Observed { tasks: [(TaskId(1), task)].into(), ..Observed::default() }
}

#[test]
fn a_task_is_started_only_once_the_cluster_was_told() {
    let mut fixture = placed_task();
    assert!(!starts(&fixture, &Observed::default(), &claim()));
    assert_eq!(tell(&mut fixture, &Observed::default(), &Attempts::default()), [TaskPhase::Running]);
    assert!(starts(&fixture, &Observed::default(), &claim()));
    assert!(starts(&fixture, &observed_task(UnitPhase::Inactive, None), &claim()), "a start that didn't get far");
}

#[test]
fn a_task_that_an_earlier_agent_may_have_started_is_not_started_again() {
    let mut fixture = placed_task();
    tell(&mut fixture, &Observed::default(), &Attempts::default());
    assert!(!starts(&fixture, &Observed::default(), &Attempts::default()));
    let told = tell(&mut fixture, &Observed::default(), &Attempts::default());
    assert_eq!(told, [TaskPhase::Ended(Exit::HostRestarted)]);
}

#[test]
fn a_task_is_cleared_away_when_the_cluster_knows_its_end() {
    let mut fixture = placed_task();
    tell(&mut fixture, &Observed::default(), &Attempts::default());
    let over = observed_task(UnitPhase::Inactive, Some(Exit::Exited(3)));
    assert_eq!(changes(&fixture, &over), [], "not before its end is known");
    assert_eq!(tell(&mut fixture, &over, &Attempts::default()), [TaskPhase::Ended(Exit::Exited(3))]);
    assert_eq!(changes(&fixture, &over), [UnitChange::StopTask(TaskId(1))]);
    assert!(!starts(&fixture, &Observed::default(), &claim()), "it ran once");
}
