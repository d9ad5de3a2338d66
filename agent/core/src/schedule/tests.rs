use proptest::prelude::*;

use super::*;
use crate::command::{TaskSpec, Worker};
use crate::state::tests::{Fixture, id, register, vm, worker};
use crate::types::{Failover, Labels, Priority, TaskId};

fn give(fixture: &mut Fixture, node: u64, change: impl FnOnce(&mut Worker)) {
    let mut offered = worker();
    change(&mut offered);
    fixture.say(register(node, offered));
}

fn obstacles(fixture: &Fixture, instance: &str) -> Vec<String> {
    let spec = fixture.state.desired(&id(instance)).expect("it is declared");
    let texts =
        Rooms::new(&fixture.state).explain(&fixture.state, &id(instance), &spec).into_iter().map(|(node, obstacle)| {
            match obstacle {
                Some(obstacle) => format!("{node}: {obstacle}"),
                None => format!("{node}: will do"),
            }
        });
    texts.collect()
}

#[test]
fn replicas_are_spread() {
    let mut fixture = Fixture::of_nodes(3);
    fixture.declare(&[("web", vm("web", 6))]);
    fixture.settle();
    let mut nodes: Vec<_> = (0..6).filter_map(|replica| fixture.node_of(&format!("web-{replica}"))).collect();
    nodes.sort_unstable();
    assert_eq!(nodes, [1, 1, 2, 2, 3, 3]);
}

#[test]
fn a_node_gets_no_more_than_it_has() {
    let mut fixture = Fixture::of_nodes(1);
    fixture.declare(&[("web", vm("web", 5))]);
    fixture.settle();
    assert_eq!((0..5).filter(|replica| fixture.node_of(&format!("web-{replica}")).is_some()).count(), 4);
    assert_eq!(obstacles(&fixture, "web-4"), ["1: 0 of 4096 MiB memory free, needs 1024 MiB"]);
}

#[test]
fn a_pending_instance_is_placed_once_there_is_room() {
    let mut fixture = Fixture::of_nodes(1);
    fixture.declare(&[("web", vm("web", 5))]);
    fixture.settle();
    give(&mut fixture, 1, |worker| worker.resources.memory_mib = 8192);
    fixture.settle();
    assert_eq!(fixture.node_of("web-4"), None);
    assert_eq!(obstacles(&fixture, "web-4"), ["1: 0 of 4 CPUs free, needs 1"]);
    give(&mut fixture, 1, |worker| worker.resources = Resources { cpus: 5, memory_mib: 8192, disk_mib: 0 });
    fixture.settle();
    assert_eq!(fixture.node_of("web-4"), Some(1));
}

#[test]
fn the_highest_priority_is_placed_first_then_the_first_name() {
    let mut fixture = Fixture::of_nodes(1);
    let of = |name, priority| VmSpec { priority: Priority::try_from(priority).unwrap(), vcpus: 2, ..vm(name, 1) };
    fixture.declare(&[("a", of("a", 499)), ("b", of("b", 500)), ("c", of("c", 501)), ("d", of("d", 500))]);
    fixture.settle();
    let placed = |name: &str| fixture.node_of(&format!("{name}-0")).is_some();
    assert_eq!(["a", "b", "c", "d"].map(placed), [false, true, true, false]);
}

#[test]
fn another_priority_or_failover_leaves_what_runs_as_it_is() {
    let mut fixture = Fixture::of_nodes(1);
    fixture.declare(&[("web", VmSpec { vcpus: 4, ..vm("web", 1) }), ("db", vm("db", 1))]);
    fixture.settle();
    let before = fixture.placement("db-0");
    assert!(before.is_some(), "it fits beside nothing else, and comes first by its name");
    let declared = VmSpec { priority: Priority::try_from(0).unwrap(), failover: Failover::Manual, ..vm("db", 1) };
    fixture.declare(&[("web", VmSpec { vcpus: 4, priority: Priority::MAX, ..vm("web", 1) }), ("db", declared)]);
    fixture.settle();
    assert_eq!((fixture.placement("db-0"), fixture.node_of("web-0")), (before, None));
}

#[test]
fn each_obstacle_is_named_with_what_is_there_and_what_is_needed() {
    let mut fixture = Fixture::of_nodes(7);
    give(&mut fixture, 1, |worker| worker.system = "aarch64-linux".to_owned());
    give(&mut fixture, 2, |worker| worker.kvm = false);
    give(&mut fixture, 3, |worker| {
        worker.kvm = true;
        worker.hypervisors.clear();
    });
    for node in 4..=7 {
        give(&mut fixture, node, |worker| {
            worker.kvm = true;
            let zone = if node == 4 { "b" } else { "a" };
            if node != 5 {
                worker.labels.insert("zone".to_owned(), zone.to_owned());
            }
            if node == 7 {
                worker.resources.disk_mib = 9;
            }
        });
    }
    fixture.decide(Command::SetWorkerAlive { node: NodeId(6), alive: false });
    let picky = VmSpec {
        kvm: true,
        disk_mib: 10,
        requires: Labels::from_iter([("zone".to_owned(), "a".to_owned())]),
        ..vm("web", 1)
    };
    fixture.declare(&[("web", picky)]);
    fixture.settle();
    assert_eq!(
        obstacles(&fixture, "web-0"),
        [
            "1: is aarch64-linux, needs x86_64-linux",
            "2: has no /dev/kvm",
            "3: does not run qemu",
            "4: label zone is \"b\", needs \"a\"",
            "5: has no label zone, needs \"a\"",
            "6: does not answer",
            "7: 9 of 9 MiB disk free, needs 10 MiB",
        ]
    );
}

#[test]
fn what_runs_on_a_silent_node_stays_placed_there() {
    let mut fixture = Fixture::of_nodes(2);
    fixture.declare(&[("web", vm("web", 2))]);
    fixture.settle();
    fixture.decide(Command::SetWorkerAlive { node: NodeId(2), alive: false });
    fixture.declare(&[("web", VmSpec { vcpus: 2, ..vm("web", 2) })]);
    fixture.settle();
    assert_eq!((fixture.node_of("web-0"), fixture.node_of("web-1")), (Some(1), Some(2)));
}

#[test]
fn another_runner_restarts_and_other_limits_do_not() {
    let mut fixture = Fixture::of_nodes(2);
    fixture.declare(&[("web", vm("web", 1)), ("db", vm("db", 1))]);
    fixture.settle();
    let placement = fixture.placement("web-0").unwrap();
    let changed = |spec: &VmSpec| Rooms::new(&fixture.state).change(&fixture.state, &id("web-0"), &placement, spec);
    assert_eq!(changed(&vm("web", 1)), None);
    assert_eq!(changed(&vm("other", 1)), Some(Change::Restart));
    assert_eq!(changed(&VmSpec { vcpus: 2, ..vm("web", 1) }), Some(Change::InPlace));
    assert!(matches!(changed(&VmSpec { vcpus: 5, ..vm("web", 1) }), Some(Change::Move(Obstacle::Cpus { .. }))));
    assert!(matches!(changed(&VmSpec { kvm: true, ..vm("web", 1) }), Some(Change::Move(Obstacle::NoKvm))));
}

#[test]
fn a_changed_vm_leaves_the_others_alone() {
    let mut fixture = Fixture::of_nodes(2);
    fixture.declare(&[("web", vm("web", 1)), ("db", vm("db", 1))]);
    fixture.settle();
    let before = fixture.placement("db-0");
    fixture.declare(&[("web", vm("other", 1)), ("db", vm("db", 1))]);
    fixture.settle();
    assert_eq!(fixture.placement("db-0"), before);
    assert_eq!(fixture.placement("web-0").unwrap().unit.generation, Generation(2));
}

#[test]
fn a_vm_that_outgrows_its_node_moves_after_it_has_stopped() {
    let mut fixture = Fixture::of_nodes(2);
    give(&mut fixture, 2, |worker| worker.resources.cpus = 8);
    give(&mut fixture, 1, |worker| worker.resources.memory_mib = 65536);
    fixture.declare(&[("web", vm("web", 1))]);
    fixture.settle();
    assert_eq!(fixture.node_of("web-0"), Some(1));
    fixture.declare(&[("web", VmSpec { vcpus: 6, ..vm("web", 1) })]);
    fixture.settle();
    assert_eq!(fixture.node_of("web-0"), Some(1));
    assert!(fixture.placement("web-0").unwrap().stopping);
    fixture.report("web-0", crate::command::InstancePhase::Stopped);
    fixture.settle();
    assert_eq!(fixture.node_of("web-0"), Some(2));
}

#[test]
fn a_vm_with_a_volume_stays_where_its_volume_is() {
    let mut fixture = Fixture::of_nodes(2);
    give(&mut fixture, 2, |worker| worker.resources.cpus = 8);
    give(&mut fixture, 1, |worker| worker.resources.memory_mib = 65536);
    let with_volume = VmSpec { disk_mib: 10, ..vm("web", 1) };
    fixture.declare(&[("web", with_volume.clone())]);
    fixture.settle();
    assert_eq!(fixture.node_of("web-0"), Some(1));
    let grown = VmSpec { vcpus: 6, ..with_volume };
    let before = fixture.placement("web-0").unwrap();
    assert!(matches!(
        Rooms::new(&fixture.state).change(&fixture.state, &id("web-0"), &before, &grown),
        Some(Change::Held(Obstacle::Cpus { .. }))
    ));
    fixture.declare(&[("web", grown)]);
    fixture.settle();
    assert_eq!(fixture.placement("web-0"), Some(before));
}

#[test]
fn a_vm_with_a_volume_that_was_stopped_starts_where_its_volume_is_or_waits() {
    let mut fixture = Fixture::of_nodes(2);
    let name = || "web".parse().unwrap();
    let spec = VmSpec { vcpus: 3, disk_mib: 10, ..vm("web", 1) };
    let run = |running| Command::SetVmRunning { name: name(), running };
    fixture.say(Command::PutVm { name: name(), spec: spec.clone(), running: true, must: None });
    fixture.settle();
    assert_eq!(fixture.node_of("web-0"), Some(1));
    fixture.say(run(false));
    fixture.report("web-0", crate::command::InstancePhase::Stopped);
    fixture.declare(&[("db", VmSpec { vcpus: 2, ..vm("db", 1) })]);
    fixture.settle();
    assert_eq!(fixture.node_of("db-0"), Some(1));
    fixture.say(run(true));
    fixture.settle();
    assert_eq!(fixture.node_of("web-0"), None);
    assert_eq!(obstacles(&fixture, "web-0"), ["1: 2 of 4 CPUs free, needs 3", "2: its volumes are on node1"]);
    let elsewhere = Command::Place { instance: id("web-0"), node: NodeId(2), generation: Generation(2) };
    assert!(matches!(fixture.decide(elsewhere), crate::command::Reply::Refused(why) if why.contains("volumes")));
    fixture.declare(&[]);
    fixture.report("db-0", crate::command::InstancePhase::Stopped);
    fixture.settle();
    assert_eq!(fixture.node_of("web-0"), Some(1));
}

#[test]
fn two_that_grow_on_one_node_do_not_get_the_same_room() {
    let mut fixture = Fixture::of_nodes(1);
    fixture.declare(&[("web", vm("web", 2))]);
    fixture.settle();
    fixture.declare(&[("web", VmSpec { vcpus: 3, ..vm("web", 2) })]);
    fixture.settle();
    let stopping = |instance| fixture.placement(instance).unwrap().stopping;
    assert_eq!((stopping("web-0"), stopping("web-1")), (false, true));
}

#[test]
fn what_does_not_grow_changes_even_on_a_node_that_has_shrunk() {
    let mut fixture = Fixture::of_nodes(1);
    fixture.declare(&[("web", vm("web", 2))]);
    fixture.settle();
    give(&mut fixture, 1, |worker| worker.resources.cpus = 1);
    fixture.declare(&[("web", vm("other", 2))]);
    fixture.settle();
    let runner = fixture.placement("web-1").unwrap().unit.runner;
    assert_eq!(Some(&runner), vm("other", 2).runners.last());
}

#[test]
fn a_task_is_placed_where_there_is_room_for_it() {
    let mut fixture = Fixture::of_nodes(2);
    give(&mut fixture, 2, |worker| worker.resources.cpus = 8);
    let request = Resources { cpus: 6, memory_mib: 64, disk_mib: 0 };
    fixture.say(Command::RunTask(TaskSpec { command: vec!["true".to_owned()], request }));
    fixture.settle();
    assert_eq!(fixture.state.tasks()[&TaskId(1)].node, Some(NodeId(2)));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn nothing_waits_while_a_node_would_do(vcpus in prop::collection::vec(1..6_u32, 1..8), nodes in 1..5_u64) {
        let mut fixture = Fixture::of_nodes(nodes);
        let names: Vec<String> = (0..vcpus.len()).map(|n| format!("vm{n}")).collect();
        let specs: Vec<_> = names.iter().zip(&vcpus).map(|(name, vcpus)| {
            (name.as_str(), VmSpec { vcpus: *vcpus, ..vm(name, 1) })
        }).collect();
        fixture.declare(&specs);
        prop_assert_eq!(schedule(&fixture.state), schedule(&fixture.state.clone()));
        fixture.settle();
        for (name, spec) in &specs {
            let instance = format!("{name}-0");
            let waits = fixture.node_of(&instance).is_none();
            let possible = Rooms::new(&fixture.state).explain(&fixture.state, &id(&instance), spec).iter().any(|(_, obstacle)| obstacle.is_none());
            prop_assert!(!(waits && possible), "{} waits though a node would do", name);
        }
    }
}
