//! Nodes on which nothing is placed, as a person wants or until they have booted, and instances that a person wants elsewhere.

use super::nodes::not_a_member;
use super::{OfNode, Refusal, Standing, State, StopBecause, refuse};
use crate::command::Reply;
use crate::types::{Availability, Failover, Hash, InstanceId, NodeId, Timestamp};

impl State {
    /// Whether what this node runs is to go elsewhere.
    pub fn is_emptied(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_none_or(|node| node.leaving || node.availability.is_emptied())
    }

    /// How many instances and tasks a node has that aren't over.
    pub fn held_by(&self, node: NodeId) -> usize {
        self.placed_on(node).count() + self.tasks_on(node).count()
    }

    pub(super) fn set_availability(
        &mut self,
        node: NodeId,
        availability: Availability,
        abandon_volumes: bool,
    ) -> Result<Reply, Refusal> {
        let member = self.nodes.get_mut(&node).ok_or_else(|| not_a_member(node))?;
        if member.leaving {
            return refuse(format!("{} is being removed: it is emptied for good", member.name));
        }
        // What a person has closed, no boot opens.
        let availability = match (availability, member.availability) {
            (Availability::Rebooting, Availability::Cordoned | Availability::Draining) => Availability::Draining,
            (availability, _) => availability,
        };
        if member.availability != availability {
            member.availability = availability;
            self.dirty.nodes.insert(node);
            self.happened_on(node, OfNode::Availability(availability));
        }
        if abandon_volumes {
            self.abandon_volumes(node);
        }
        Ok(Reply::Done)
    }

    /// In which boot of its host a node's agent runs. If that is another one, the node has no lease before it arms, and it is
    /// used again if it was emptied for that.
    pub(super) fn note_boot(&mut self, node: NodeId, boot: Hash) {
        let Some(member) = self.nodes.get_mut(&node).filter(|member| member.boot != Some(boot)) else { return };
        let is_first = member.boot.replace(boot).is_none();
        self.dirty.nodes.insert(node);
        if let Standing::Armed(arming) = member.lease.standing {
            member.lease.standing = Standing::Rebooted(arming);
            self.dirty.leases.insert(node);
        }
        let is_opened = member.availability == Availability::Rebooting;
        if is_opened {
            member.availability = Availability::Active;
        }
        if !is_first {
            self.happened_on(node, OfNode::Booted);
        }
        if is_opened {
            self.happened_on(node, OfNode::Availability(Availability::Active));
        }
    }

    /// It stops where it is, and is placed there once that is confirmed, or elsewhere if that won't do any more.
    pub(super) fn move_instance(
        &mut self,
        id: &InstanceId,
        to: NodeId,
        abandon_volumes: bool,
        at: Timestamp,
    ) -> Result<Reply, Refusal> {
        let Some(spec) = self.desired(id) else { return refuse(format!("{id} is not to run")) };
        self.check_absent()?;
        let instance = self.instances.get(id).expect("what is declared has an instance");
        let Some(placement) = &instance.placement else {
            return refuse(format!("{id} is nowhere, so it can't be moved: `blixard explain {}` says why", id.vm));
        };
        let from = placement.node;
        if from == to {
            return refuse(format!("{id} is on {} already", self.name_of(to)));
        }
        if self.volumes_on(id).is_some() && !abandon_volumes {
            return refuse(format!(
                "the volumes of {id} are on {}, and don't move with it: to give them up, say so with --abandon-volumes",
                self.name_of(from)
            ));
        }
        self.check_open(to)?;
        self.check_room(to, spec.request())?;
        if self.failover(&spec) == Failover::Automatic && self.nodes[&to].lease.arming().is_none() {
            let name = &self.nodes[&to].name;
            return refuse(format!(
                "node {name} has no lease now, and {id} needs one: `blixard status` says when it has"
            ));
        }
        let instance = self.instances.get_mut(id).expect("it was there just now");
        (instance.volumes_on, instance.bound_for) = (None, Some(to));
        self.dirty.instances.insert(id.clone());
        let name = self.nodes[&to].name.clone();
        self.begin_stop(id, StopBecause::Moved { to: name }, at);
        Ok(Reply::Done)
    }

    /// Refuses a node on which a person lets nothing be placed.
    pub(super) fn check_open(&self, node: NodeId) -> Result<(), Refusal> {
        match self.nodes.get(&node).ok_or_else(|| not_a_member(node))? {
            node if node.availability != Availability::Active => refuse(format!(
                "node {} is {}: `blixard node uncordon {}` opens it",
                node.name, node.availability, node.name
            )),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Beginner;
    use super::super::tests::{BOOT, Fixture, NEXT_BOOT, id, is_refused, vm};
    use super::*;
    use crate::command::{Command, InstancePhase, TaskSpec};
    use crate::manifest::VmSpec;
    use crate::schedule::keeps;
    use crate::types::{Resources, TaskId};

    fn set(fixture: &mut Fixture, node: u64, availability: Availability) -> Reply {
        fixture.say(Command::SetAvailability { node: NodeId(node), availability, abandon_volumes: false })
    }

    fn go(fixture: &mut Fixture, instance: &str, to: u64, abandon_volumes: bool) -> Reply {
        fixture.say(Command::Move { instance: id(instance), to: NodeId(to), abandon_volumes })
    }

    /// Of two nodes, with these VMs running.
    fn running(vms: &[(&str, VmSpec)]) -> Fixture {
        let mut fixture = Fixture::of_nodes(2);
        fixture.declare(vms);
        fixture.run();
        fixture
    }

    /// The instances that are being stopped.
    fn stopping(fixture: &Fixture) -> Vec<String> {
        let all = fixture.state.instances().iter();
        let stopping = all.filter(|(_, instance)| instance.placement.as_ref().is_some_and(|placed| placed.stopping));
        stopping.map(|(id, _)| id.to_string()).collect()
    }

    #[test]
    fn nothing_is_placed_on_a_cordoned_node_and_what_it_runs_runs_on() {
        let mut fixture = running(&[("web", vm("web", 2))]);
        assert_eq!(set(&mut fixture, 1, Availability::Cordoned), Reply::Done);
        fixture.declare(&[("web", VmSpec { vcpus: 2, ..vm("web", 2) }), ("db", vm("db", 2))]);
        let request = Resources { cpus: 1, memory_mib: 1, disk_mib: 0 };
        fixture.say(Command::RunTask(TaskSpec { command: vec!["true".to_owned()], request }));
        fixture.run();
        assert_eq!(["web-0", "web-1", "db-0", "db-1"].map(|id| fixture.node_of(id)), [1, 2, 2, 2].map(Some));
        assert_eq!(fixture.state.held_by(NodeId(1)), 1, "nor is a task");
        assert_eq!(fixture.placement("web-0").unwrap().request.cpus, 2, "what is there is changed in its place");
        is_refused(&fixture.decide(Command::PlaceTask { task: TaskId(1), node: NodeId(1) }), &["cordoned", "uncordon"]);
        assert_eq!(set(&mut fixture, 1, Availability::Active), Reply::Done);
        fixture.run();
        assert_eq!(fixture.state.tasks()[&TaskId(1)].node, Some(NodeId(1)));
    }

    #[test]
    fn a_drained_node_is_emptied_one_instance_after_the_other() {
        let mut fixture = running(&[("a", vm("a", 1)), ("b", vm("b", 1)), ("c", vm("c", 1)), ("d", vm("d", 1))]);
        let mut left: Vec<_> = fixture.state.placed_on(NodeId(1)).map(ToString::to_string).collect();
        assert_eq!(left.len(), 2);
        set(&mut fixture, 1, Availability::Draining);
        while let Some(next) = left.first().cloned() {
            fixture.run();
            assert_eq!(stopping(&fixture), [&*next], "{left:?}");
            fixture.report(&next, InstancePhase::Stopped);
            left.remove(0);
        }
        fixture.run();
        assert_eq!((fixture.state.held_by(NodeId(1)), fixture.state.held_by(NodeId(2))), (0, 4));
        set(&mut fixture, 1, Availability::Active);
        fixture.run();
        assert_eq!(fixture.state.held_by(NodeId(2)), 4, "nothing moves for nothing");
    }

    #[test]
    fn a_node_that_reboots_is_emptied_until_its_host_has_booted() {
        let mut fixture = running(&[("web", vm("web", 2))]);
        set(&mut fixture, 1, Availability::Rebooting);
        fixture.run();
        assert_eq!(stopping(&fixture), ["web-0"]);
        fixture.report("web-0", InstancePhase::Stopped);
        fixture.start_agent(1, BOOT);
        fixture.run();
        assert_eq!(fixture.node_of("web-0"), Some(2), "its agent has started again, and not its host");
        is_refused(&go(&mut fixture, "web-0", 1, false), &["node1 is rebooting", "blixard node uncordon node1"]);
        fixture.start_agent(1, NEXT_BOOT);
        assert_eq!(go(&mut fixture, "web-0", 1, false), Reply::Done);
        set(&mut fixture, 1, Availability::Rebooting);
        set(&mut fixture, 1, Availability::Active);
        assert!(!fixture.state.is_emptied(NodeId(1)), "a person has said otherwise");
    }

    #[test]
    fn no_boot_opens_what_a_person_has_closed() {
        for closed in [Availability::Cordoned, Availability::Draining] {
            let mut fixture = running(&[("web", vm("web", 2))]);
            set(&mut fixture, 1, closed);
            set(&mut fixture, 1, Availability::Rebooting);
            fixture.run();
            assert_eq!(stopping(&fixture), ["web-0"], "{closed}");
            fixture.start_agent(1, NEXT_BOOT);
            assert_eq!(fixture.state.nodes()[&NodeId(1)].availability, Availability::Draining, "{closed}");
        }
    }

    #[test]
    fn of_the_replicas_of_a_vm_one_is_away_at_a_time() {
        let mut fixture = running(&[("web", vm("web", 4))]);
        set(&mut fixture, 1, Availability::Draining);
        fixture.run();
        let [first] = stopping(&fixture).try_into().unwrap();
        fixture.report(&first, InstancePhase::Stopped);
        fixture.settle();
        assert_eq!(fixture.node_of(&first), Some(2));
        assert!(stopping(&fixture).is_empty(), "the first is only starting");
        let [other] = fixture.state.placed_on(NodeId(1)).cloned().collect::<Vec<_>>().try_into().unwrap();
        assert_eq!(keeps(&fixture.state, &other), Some(&id(&first)));
        fixture.report(&first, InstancePhase::Running);
        let mut lost = fixture.clone();
        lost.decide(Command::SetWorkerAlive { node: NodeId(2), alive: false });
        lost.settle();
        assert!(stopping(&lost).is_empty(), "nobody knows whether those on the other node run");
        fixture.run();
        assert_eq!(stopping(&fixture), [other.to_string()]);
    }

    #[test]
    fn of_two_nodes_that_are_drained_at_once_one_gives_a_vms_replica_away_at_a_time() {
        let mut fixture = Fixture::of_nodes(3);
        fixture.declare(&[("web", vm("web", 3))]);
        fixture.run();
        for node in [1, 2] {
            set(&mut fixture, node, Availability::Draining);
        }
        fixture.run();
        assert_eq!(stopping(&fixture).len(), 1);
    }

    #[test]
    fn as_many_replicas_are_away_at_once_as_leave_the_minimum() {
        for (min_available, at_once) in [(None, 1), (Some(3), 1), (Some(2), 2), (Some(1), 3), (Some(0), 3)] {
            let mut fixture = Fixture::of_nodes(4);
            fixture.declare(&[("web", VmSpec { min_available, ..vm("web", 4) })]);
            fixture.run();
            (1..=3).for_each(|node| assert_eq!(set(&mut fixture, node, Availability::Draining), Reply::Done));
            fixture.run();
            assert_eq!(stopping(&fixture).len(), at_once, "{min_available:?}");
            let stay = (0..4).map(|replica| id(&format!("web-{replica}"))).filter(|id| {
                let placement = fixture.placement(&id.to_string()).unwrap();
                !placement.stopping && placement.node != NodeId(4)
            });
            assert!(stay.clone().all(|id| keeps(&fixture.state, &id).is_some()), "{min_available:?}");
            assert_eq!(stay.count(), 3 - at_once);
        }
    }

    #[test]
    fn what_has_its_volumes_there_is_stopped_and_comes_back_or_gives_them_up() {
        let with_volume = || VmSpec { disk_mib: 10, ..vm("db", 1) };
        let mut fixture = running(&[("db", with_volume())]);
        let home = fixture.node_of("db-0").unwrap();
        set(&mut fixture, home, Availability::Draining);
        fixture.run();
        fixture.report("db-0", InstancePhase::Stopped);
        fixture.run();
        assert_eq!((fixture.node_of("db-0"), fixture.state.volumes_on(&id("db-0"))), (None, Some(NodeId(home))));
        set(&mut fixture, home, Availability::Active);
        fixture.run();
        assert_eq!(fixture.node_of("db-0"), Some(home));
        let (node, availability) = (NodeId(home), Availability::Draining);
        fixture.say(Command::SetAvailability { node, availability, abandon_volumes: true });
        fixture.run();
        fixture.report("db-0", InstancePhase::Stopped);
        fixture.run();
        assert_eq!(fixture.node_of("db-0"), Some(3 - home));
    }

    #[test]
    fn replicas_with_volumes_on_one_node_leave_it_though_none_of_them_can_run_elsewhere() {
        let mut fixture = Fixture::of_nodes(1);
        fixture.declare(&[("db", VmSpec { disk_mib: 10, ..vm("db", 2) })]);
        fixture.run();
        set(&mut fixture, 1, Availability::Draining);
        for gone in ["db-0", "db-1"] {
            fixture.run();
            assert_eq!(stopping(&fixture), [gone]);
            assert_eq!(keeps(&fixture.state, &id("db-1")), None);
            fixture.report(gone, InstancePhase::Stopped);
        }
        set(&mut fixture, 1, Availability::Active);
        fixture.run();
        assert_eq!(fixture.state.held_by(NodeId(1)), 2);
    }

    #[test]
    fn where_all_nodes_are_emptied_no_replica_waits_for_another() {
        let mut fixture = Fixture::of_nodes(1);
        fixture.declare(&[("web", vm("web", 2))]);
        fixture.run();
        set(&mut fixture, 1, Availability::Rebooting);
        for gone in ["web-0", "web-1"] {
            fixture.run();
            assert_eq!(stopping(&fixture), [gone]);
            fixture.report(gone, InstancePhase::Stopped);
        }
        fixture.start_agent(1, NEXT_BOOT);
        fixture.run();
        assert_eq!(fixture.state.held_by(NodeId(1)), 2);
    }

    #[test]
    fn nothing_is_stopped_for_another_node_while_it_could_not_be_started_there() {
        let mut fixture = Fixture::of_nodes(3);
        fixture.declare(&[("web", vm("web", 1))]);
        fixture.run();
        let home = fixture.node_of("web-0").unwrap();
        fixture.begin_epoch(Beginner::Survivor(NodeId(home))).unwrap();
        is_refused(&go(&mut fixture, "web-0", 2, false), &["what node 2 runs is not known"]);
        assert_eq!(set(&mut fixture, home, Availability::Draining), Reply::Done);
        fixture.settle();
        assert_eq!(stopping(&fixture), [""; 0]);
    }

    #[test]
    fn an_instance_that_is_moved_stops_first_and_then_starts_where_it_is_wanted() {
        let mut fixture = running(&[("web", vm("web", 2))]);
        assert_eq!(go(&mut fixture, "web-0", 2, false), Reply::Done);
        fixture.run();
        assert_eq!((stopping(&fixture), fixture.node_of("web-0")), (vec!["web-0".to_owned()], Some(1)));
        fixture.report("web-0", InstancePhase::Stopped);
        fixture.run();
        assert_eq!(fixture.node_of("web-0"), Some(2), "though it would be spread");
        assert_eq!(fixture.state.instances()[&id("web-0")].bound_for, None, "it is a move and no rule");
    }

    #[test]
    fn a_move_that_makes_no_sense_is_refused_and_changes_nothing() {
        let mut fixture = running(&[("db", VmSpec { disk_mib: 10, ..vm("db", 1) }), ("web", vm("web", 1))]);
        assert_eq!(["db-0", "web-0"].map(|id| fixture.node_of(id)), [1, 2].map(Some));
        is_refused(&go(&mut fixture, "db-0", 1, false), &["db-0 is on node1 already"]);
        is_refused(&go(&mut fixture, "db-0", 2, false), &["volumes of db-0", "--abandon-volumes"]);
        is_refused(&go(&mut fixture, "web-0", 9, false), &["not a member"]);
        is_refused(&go(&mut fixture, "web-9", 1, false), &["web-9 is not to run"]);
        set(&mut fixture, 1, Availability::Cordoned);
        is_refused(&go(&mut fixture, "web-0", 1, false), &["node1 is cordoned", "blixard node uncordon node1"]);
        set(&mut fixture, 1, Availability::Active);
        fixture.decide(Command::SetWorkerAlive { node: NodeId(1), alive: false });
        is_refused(&go(&mut fixture, "web-0", 1, false), &["does not answer"]);
        fixture.decide(Command::SetWorkerAlive { node: NodeId(1), alive: true });
        let other = 2;
        assert_eq!(go(&mut fixture, "db-0", other, true), Reply::Done);
        fixture.report("db-0", InstancePhase::Stopped);
        fixture.run();
        assert_eq!(fixture.node_of("db-0"), Some(other));
    }

    #[test]
    fn where_an_instance_was_to_go_and_cannot_any_more_it_goes_elsewhere() {
        let mut fixture = running(&[("web", vm("web", 1))]);
        go(&mut fixture, "web-0", 2, false);
        set(&mut fixture, 2, Availability::Cordoned);
        fixture.report("web-0", InstancePhase::Stopped);
        fixture.run();
        assert_eq!(fixture.node_of("web-0"), Some(1));
    }

    #[test]
    fn a_node_that_is_being_removed_is_emptied_for_good() {
        let mut fixture = running(&[("web", vm("web", 2))]);
        fixture.say(Command::RemoveNode { node: NodeId(1), dead: false, abandon_volumes: false });
        is_refused(&set(&mut fixture, 1, Availability::Active), &["node1 is being removed"]);
        is_refused(&set(&mut fixture, 9, Availability::Cordoned), &["not a member"]);
    }
}
