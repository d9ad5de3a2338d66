//! Whose a VM is, and what the command line may do with its own.

use proptest::prelude::*;

use super::*;

pub fn what_is_not_to_run_is_nowhere_or_going(state: &State) {
    for (id, instance) in &state.instances {
        if state.declared(id).is_some_and(|vm| !vm.running) {
            assert!(instance.placement.as_ref().is_none_or(|placement| placement.stopping), "{id}");
        }
    }
}

pub fn the_manifest_has_the_vms_of_the_head_and_no_others(state: &State) {
    let owned: BTreeMap<_, _> = state.of_manifest().map(|(name, vm)| (name.clone(), vm.value().spec)).collect();
    let head = state.head().map(|head| head.manifest.clone().expect("the head is kept whole").vms);
    assert_eq!(owned, head.unwrap_or_default());
}

pub fn only_the_command_line_changes_its_own(state: &State, before: &State, command: &Command) {
    let own = |state: &State| {
        let own = state.vms.iter().map(|(name, vm)| (name.clone(), vm.value()));
        own.filter(|(_, vm)| vm.owner == Owner::Cli).collect::<Vec<_>>()
    };
    if !matches!(command, Command::PutVm { .. } | Command::SetVmRunning { .. } | Command::RemoveVm { .. }) {
        assert_eq!(own(state), own(before), "{command:?}");
    }
}

pub fn no_instance_is_placed_off_its_volumes(state: &State, before: &State) {
    for id in before.instances.keys() {
        if let (Some(before), Some(after)) = (before.volumes_on(id), state.volumes_on(id)) {
            assert_eq!(before, after, "{id}");
        }
    }
}

pub fn step() -> impl Strategy<Value = Step> {
    let vm = 0..NAMES.len();
    let must = prop_oneof![Just(None), Just(Some(Presence::Absent)), Just(Some(Presence::Present))];
    prop_oneof![
        (vm.clone(), 1..4_usize, any::<bool>(), must).prop_map(|(vm, replicas, running, must)| Step::Put {
            vm,
            replicas,
            running,
            must
        }),
        (vm.clone(), any::<bool>()).prop_map(|(vm, running)| Step::Run { vm, running }),
        vm.prop_map(|vm| Step::Remove { vm }),
    ]
}

pub fn perform(fixture: &mut Fixture, step: &Step) {
    let name = |vm: usize| NAMES[vm].parse().expect("a name");
    fixture.say(match *step {
        Step::Put { vm, replicas, running, must } => {
            let disk_mib = if vm % 2 == 0 { 0 } else { 10 };
            let spec = VmSpec { disk_mib, ..super::vm(NAMES[vm], replicas) };
            Command::PutVm { name: name(vm), spec, running, must }
        }
        Step::Run { vm, running } => Command::SetVmRunning { name: name(vm), running },
        Step::Remove { vm } => Command::RemoveVm { name: name(vm) },
        _ => unreachable!("the others are performed elsewhere"),
    });
}

fn put(name: &str, spec: VmSpec, must: Option<Presence>) -> Command {
    Command::PutVm { name: name.parse().unwrap(), spec, running: true, must }
}

fn run(name: &str, running: bool) -> Command {
    Command::SetVmRunning { name: name.parse().unwrap(), running }
}

fn remove(name: &str) -> Command {
    Command::RemoveVm { name: name.parse().unwrap() }
}

/// Why it is refused; that this changes nothing is checked of every entry.
fn refusal(reply: &Reply) -> &str {
    let Reply::Refused(why) = reply else { panic!("it was not refused: {reply:?}") };
    why
}

#[test]
fn a_vm_of_the_command_line_runs_and_a_manifest_leaves_it_alone() {
    let mut fixture = Fixture::of_nodes(2);
    assert_eq!(fixture.say(put("web", vm("web", 2), Some(Presence::Absent))), Reply::Done);
    fixture.settle();
    let before = (fixture.placement("web-0").unwrap(), fixture.placement("web-1").unwrap());
    for vms in [&[("db", vm("db", 1))] as &[_], &[]] {
        assert!(result_of(&fixture.declare(vms)).is_some());
        fixture.settle();
        assert_eq!((fixture.placement("web-0").unwrap(), fixture.placement("web-1").unwrap()), before);
    }
    let diffs: Vec<_> = fixture.state.manifests().values().map(|head| head.diff.clone()).collect();
    assert_eq!(diffs, [["add db"], ["remove db"]], "it is in no head's diff");
}

#[test]
fn a_manifest_that_wants_what_the_command_line_has_is_refused_and_says_what_to_do() {
    let mut fixture = Fixture::of_nodes(1);
    fixture.declare(&[("wiki", vm("wiki", 1))]);
    fixture.declare(&[]);
    fixture.say(put("wiki", vm("wiki", 1), None));
    let refused = fixture.declare(&[("db", vm("db", 1)), ("wiki", vm("other", 1))]);
    assert!(refusal(&refused).contains("blixard vm rm wiki"), "{refused:?}");
    let refused = fixture.declare(&[("db", vm("wiki", 1))]);
    assert!(refusal(&refused).contains("wiki-0, which wiki has"), "{refused:?}");
    let refused = fixture.say(Command::RollBackManifest { from: "test".to_owned() });
    assert!(refusal(&refused).contains("blixard vm rm wiki"), "{refused:?}");
    // A host may carry such a manifest; to accept it is refused, and it stays held.
    assert_eq!(offer(&mut fixture, &[("wiki", vm("wiki", 1))], true, false), Some(ManifestReply::Held));
    let refused = fixture.say(Command::AcceptManifest { node: NodeId(1) });
    assert!(refusal(&refused).contains("blixard vm rm wiki"), "{refused:?}");
    assert_eq!(fixture.state.held().len(), 1);
    fixture.say(remove("wiki"));
    assert_eq!(result_of(&fixture.say(Command::AcceptManifest { node: NodeId(1) })), Some(ManifestReply::Applied));
}

#[test]
fn what_the_manifest_declares_is_refused_to_the_command_line() {
    let mut fixture = Fixture::of_nodes(1);
    fixture.declare(&[("web", vm("web", 1))]);
    for command in [put("web", vm("web", 1), None), put("web", vm("x", 1), Some(Presence::Absent)), run("web", false)] {
        let refused = fixture.say(command);
        assert!(refusal(&refused).contains("the manifest declares web"), "{refused:?}");
    }
    let refused = fixture.say(remove("web"));
    assert!(refusal(&refused).contains("the manifest declares web"), "{refused:?}");
    let refused = fixture.say(put("db", vm("web", 1), None));
    assert!(refusal(&refused).contains("is the runner of web"), "{refused:?}");
}

#[test]
fn what_has_to_be_absent_or_present_is_refused_when_it_is_not() {
    let mut fixture = Fixture::of_nodes(1);
    for command in [put("web", vm("web", 1), Some(Presence::Present)), run("web", true), remove("web")] {
        let refused = fixture.say(command);
        assert!(refusal(&refused).contains("there is no VM web"), "{refused:?}");
    }
    assert_eq!(fixture.say(put("web", vm("web", 1), Some(Presence::Absent))), Reply::Done);
    let refused = fixture.say(put("web", vm("other", 1), Some(Presence::Absent)));
    assert!(refusal(&refused).contains("there is a VM web already"), "{refused:?}");
    assert_eq!(fixture.say(put("web", vm("other", 1), Some(Presence::Present))), Reply::Done);
    assert_eq!(fixture.say(put("web", vm("web", 1), None)), Reply::Done);
}

#[test]
fn a_vm_that_no_manifest_could_have_is_refused_with_its_field() {
    let mut fixture = Fixture::of_nodes(1);
    let twice = [vm("web", 1).runners, vm("web", 1).runners].concat();
    for (spec, told) in [
        (VmSpec { vcpus: 0, ..vm("web", 1) }, "wrong at vms.web.vcpus: 0 vCPUs"),
        (vm("web", 0), "wrong at vms.web.runners"),
        (VmSpec { runners: twice, ..vm("web", 1) }, "wrong at vms.web.runners[1]"),
        (VmSpec { memory_mib: u64::MAX, ..vm("web", 1) }, "wrong at vms.web.memoryMiB"),
    ] {
        let refused = fixture.say(put("web", spec, None));
        assert!(refusal(&refused).contains(told), "{refused:?}");
    }
}

#[test]
fn a_stopped_vm_is_placed_nowhere_until_it_is_started_again() {
    let mut fixture = Fixture::of_nodes(1);
    let stopped = Command::PutVm { name: "db".parse().unwrap(), spec: vm("db", 1), running: false, must: None };
    fixture.say(stopped);
    fixture.say(put("web", vm("web", 1), None));
    fixture.settle();
    assert_eq!((fixture.node_of("db-0"), fixture.node_of("web-0")), (None, Some(1)));
    fixture.say(run("web", false));
    assert!(fixture.placement("web-0").unwrap().stopping);
    assert_eq!(schedule(&fixture.state), []);
    fixture.say(run("web", true));
    assert_eq!(schedule(&fixture.state), [], "it has to stop first");
    fixture.say(run("web", false));
    fixture.report("web-0", InstancePhase::Stopped);
    assert_eq!((fixture.node_of("web-0"), fixture.state.used(NodeId(1)).cpus), (None, 0));
    assert_eq!(schedule(&fixture.state), []);
    let place = Command::Place { instance: id("web-0"), node: NodeId(1), generation: Generation(2) };
    assert!(refusal(&fixture.decide(place)).contains("not to run"));
    fixture.say(run("web", true));
    fixture.settle();
    assert_eq!(fixture.placement("web-0").unwrap().unit.generation, Generation(2));
}

#[test]
fn a_start_of_what_runs_and_a_stop_of_what_is_stopped_change_no_row() {
    let mut fixture = Fixture::of_nodes(1);
    fixture.say(put("web", vm("web", 1), None));
    fixture.settle();
    for running in [true, false] {
        fixture.say(run("web", running));
        let entry = Entry { at: Timestamp(99), decided_in: None, request: None, command: run("web", running) };
        assert_eq!(fixture.state.apply(fixture.index + 1, TERM, &entry).changes, []);
    }
}

#[test]
fn a_replaced_vm_changes_as_little_as_one_of_a_manifest() {
    let mut fixture = Fixture::of_nodes(1);
    fixture.say(put("web", vm("web", 2), None));
    fixture.settle();
    for instance in ["web-0", "web-1"] {
        fixture.report(instance, InstancePhase::Running);
    }
    let first = fixture.placement("web-0").unwrap();
    fixture.say(put("web", VmSpec { vcpus: 2, ..vm("web", 1) }, Some(Presence::Present)));
    assert!(fixture.placement("web-1").unwrap().stopping, "the replica that is no more");
    fixture.settle();
    let second = fixture.placement("web-0").unwrap();
    assert_eq!((second.unit.cpus, &second.unit.runner), (2, &first.unit.runner), "in place");
    fixture.report("web-1", InstancePhase::Stopped);
    fixture.say(remove("web"));
    fixture.report("web-0", InstancePhase::Stopped);
    assert!(fixture.state.instances().is_empty() && fixture.state.vms.is_empty());
}

#[test]
fn a_vm_whose_name_begins_with_anothers_is_another() {
    let mut fixture = Fixture::of_nodes(2);
    for name in ["we", "web", "web-0", "web-00", "weba"] {
        fixture.say(put(name, VmSpec { vcpus: 1, memory_mib: 100, ..vm(name, 1) }, None));
    }
    fixture.settle();
    let entry = Entry { at: Timestamp(99), decided_in: None, request: None, command: remove("web") };
    let changes = fixture.state.apply(fixture.index + 1, TERM, &entry).changes;
    let rows = changes.iter().filter(|change| change.table != Table::Events);
    let touched: Vec<_> = rows.map(|change| (change.table, &*change.key)).collect();
    assert_eq!(touched, [(Table::Vms, &b"web"[..]), (Table::Placements, b"web-0")]);
}

#[test]
fn there_are_never_more_vms_than_the_most_and_those_that_are_there_may_be_replaced() {
    let mut state = Fixture::of_nodes(1).state;
    let mut say = |command| {
        let entry = Entry { at: Timestamp(99), decided_in: None, request: None, command };
        state.apply(100, TERM, &entry).answer.reply
    };
    for number in 0..MAX_VMS {
        let name = format!("vm{number}");
        assert_eq!(say(put(&name, vm(&name, 1), None)), Reply::Done);
    }
    let Reply::Refused(why) = say(put("more", vm("more", 1), None)) else { panic!("one more than the most") };
    assert!(why.contains("which is the most"), "{why}");
    assert_eq!(say(put("vm7", VmSpec { vcpus: 3, ..vm("vm7", 1) }, None)), Reply::Done);
}

#[test]
fn the_first_fields_of_a_vm_are_those_that_most_questions_are_about() {
    let mut fixture = Fixture::of_nodes(1);
    fixture.declare(&[("web", vm("web", 2))]);
    let put = |running| Command::PutVm { name: "db".parse().unwrap(), spec: vm("db", 1), running, must: None };
    for running in [true, false] {
        fixture.say(put(running));
        for name in ["web", "db"] {
            let name = name.parse().expect("a name");
            let (head, vm) = (fixture.state.vm_head(&name).unwrap(), fixture.state.vm(&name).unwrap());
            let runners: Vec<_> = vm.spec.runners.iter().map(StorePath::as_str).collect();
            assert_eq!((head.owner, head.running, head.runners), (vm.owner, vm.running, runners));
        }
    }
}

#[test]
fn an_instance_has_a_row_once_it_was_placed() {
    let mut fixture = Fixture::of_nodes(1);
    let rows = |fixture: &Fixture| fixture.rows.keys().filter(|(table, _)| *table == Table::Placements).count();
    fixture.declare(&[("web", vm("web", 2))]);
    assert_eq!((rows(&fixture), fixture.state.instances().len()), (0, 2));
    fixture.settle();
    assert_eq!(rows(&fixture), 2);
    // A generation that was given must not be given again, though it is another instance.
    fixture.declare(&[]);
    fixture.report("web-0", InstancePhase::Stopped);
    fixture.report("web-1", InstancePhase::Stopped);
    assert_eq!(rows(&fixture), 0);
    fixture.declare(&[("web", vm("web", 1))]);
    assert_eq!(rows(&fixture), 1);
}
