use proptest::prelude::*;

use super::super::tests::{Fixture, id, joiner, manifest, register, vm, worker};
use super::super::*;
use super::*;
use crate::command::{InstancePhase, VmReport, Worker};
use crate::manifest::VmSpec;
use crate::types::{Exit, Failover, Labels, NodeEpoch};

/// An invariant, after every entry: what it has changed of placements and nodes is told, once and in order, and nothing else.
pub fn what_an_entry_changes_is_told(state: &State, before: &State, index: u64) {
    let newest = before.events.kept.keys().next_back().copied().unwrap_or_default();
    let told: Vec<_> = state.events_after(newest).collect();
    for (place, (number, event)) in told.iter().enumerate() {
        assert_eq!((*number, event.index), (newest + 1 + place as u64, index), "{event:?}");
    }
    let is_told = |instance: &InstanceId, which: fn(&OfInstance) -> bool| {
        let of = told.iter().filter(|(_, event)| event.instance() == Some(instance));
        of.filter(|(_, event)| matches!(&event.what, Happening::Instance { what, .. } if which(what))).count()
    };
    let placement = |state: &State, id: &InstanceId| state.instances.get(id).and_then(|all| all.placement.clone());
    for id in state.instances.keys().chain(before.instances.keys()) {
        let (was, is) = (placement(before, id), placement(state, id));
        let generation = |placement: &Option<Box<Placement>>| placement.as_ref().map(|at| at.unit.generation);
        let stops = |placement: &Option<Box<Placement>>| placement.as_ref().is_some_and(|at| at.stopping);
        let (begins, ends) = (is.is_some() && generation(&was) != generation(&is), was.is_some() && is.is_none());
        let departs = |what: &OfInstance| matches!(what, OfInstance::Stopped | OfInstance::Lost(_));
        assert_eq!(is_told(id, |what| matches!(what, OfInstance::Placed { .. })), usize::from(begins), "{id}");
        assert_eq!(is_told(id, departs), usize::from(ends), "{id}");
        let stopping = is_told(id, |what| matches!(what, OfInstance::Stopping(_)));
        assert_eq!(stopping, usize::from(!stops(&was) && stops(&is)), "{id}");
    }
    let names = |state: &State| state.nodes.values().map(|node| node.name.clone()).collect::<BTreeSet<_>>();
    for name in names(state).union(&names(before)) {
        let of = |state: &State| {
            let (id, node) = state.node_named(name)?;
            let alive = state.worker_status(id).is_some_and(|status| status.alive);
            let is_away = state.absent().get(&id) == Some(&Absence::Away);
            // In which boot it is first said is no news.
            let boot = before.node_named(name).and_then(|(_, node)| node.boot).and(node.boot);
            Some((id, alive, is_away, node.availability, node.leaving, node.lease, node.raft.is_some(), boot))
        };
        let is_changed = of(state) != of(before);
        let is_told = told.iter().any(|(_, event)| {
            event.node() == Some(name) && matches!(event.what, Happening::Node { .. }) && event.kind() != "held"
        });
        assert_eq!(is_told, is_changed, "{name}: {:?} → {:?}, {told:?}", of(before), of(state));
    }
}

/// What was told behind this event, a line each: what, of whom, why.
fn lines(fixture: &Fixture, after: u64) -> Vec<String> {
    let line = |(_, event): (_, Event)| {
        let (instance, node) = (event.instance().map(ToString::to_string), event.node().map(ToString::to_string));
        let words = [Some(event.kind().to_owned()), instance, node, Some(event.reason())];
        words.into_iter().flatten().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
    };
    fixture.state.events_after(after).map(line).collect()
}

fn newest(fixture: &Fixture) -> u64 {
    fixture.state.events.numbers().last().unwrap_or_default()
}

/// What is told of what is done.
fn told(fixture: &mut Fixture, done: impl FnOnce(&mut Fixture)) -> Vec<String> {
    let before = newest(fixture);
    done(fixture);
    lines(fixture, before)
}

fn silence(fixture: &mut Fixture, node: u64) {
    fixture.decide(Command::SetWorkerAlive { node: NodeId(node), alive: false });
}

fn restarted(fixture: &mut Fixture, restarts: u32) {
    let placement = fixture.placement("web-0").unwrap();
    let (node, generation) = (placement.node, placement.unit.generation);
    for phase in [InstancePhase::Starting, InstancePhase::Running] {
        let report = VmReport { instance: id("web-0"), generation, phase, restarts, message: String::new() };
        fixture.say(Command::Report { node, vms: vec![report], tasks: vec![] });
    }
}

#[test]
fn the_history_of_a_takeover_names_the_lost_node_and_what_proves_it_lost() {
    let mut fixture = Fixture::of_nodes(3);
    let started = told(&mut fixture, |fixture| {
        fixture.declare(&[("web", vm("web", 1))]);
        fixture.settle();
        fixture.report("web-0", InstancePhase::Running);
    });
    let hash = manifest(&[("web", vm("web", 1))]).hash().short();
    assert_eq!(
        started,
        [
            &*format!("head manifest {hash} of test"),
            "placed web-0 node1 it was nowhere (generation 1, automatic failover)",
            "started web-0 node1",
        ]
    );
    let taken_over = told(&mut fixture, |fixture| {
        silence(fixture, 1);
        fixture.decide(Command::Fence { node: NodeId(1), epoch: NodeEpoch(1) });
        fixture.settle();
        fixture.report("web-0", InstancePhase::Starting);
        fixture.report("web-0", InstancePhase::Running);
    });
    assert_eq!(
        taken_over,
        [
            "silent node1 it does not answer",
            "fenced node1 its lease of epoch 1 has ended",
            "lost web-0 node1 the lease of its node has ended",
            "placed web-0 node2 it was on node1, and was lost there (generation 2, automatic failover)",
            "started web-0 node2",
        ]
    );
    let back = told(&mut fixture, |fixture| {
        fixture.decide(Command::SetWorkerAlive { node: NodeId(1), alive: true });
        fixture.arm(1);
    });
    assert_eq!(back, ["back node1 it answers again", "armed node1 it is at epoch 2"]);
}

#[test]
fn of_each_loss_it_is_told_who_said_so() {
    let mut fixture = Fixture::of_nodes(3);
    fixture.declare(&[("web", VmSpec { failover: Failover::Manual, ..vm("web", 1) }), ("x", vm("x", 1))]);
    fixture.settle();
    assert_eq!((fixture.node_of("web-0"), fixture.node_of("x-0")), (Some(1), Some(2)));
    let armed = told(&mut fixture, |fixture| {
        fixture.arm(2);
    });
    let lost = "lost x-0 node2 its node has armed anew, so nothing of before runs there";
    assert_eq!(armed, ["armed node2 it is at epoch 2", lost]);
    let dead = told(&mut fixture, |fixture| {
        silence(fixture, 1);
        for _ in 0..2 {
            fixture.say(Command::ConfirmDead { node: NodeId(1), abandon_volumes: false });
        }
    });
    assert_eq!(
        dead[1..],
        ["dead node1 a person has said so", "lost web-0 node1 a person has said that its node is dead"]
    );
    fixture.settle();
    let removed = told(&mut fixture, |fixture| {
        silence(fixture, 2);
        fixture.say(Command::RemoveNode { node: NodeId(2), dead: true, abandon_volumes: false });
    });
    assert!(removed.contains(&"lost web-0 node2 its node was removed as dead".to_owned()), "{removed:?}");
    assert_eq!(removed.last().unwrap(), "removed node2");
}

/// Why `web-0` stops when this is done, where; it is placed again then, and that is told, too.
fn stopped(fixture: &mut Fixture, done: impl FnOnce(&mut Fixture)) -> String {
    let lines = told(fixture, |fixture| {
        done(fixture);
        fixture.settle();
        fixture.report("web-0", InstancePhase::Stopped);
        fixture.say(Command::SetVmRunning { name: "web".parse().unwrap(), running: true });
        fixture.settle();
    });
    let of_it = lines.iter().filter_map(|line| line.split_once(" web-0 "));
    let [("stopping", stopping), ("stopped", node), ("placed", placed)] = of_it.collect::<Vec<_>>()[..] else {
        panic!("{lines:?}")
    };
    assert!(placed.contains(&format!(" it was on {node}, and has stopped there (generation ")), "{placed}");
    stopping.to_owned()
}

#[test]
fn of_each_stop_it_is_told_what_it_is_for_and_then_that_it_is_done() {
    let mut fixture = Fixture::of_nodes(3);
    let name = || "web".parse().unwrap();
    let put = |spec| Command::PutVm { name: name(), spec, running: true, must: None };
    fixture.say(put(vm("web", 1)));
    fixture.settle();
    let asked = stopped(&mut fixture, |fixture| {
        fixture.say(Command::SetVmRunning { name: name(), running: false });
    });
    assert_eq!(asked, "node1 its VM is to be stopped");
    let moved = stopped(&mut fixture, |fixture| {
        for _ in 0..2 {
            fixture.say(Command::Move { instance: id("web-0"), to: NodeId(3), abandon_volumes: false });
        }
    });
    assert_eq!(moved, "node1 it is to move to node3");
    let drained = stopped(&mut fixture, |fixture| {
        let (node, availability) = (NodeId(3), Availability::Draining);
        fixture.say(Command::SetAvailability { node, availability, abandon_volumes: false });
    });
    assert_eq!(drained, "node3 its node is being drained");
    let unsuitable = stopped(&mut fixture, |fixture| {
        let labels: Labels = [("zone".to_owned(), "a".to_owned())].into_iter().collect();
        fixture.say(register(2, Worker { labels: labels.clone(), ..worker() }));
        fixture.say(put(VmSpec { requires: labels, ..vm("web", 1) }));
    });
    assert_eq!(unsuitable, "node1 its node won't do for what is declared now");
    fixture.say(put(vm("web", 1)));
    let leaving = stopped(&mut fixture, |fixture| {
        fixture.say(Command::RemoveNode { node: NodeId(2), dead: false, abandon_volumes: false });
    });
    assert_eq!(leaving, "node2 its node is being removed");
    let goes_down = stopped(&mut fixture, |fixture| {
        let (node, availability) = (NodeId(1), Availability::Rebooting);
        fixture.say(Command::SetAvailability {
            node: NodeId(3),
            availability: Availability::Active,
            abandon_volumes: false,
        });
        fixture.say(Command::SetAvailability { node, availability, abandon_volumes: false });
    });
    assert_eq!(goes_down, "node1 its node is being drained");
    let removed = told(&mut fixture, |fixture| {
        fixture.say(Command::RemoveVm { name: name() });
        fixture.report("web-0", InstancePhase::Stopped);
    });
    assert_eq!(removed, ["stopping web-0 node3 it is no longer declared", "stopped web-0 node3"]);
}

#[test]
fn what_is_declared_otherwise_is_placed_anew_where_it_is() {
    let mut fixture = Fixture::of_nodes(1);
    fixture.declare(&[("web", vm("web", 1))]);
    fixture.settle();
    let changed = told(&mut fixture, |fixture| {
        fixture.declare(&[("web", vm("other", 1))]);
        fixture.settle();
    });
    assert_eq!(changed[1..], ["placed web-0 node1 it is declared otherwise (generation 2, manual failover)"]);
}

#[test]
fn an_instance_that_ends_again_and_again_is_told_of_ever_more_seldom() {
    let mut fixture = Fixture::of_nodes(1);
    fixture.declare(&[("web", vm("web", 1))]);
    fixture.settle();
    let lines = told(&mut fixture, |fixture| {
        for restarts in (0..=40).chain([200, 0, 1]) {
            restarted(fixture, restarts);
        }
        fixture.report("web-0", InstancePhase::Ended(Exit::Killed(9)));
    });
    let again = "restarted web-0 node1 it ended, and was started again";
    let times = |times: u32| format!("{again}: {times} times by now");
    let [first, all @ .., second, ended] = &lines[..] else { panic!("{lines:?}") };
    assert_eq!((&**first, &*all[0], &**second), ("started web-0 node1", again, again));
    assert_eq!(all[1..], [2, 4, 8, 16, 32, 200].map(times));
    assert_eq!(ended, "ended web-0 node1 killed by signal 9");
}

#[test]
fn what_a_person_does_with_a_node_and_how_it_comes_and_goes_is_told() {
    let mut fixture = Fixture::default();
    let founded = told(&mut fixture, |fixture| *fixture = Fixture::of_nodes(2));
    assert_eq!(
        founded,
        ["joined node1", "armed node1 it is at epoch 1", "joined node2", "armed node2 it is at epoch 1"]
    );
    let set = |availability| Command::SetAvailability { node: NodeId(2), availability, abandon_volumes: false };
    let used = told(&mut fixture, |fixture| {
        for availability in [Availability::Cordoned, Availability::Draining, Availability::Active, Availability::Active]
        {
            fixture.say(set(availability));
        }
    });
    assert_eq!(used, ["cordoned node2", "draining node2", "uncordoned node2"]);
    let gone = told(&mut fixture, |fixture| {
        for _ in 0..2 {
            fixture.say(Command::RemoveNode { node: NodeId(2), dead: false, abandon_volumes: false });
        }
        fixture.decide(Command::ForgetNode { node: NodeId(2) });
        fixture.say(Command::Admit(joiner(2)));
    });
    assert_eq!(gone, ["leaving node2", "removed node2", "joined node2"], "its name outlives it");
}

#[test]
fn a_takeover_that_is_frozen_and_resumed_is_told() {
    let mut fixture = Fixture::of_nodes(1);
    let lines = told(&mut fixture, |fixture| {
        for is_frozen in [true, true, false] {
            fixture.decide(Command::SetTakeover { is_frozen });
        }
        fixture.decide(Command::SetTakeover { is_frozen: true });
        fixture.say(Command::ResumeTakeover);
        fixture.say(Command::ResumeTakeover);
    });
    let kinds: Vec<_> = lines.iter().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(kinds, ["frozen", "free", "frozen", "resumed"]);
}

#[test]
fn a_cluster_that_begins_anew_keeps_its_history_and_says_so_in_it() {
    let mut fixture = Fixture::of_nodes(2);
    let before = lines(&fixture, 0);
    fixture.begin_epoch(Beginner::Survivor(NodeId(1))).unwrap();
    let rejoin = Command::Rejoin { host: joiner(2), was_in: ClusterEpoch::FIRST };
    fixture.say(rejoin.clone());
    fixture.say(rejoin);
    let after = lines(&fixture, 0);
    assert_eq!(after[..before.len()], before);
    let epoch = fixture.state.cluster().unwrap().epoch;
    assert_eq!(
        after[before.len()..],
        [format!("renewed recovered: epoch {epoch} begins"), "rejoined node2".to_owned()]
    );
    let events: Vec<_> = fixture.state.events_after(0).collect();
    assert_eq!(events[before.len()].1.index, 0);
}

#[test]
fn a_reader_gets_what_it_has_not_read_and_can_tell_what_it_has_missed() {
    let mut fixture = Fixture::of_nodes(2);
    assert_eq!(fixture.state.oldest_event(), Some(1));
    let all: Vec<_> = fixture.state.events_after(0).collect();
    assert_eq!(all.iter().map(|(number, _)| *number).collect::<Vec<_>>(), (1..=4).collect::<Vec<_>>());
    let rest: Vec<_> = fixture.state.events_after(3).collect();
    assert_eq!(rest, all[3..]);
    assert_eq!(fixture.state.events_after(4).chain(fixture.state.events_after(u64::MAX)).count(), 0);
    silence(&mut fixture, 2);
    let [(number, event)] = fixture.state.events_after(4).collect::<Vec<_>>().try_into().unwrap();
    assert_eq!((number, event.index, event.at), (5, fixture.index, Timestamp(fixture.index * 1000)));
}

fn event(instance: u64, what: OfInstance) -> Event {
    let (instance, node) = (id(&format!("web-{instance}")), "node1".parse().unwrap());
    Event { index: 1, at: Timestamp(2), what: Happening::Instance { instance, node, what } }
}

#[test]
fn the_oldest_events_make_room_and_their_rows_go() {
    let mut events = Events::default();
    let most = MAX_EVENTS as u64;
    for number in 1..=most {
        assert_eq!(events.add(&event(0, OfInstance::Started)).collect::<Vec<_>>(), [number]);
    }
    for number in most + 1..most + 10 {
        let touched: Vec<_> = events.add(&event(0, OfInstance::Started)).collect();
        assert_eq!(touched, [number - most, number]);
        assert!(events.row(number).is_some() && events.row(number - most).is_none());
        assert_eq!(events.kept.len(), MAX_EVENTS);
    }
}

#[test]
fn an_event_is_never_encoded_otherwise() {
    let event = event(7, OfInstance::Lost(LostBecause::Fenced));
    assert_eq!(*Packed::of(&event).bytes(), [&[1, 2, 0, 5][..], b"web-7", &[5], b"node1", &[6, 0]].concat());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]

    /// However many have made room.
    #[test]
    fn events_read_back_from_their_rows_are_what_they_were(turns in prop::collection::vec((0..300_u64, 0..3_u8), 1..200)) {
        let mut events = Events::default();
        let others = std::iter::repeat_n(&(300, 0), MAX_EVENTS - turns.len() / 2);
        for (instance, what) in turns.iter().chain(others) {
            let what = match what {
                0 => OfInstance::Started,
                1 => OfInstance::Stopped,
                _ => OfInstance::Lost(LostBecause::Armed),
            };
            events.add(&event(*instance, what)).count();
        }
        let mut rows: Vec<_> = events.kept.iter().map(|(number, event)| (*number, event.clone())).collect();
        rows.reverse();
        prop_assert_eq!(Events::of(rows), events);
    }
}
