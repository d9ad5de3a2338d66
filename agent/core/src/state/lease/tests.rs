use super::super::Beginner;
use super::super::tests::{BOOT, Fixture, NEXT_BOOT, id, is_refused, register, vm, worker};
use super::*;
use crate::command::{Command, InstancePhase, TaskSpec, Worker};
use crate::types::{Availability, Exit, NodeRole, RaftId, Resources, RestartPolicy, TaskId};

fn manual(name: &str) -> VmSpec {
    VmSpec { failover: Failover::Manual, ..vm(name, 1) }
}

/// Three servers, with these VMs running.
fn running(vms: &[(&str, VmSpec)]) -> Fixture {
    let mut fixture = Fixture::of_nodes(3);
    fixture.declare(vms);
    fixture.run();
    fixture
}

fn silence(fixture: &mut Fixture, node: u64) {
    fixture.decide(Command::SetWorkerAlive { node: NodeId(node), alive: false });
}

fn fence(fixture: &mut Fixture, node: u64, epoch: u64) -> Reply {
    fixture.decide(Command::Fence { node: NodeId(node), epoch: NodeEpoch(epoch) })
}

fn confirm_dead(fixture: &mut Fixture, node: u64) -> Reply {
    fixture.say(Command::ConfirmDead { node: NodeId(node), abandon_volumes: false })
}

fn failover_of(fixture: &Fixture, instance: &str) -> Failover {
    fixture.placement(instance).expect("it is placed").unit.failover
}

#[test]
fn what_a_fenced_node_ran_starts_elsewhere_except_what_is_manual() {
    let mut fixture = running(&[("a", vm("a", 1)), ("b", manual("b")), ("c", vm("c", 1))]);
    assert_eq!(["a-0", "b-0", "c-0"].map(|id| fixture.node_of(id)), [1, 2, 3].map(Some));
    for (node, instance) in [(1, "a-0"), (2, "b-0")] {
        silence(&mut fixture, node);
        fixture.settle();
        assert_eq!(fixture.node_of(instance), Some(node), "that it is silent proves nothing");
        assert_eq!(fence(&mut fixture, node, 1), Reply::Done);
        fixture.settle();
    }
    assert_eq!(["a-0", "b-0", "c-0"].map(|id| fixture.node_of(id)), [3, 2, 3].map(Some));
    assert_eq!(fixture.placement("a-0").unwrap().unit.generation.0, 3, "it was taken over twice");
}

#[test]
fn an_epoch_ends_once_and_no_other_is_ended_by_what_was_decided_of_it() {
    let mut fixture = running(&[("a", vm("a", 1))]);
    is_refused(&fence(&mut fixture, 1, 0), &["node1", "epoch 0"]);
    is_refused(&fence(&mut fixture, 1, 2), &["node1", "epoch 2"]);
    fixture.arm(1);
    fixture.run();
    is_refused(&fence(&mut fixture, 1, 1), &["node1", "epoch 1"]);
    assert_eq!(fence(&mut fixture, 1, 2), Reply::Done);
    is_refused(&fence(&mut fixture, 1, 2), &["not armed"]);
    let forwarded = fixture.say(Command::Fence { node: NodeId(2), epoch: NodeEpoch(1) });
    is_refused(&forwarded, &["decision"]);
}

#[test]
fn an_arming_that_comes_again_changes_nothing_and_is_done() {
    let mut fixture = running(&[("a", vm("a", 1))]);
    let lease = fixture.state.nodes()[&NodeId(1)].lease;
    let again = |nonce| Command::Arm { node: NodeId(1), expected: NodeEpoch(0), nonce, machine: None };
    let before = fixture.state.nodes().clone();
    assert_eq!((fixture.say(again(lease.arming().unwrap().nonce)), lease.epoch), (Reply::Done, NodeEpoch(1)));
    assert_eq!((fixture.state.nodes(), fixture.node_of("a-0").is_some()), (&before, true));
    is_refused(&fixture.say(again(Nonce([1; 16]))), &["stale"]);
}

#[test]
fn a_node_that_arms_anew_runs_nothing_automatic_of_before_and_all_that_is_manual() {
    let mut fixture = running(&[("a", vm("a", 1)), ("b", manual("b"))]);
    let stale = Command::Arm { node: NodeId(1), expected: NodeEpoch(1), nonce: Nonce([1; 16]), machine: None };
    assert_eq!([1, 2].map(|node| fixture.arm(node)), [Reply::Done, Reply::Done]);
    assert_eq!((fixture.node_of("a-0"), fixture.node_of("b-0")), (None, Some(2)));
    fixture.run();
    let before = fixture.placement("a-0").unwrap();
    assert_eq!((before.unit.generation.0, before.epoch), (2, NodeEpoch(2)));
    is_refused(&fixture.say(stale), &["node1 is at epoch 2", "after 1"]);
    assert_eq!(fixture.placement("a-0"), Some(before), "one that was on its way for long changes nothing");
}

#[test]
fn a_host_that_has_booted_has_no_lease_and_what_it_ran_is_not_freed_by_that() {
    let mut fixture = running(&[("a", vm("a", 1)), ("b", vm("b", 1)), ("c", vm("c", 1))]);
    fixture.start_agent(1, BOOT);
    assert!(
        fixture.state.nodes()[&NodeId(1)].lease.arming().is_some(),
        "its agent has started again, and not its host"
    );
    for node in [1, 2] {
        fixture.start_agent(node, NEXT_BOOT);
    }
    fixture.declare(&[
        ("a", VmSpec { vcpus: 2, ..vm("a", 1) }),
        ("b", vm("b", 1)),
        ("c", vm("c", 1)),
        ("d", vm("d", 2)),
    ]);
    fixture.settle();
    let nodes = ["a-0", "b-0", "d-0", "d-1"].map(|id| fixture.node_of(id));
    assert_eq!(nodes, [Some(1), Some(2), Some(3), Some(3)]);
    assert_eq!(fixture.placement("a-0").unwrap().unit.generation.0, 1, "nothing of it changes now");
    let place = Command::Place { instance: id("a-0"), node: NodeId(1), generation: crate::types::Generation(2) };
    is_refused(&fixture.decide(place), &["node1", "not armed"]);
    let go = Command::Move { instance: id("c-0"), to: NodeId(1), abandon_volumes: false };
    is_refused(&fixture.say(go.clone()), &["node1 has no lease", "c-0", "blixard status"]);
    assert_eq!(fixture.arm(1), Reply::Done);
    assert_eq!(fixture.say(go), Reply::Done);
    assert_eq!(fence(&mut fixture, 2, 1), Reply::Done, "one that doesn't arm is fenced like any other");
    assert_eq!(["a-0", "b-0"].map(|id| fixture.node_of(id)), [None; 2]);
    fixture.settle();
    assert_eq!(["a-0", "b-0"].map(|id| fixture.node_of(id)), [Some(1); 2]);
}

#[test]
fn nothing_automatic_is_placed_where_no_fence_is_armed() {
    let mut fixture = Fixture::of_nodes(3);
    for node in 1..=3 {
        fence(&mut fixture, node, 1);
    }
    fixture.declare(&[("a", vm("a", 1)), ("b", manual("b"))]);
    fixture.settle();
    assert_eq!((fixture.node_of("a-0"), fixture.node_of("b-0").is_some()), (None, true));
    let place = Command::Place { instance: id("a-0"), node: NodeId(1), generation: crate::types::Generation(1) };
    is_refused(&fixture.decide(place), &["node1", "not armed"]);
    fixture.arm(2);
    fixture.settle();
    assert_eq!(fixture.node_of("a-0"), Some(2));
}

#[test]
fn it_is_manual_by_its_declaration_its_volumes_with_few_servers_or_without_any_fence() {
    let mut fixture = running(&[("a", vm("a", 1)), ("b", manual("b")), ("c", VmSpec { disk_mib: 9, ..vm("c", 1) })]);
    let found = ["a-0", "b-0", "c-0"].map(|instance| failover_of(&fixture, instance));
    assert_eq!(found, [Failover::Automatic, Failover::Manual, Failover::Manual]);
    let because = |fixture: &Fixture, name: &str| {
        fixture.state.manual_because(&fixture.state.vm(&name.parse().unwrap()).unwrap().spec)
    };
    let found = ["a", "b", "c"].map(|name| because(&fixture, name));
    assert_eq!(found, [None, Some(ManualBecause::Declared), Some(ManualBecause::LocalState)]);
    fixture = Fixture::of_nodes(2);
    fixture.join(3, NodeRole::Worker);
    fixture.declare(&[("a", vm("a", 1))]);
    fixture.settle();
    assert_eq!(failover_of(&fixture, "a-0"), Failover::Manual);
    assert_eq!(because(&fixture, "a"), Some(ManualBecause::FewServers { servers: 2 }));
    assert_eq!(fixture.join(4, NodeRole::Auto), Some(RaftId(3)));
    assert_eq!(because(&fixture, "a"), None);
    fixture.remove_server(RaftId(3));
    assert_eq!(because(&fixture, "a"), None, "it is to be a server, or another one");
    fixture.say(Command::RemoveNode { node: NodeId(4), dead: false, abandon_volumes: false });
    assert_eq!(because(&fixture, "a"), Some(ManualBecause::FewServers { servers: 2 }));
    let mut fixture = Fixture::of_nodes(3);
    for node in 1..=3 {
        assert_eq!(fixture.state.manual_because(&vm("a", 1)), None);
        fixture.say(register(node, Worker { no_fence: Some("it has none".to_owned()), ..worker() }));
    }
    assert_eq!(fixture.state.manual_because(&vm("a", 1)), Some(ManualBecause::NoFence));
}

#[test]
fn a_policy_changes_only_when_the_instance_is_placed_anew() {
    let mut fixture = running(&[("a", manual("a"))]);
    let other = VmSpec { vcpus: 2, ..vm("a", 1) };
    fixture.declare(&[("a", vm("a", 1))]);
    fixture.settle();
    assert_eq!(fixture.placement("a-0").unwrap().unit.generation.0, 1, "nothing is to be done");
    fixture.declare(&[("a", other)]);
    fixture.run();
    assert_eq!(fixture.placement("a-0").unwrap().unit.generation.0, 2);
    assert_eq!(failover_of(&fixture, "a-0"), Failover::Manual, "it runs on in its place");
    silence(&mut fixture, 1);
    fence(&mut fixture, 1, 1);
    fixture.settle();
    assert_eq!(fixture.node_of("a-0"), Some(1), "so its node has to be back");
    fixture.decide(Command::SetWorkerAlive { node: NodeId(1), alive: true });
    fixture.arm(1);
    fixture.say(Command::Move { instance: id("a-0"), to: NodeId(2), abandon_volumes: false });
    fixture.report("a-0", InstancePhase::Stopped);
    fixture.settle();
    assert_eq!((fixture.node_of("a-0"), failover_of(&fixture, "a-0")), (Some(2), Failover::Automatic));
}

#[test]
fn a_person_who_says_that_a_silent_node_is_dead_frees_all_that_it_ran() {
    let with_volume = VmSpec { disk_mib: 9, ..vm("c", 1) };
    let mut fixture = running(&[("a", manual("a")), ("b", vm("b", 1)), ("c", with_volume)]);
    let request = Resources { cpus: 1, memory_mib: 1, disk_mib: 0 };
    fixture.say(Command::RunTask(TaskSpec { command: vec!["true".to_owned()], request }));
    fixture.settle();
    let lost = fixture.node_of("a-0").unwrap();
    is_refused(&confirm_dead(&mut fixture, lost), &["node1 answers"]);
    is_refused(&confirm_dead(&mut fixture, 9), &["not a member"]);
    for node in [lost, fixture.node_of("c-0").unwrap()] {
        silence(&mut fixture, node);
        assert_eq!(confirm_dead(&mut fixture, node), Reply::Done);
        assert_eq!(fixture.state.nodes()[&NodeId(node)].lease.standing, Standing::Gone);
    }
    fixture.settle();
    assert_eq!(["a-0", "b-0", "c-0"].map(|id| fixture.node_of(id)), [Some(2), Some(2), None], "volumes stay");
    assert!(fixture.state.tasks()[&TaskId(1)].is_over());
    fixture.say(Command::ConfirmDead { node: NodeId(3), abandon_volumes: true });
    fixture.settle();
    assert_eq!(fixture.node_of("c-0"), Some(2));
}

#[test]
fn of_a_cluster_that_began_anew_nobody_is_confirmed_dead_but_removed() {
    let mut fixture = running(&[("a", vm("a", 1))]);
    fixture.begin_epoch(Beginner::Survivor(NodeId(2))).unwrap();
    is_refused(&confirm_dead(&mut fixture, 1), &["node1", "node remove node1 --dead"]);
    let standings = fixture.state.nodes().values().map(|node| node.lease.standing);
    assert!(standings.into_iter().all(|standing| standing == Standing::Unarmed));
}

#[test]
fn what_has_ended_for_good_is_not_run_again_because_its_node_is_lost() {
    let once = VmSpec { restart: RestartPolicy::Never, ..vm("a", 1) };
    let mut fixture = running(&[("a", once)]);
    fixture.report("a-0", InstancePhase::Ended(Exit::Exited(0)));
    silence(&mut fixture, 1);
    fence(&mut fixture, 1, 1);
    fixture.settle();
    assert_eq!(fixture.node_of("a-0"), Some(1));
    fixture.arm(1);
    fixture.settle();
    assert_eq!(fixture.placement("a-0").unwrap().unit.generation.0, 1);
}

/// What is done about an instance, and where it is then.
type Done<'a> = (&'a dyn Fn(&mut Fixture) -> Reply, Option<u64>);

#[test]
fn what_has_ended_in_an_epoch_that_is_over_is_stopped_moved_and_changed_without_its_nodes_word() {
    let once = |name| VmSpec { restart: RestartPolicy::Never, ..vm(name, 1) };
    let (node, instance) = (NodeId(1), id("a-0"));
    let (dead, abandon_volumes) = (false, false);
    let drain = Command::SetAvailability { node, availability: Availability::Draining, abandon_volumes };
    let leave = Command::RemoveNode { node, dead, abandon_volumes };
    let go = Command::Move { instance, to: NodeId(3), abandon_volumes };
    let say = |command: Command| move |fixture: &mut Fixture| fixture.say(command.clone());
    for is_armed in [true, false] {
        let done: [Done<'_>; 5] = [
            (&|fixture| fixture.declare(&[]), None),
            (&|fixture| fixture.declare(&[("a", once("other"))]), Some(if is_armed { 1 } else { 2 })),
            (&say(go.clone()), Some(3)),
            (&say(drain.clone()), Some(2)),
            (&say(leave.clone()), Some(2)),
        ];
        for (done, is_at) in done {
            let mut fixture = running(&[("a", once("a"))]);
            fixture.report("a-0", InstancePhase::Ended(Exit::Exited(0)));
            fence(&mut fixture, 1, 1);
            if is_armed {
                fixture.arm(1);
            }
            fixture.settle();
            assert_eq!(fixture.placement("a-0").unwrap().unit.generation.0, 1, "it isn't run again");
            let reply = done(&mut fixture);
            assert!(!matches!(reply, Reply::Refused(_)), "{reply:?}");
            fixture.settle();
            assert_eq!(fixture.node_of("a-0"), is_at);
            assert_eq!(fixture.state.held_by(NodeId(1)), usize::from(is_at == Some(1)));
        }
    }
}

#[test]
fn a_frozen_takeover_frees_nothing_until_a_person_or_the_nodes_return_resume_it() {
    let mut fixture = running(&[("a", vm("a", 1))]);
    is_refused(&fixture.say(Command::ResumeTakeover), &["not frozen"]);
    fixture.decide(Command::SetTakeover { is_frozen: true });
    let frozen = fixture.state.takeover();
    assert!(matches!(frozen, Takeover::Frozen { .. }));
    is_refused(&fence(&mut fixture, 1, 1), &["frozen", "blixard cluster resume"]);
    assert_eq!(fixture.say(Command::ResumeTakeover), Reply::Done);
    fixture.decide(Command::SetTakeover { is_frozen: true });
    assert_eq!(fixture.state.takeover(), Takeover::Resumed, "a person has decided that");
    assert_eq!(fence(&mut fixture, 1, 1), Reply::Done);
    fixture.decide(Command::SetTakeover { is_frozen: false });
    assert_eq!(fixture.state.takeover(), Takeover::Free);
}
