//! What follows from the rows is what a look at all of them would find.

use super::*;

pub fn what_is_used_is_the_sum_of_what_is_placed(state: &State) {
    for node in state.nodes.keys() {
        let placed = state.instances.values().filter_map(|instance| instance.placement.as_ref());
        let instances = placed.filter(|placement| placement.node == *node).map(|placement| placement.reserved);
        let tasks = state.tasks.values().filter(|task| task.node == Some(*node) && !task.is_over());
        let parts = instances.chain(tasks.map(|task| task.spec.request));
        let sum = parts.fold(Resources::default(), |sum, part| sum.checked_add(part).expect("it fits"));
        assert_eq!(state.used(*node), sum, "{node}");
    }
}

pub fn the_scheduler_sees_whatever_is_not_as_declared(state: &State) {
    let is_seen = |(id, instance): &(&InstanceId, &Instance)| match (state.desired(id), &instance.placement) {
        (None, _) => false,
        (Some(_), None) => true,
        (Some(spec), Some(placement)) => {
            !placement.stopping && (state.is_emptied(placement.node) || !placement.is_as_declared(id, &spec))
        }
    };
    let seen: Vec<_> = state.instances.iter().filter(is_seen).map(|(id, _)| id).collect();
    assert_eq!(state.unsettled().collect::<Vec<_>>(), seen);
    let waits = |task: &Task| task.node.is_none() && !task.is_over();
    let waiting: Vec<_> = state.tasks.iter().filter(|(_, task)| waits(task)).map(|(id, _)| *id).collect();
    assert_eq!(state.waiting_tasks().collect::<Vec<_>>(), waiting);
}

pub fn the_servers_are_the_nodes_that_have_a_raft_id(state: &State) {
    let servers: Vec<_> = state.nodes.iter().filter(|(_, node)| node.raft.is_some()).collect();
    assert_eq!(state.servers().collect::<Vec<_>>(), servers);
}

/// The nodes that an entry is about.
fn nodes(fixture: &mut Fixture, decided_in: Option<Term>, command: Command) -> Vec<u64> {
    let entry = Entry { at: Timestamp(0), decided_in, request: None, command };
    fixture.index += 1;
    let outcome = fixture.state.apply(fixture.index, TERM, &entry);
    outcome.nodes.into_iter().map(|node| node.0).collect()
}

#[test]
fn an_entry_names_the_nodes_whose_placements_or_tasks_it_touches() {
    let mut fixture = Fixture::of_nodes(2);
    fixture.declare(&[("web", vm("web", 1))]);
    let place = |node| Command::Place { instance: id("web-0"), node: NodeId(node), generation: Generation(1) };
    assert_eq!(nodes(&mut fixture, Some(TERM), place(2)), [2]);
    assert_eq!(nodes(&mut fixture, Some(TERM), place(2)), [0; 0], "a stale decision");
    let unplace = Command::Unplace { instance: id("web-0"), generation: Generation(1) };
    assert_eq!(nodes(&mut fixture, Some(TERM), unplace), [2]);
    let gone = VmReport {
        instance: id("web-0"),
        generation: Generation(1),
        phase: InstancePhase::Stopped,
        restarts: 0,
        message: String::new(),
    };
    let report = Command::Report { node: NodeId(2), vms: vec![gone], tasks: vec![] };
    assert_eq!(nodes(&mut fixture, None, report), [2], "also when it is there no more");
    let request = Resources { cpus: 1, memory_mib: 1, disk_mib: 0 };
    let task = TaskSpec { command: vec!["true".to_owned()], request };
    assert_eq!(nodes(&mut fixture, None, Command::RunTask(task)), [0; 0]);
    let place = Command::PlaceTask { task: TaskId(1), node: NodeId(1) };
    assert_eq!(nodes(&mut fixture, Some(TERM), place), [1]);
    let over = crate::command::TaskReport {
        task: TaskId(1),
        phase: TaskPhase::Ended(Exit::Exited(0)),
        message: String::new(),
    };
    assert_eq!(nodes(&mut fixture, None, Command::Report { node: NodeId(1), vms: vec![], tasks: vec![over] }), [1]);
    assert_eq!(nodes(&mut fixture, None, Command::SetWorkerAlive { node: NodeId(1), alive: false }), [0; 0]);
}
