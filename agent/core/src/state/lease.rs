//! Which nodes may run what starts elsewhere when they aren't heard, and what becomes of it.
//!
//! ```text
//!              Arm                 Fence (the leader has waited)
//!   Unarmed ─────────▶ Armed ─────────────────────────────────────▶ Fenced
//!                      │  ▲ Arm, by the next epoch, from anywhere   ▲  │
//!       its host boots ▼  │                                         │  │
//!                    Rebooted ──────────────────────────────────────┘  │
//!                      └──┴──── ConfirmDead (a person's word) ─────▶ Gone
//! ```
//!
//! An automatic instance belongs to an epoch of its node: whatever ends the epoch proves that it runs no more. When that
//! may be said the leader's memory (`lease`) and the node's fence decide; the state has no clock.

use serde::{Deserialize, Serialize};

use super::nodes::not_a_member;
use super::{LostBecause, OfCluster, OfInstance, OfNode, Placement, Refusal, State, refuse};
use crate::command::Reply;
use crate::manifest::VmSpec;
use crate::types::{Failover, Hash, InstanceId, LeaseTerms, NodeEpoch, NodeId, Nonce, Timestamp};

/// With fewer servers the loss of one ends every lease.
const MIN_SERVERS: usize = 3;

/// How often a node has armed, and whether that still holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Lease {
    pub epoch: NodeEpoch,
    pub standing: Standing,
}

/// What holds of a node's epoch.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum Standing {
    /// It has never armed, or not since the cluster began anew.
    #[default]
    Unarmed,
    /// Its fence stops what is automatic on it when its lease ends.
    Armed(Arming),
    /// Its lease has ended, so nothing automatic runs on it.
    Fenced,
    /// A person has said that nothing runs on it.
    Gone,
    /// Its host is said to have booted since it armed, which proves nothing: nothing is placed there or granted any more, and
    /// what is automatic on it is its epoch's until that ends.
    Rebooted(Arming),
}

/// What a node has armed with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Arming {
    pub nonce: Nonce,
    /// A hash of what its firmware says which machine it is; nothing where it doesn't say.
    pub machine: Option<Hash>,
    pub terms: LeaseTerms,
}

/// Whether instances of nodes that aren't heard start elsewhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum Takeover {
    #[default]
    Free,
    /// Too many nodes fell silent at once: a person, or their return, decides.
    Frozen { since: Timestamp },
    /// A person has let it go on; until fewer are silent.
    Resumed,
}

/// Why an instance that is declared as automatic is placed as manual.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ManualBecause {
    Declared,
    /// It has volumes.
    LocalState,
    /// So few are configured; those that are yet to join count.
    FewServers {
        servers: usize,
    },
    /// No node has a fence.
    NoFence,
}

impl Lease {
    /// What it is armed with, if it is.
    pub const fn arming(&self) -> Option<&Arming> {
        match &self.standing {
            Standing::Armed(arming) => Some(arming),
            _ => None,
        }
    }

    /// What its epoch began with, unless nothing automatic of that runs any more.
    pub const fn unended(&self) -> Option<&Arming> {
        match &self.standing {
            Standing::Armed(arming) | Standing::Rebooted(arming) => Some(arming),
            Standing::Unarmed | Standing::Fenced | Standing::Gone => None,
        }
    }
}

impl State {
    /// Why an instance that isn't placed yet is placed as manual; nothing where it is automatic.
    pub fn manual_because(&self, spec: &VmSpec) -> Option<ManualBecause> {
        let servers = self.configured_servers();
        if spec.failover == Failover::Manual {
            Some(ManualBecause::Declared)
        } else if spec.disk_mib > 0 {
            Some(ManualBecause::LocalState)
        } else if servers < MIN_SERVERS {
            Some(ManualBecause::FewServers { servers })
        } else if !self.has_fence() {
            Some(ManualBecause::NoFence)
        } else {
            None
        }
    }

    /// As what an instance is placed that isn't placed yet; while it is, that doesn't change.
    pub fn failover(&self, spec: &VmSpec) -> Failover {
        if self.manual_because(spec).is_some() { Failover::Manual } else { Failover::Automatic }
    }

    /// A node's fence has seen that nothing automatic runs on it, and drew this nonce.
    pub(super) fn arm(
        &mut self,
        node: NodeId,
        expected: NodeEpoch,
        nonce: Nonce,
        machine: Option<Hash>,
    ) -> Result<Reply, Refusal> {
        let terms = self.settings().lease;
        let member = self.nodes.get_mut(&node).ok_or_else(|| not_a_member(node))?;
        let epoch = member.lease.epoch;
        if expected != epoch {
            return refuse(format!("{} is at epoch {epoch}, so arming it after {expected} is stale", member.name));
        }
        member.lease = Lease { epoch: epoch.next(), standing: Standing::Armed(Arming { nonce, machine, terms }) };
        self.dirty.leases.insert(node);
        self.happened_on(node, OfNode::Armed { epoch: epoch.next() });
        self.free_all(node, LostBecause::Armed, |failover| failover == Failover::Automatic);
        Ok(Reply::Done)
    }

    /// The leader has waited until the node's fence has stopped all that it may stop.
    pub(super) fn fence(&mut self, node: NodeId, epoch: NodeEpoch) -> Result<Reply, Refusal> {
        if let Takeover::Frozen { .. } = self.takeover() {
            return refuse("takeover is frozen: `blixard cluster resume` lets it go on");
        }
        let member = self.nodes.get_mut(&node).ok_or_else(|| not_a_member(node))?;
        if member.lease.epoch != epoch || member.lease.unended().is_none() {
            return refuse(format!("{} is not armed at epoch {epoch} any more", member.name));
        }
        member.lease.standing = Standing::Fenced;
        self.dirty.leases.insert(node);
        self.happened_on(node, OfNode::Fenced { epoch });
        self.free_all(node, LostBecause::Fenced, |failover| failover == Failover::Automatic);
        Ok(Reply::Done)
    }

    /// A person says that nothing runs on a node that isn't heard.
    pub(super) fn confirm_dead(
        &mut self,
        node: NodeId,
        abandon_volumes: bool,
        at: Timestamp,
    ) -> Result<Reply, Refusal> {
        let member = self.nodes.get(&node).ok_or_else(|| not_a_member(node))?;
        if self.worker_status(node).is_some_and(|status| status.alive) {
            return refuse(format!("{} answers, so it isn't dead: shut it down first", member.name));
        }
        if self.absent().contains_key(&node) {
            return refuse(format!(
                "what {0} runs is not known since the cluster began anew: if it is gone for good, remove it: \
                 `blixard node remove {0} --dead`",
                member.name
            ));
        }
        let lease = &mut self.nodes.get_mut(&node).expect("it was there just now").lease;
        if lease.standing != Standing::Gone {
            lease.standing = Standing::Gone;
            self.dirty.leases.insert(node);
            self.happened_on(node, OfNode::ConfirmedDead);
        }
        if abandon_volumes {
            self.abandon_volumes(node);
        }
        self.free_all(node, LostBecause::ConfirmedDead, |_| true);
        self.end_tasks(node, "a person has said that its node is dead", at);
        Ok(Reply::Done)
    }

    pub fn takeover(&self) -> Takeover {
        self.cluster.as_ref().map(|cluster| cluster.takeover).unwrap_or_default()
    }

    /// The leader has seen that too many nodes are silent at once, or no longer.
    pub(super) fn set_takeover(&mut self, is_frozen: bool, at: Timestamp) -> Reply {
        let takeover = match (is_frozen, self.takeover()) {
            (true, Takeover::Free) => Takeover::Frozen { since: at },
            (true, kept) => kept,
            (false, _) => Takeover::Free,
        };
        self.change_takeover(takeover);
        Reply::Done
    }

    /// A person lets instances of silent nodes start elsewhere, though there are many.
    pub(super) fn resume_takeover(&mut self) -> Result<Reply, Refusal> {
        match self.takeover() {
            Takeover::Frozen { .. } => self.change_takeover(Takeover::Resumed),
            Takeover::Resumed => {}
            Takeover::Free => return refuse("takeover is not frozen: there is nothing to resume"),
        }
        Ok(Reply::Done)
    }

    fn change_takeover(&mut self, takeover: Takeover) {
        let cluster = self.cluster.as_mut().expect("nothing else is carried out before there is one");
        if cluster.takeover != takeover {
            cluster.takeover = takeover;
            self.dirty.cluster = true;
            self.happened(match takeover {
                Takeover::Free => OfCluster::TakeoverFree,
                Takeover::Frozen { .. } => OfCluster::TakeoverFrozen,
                Takeover::Resumed => OfCluster::TakeoverResumed,
            });
        }
    }

    /// These of a node's instances run there no more. One that has ended and isn't started again stays: it is over.
    fn free_all(&mut self, node: NodeId, because: LostBecause, which: impl Fn(Failover) -> bool) {
        let is_freed = |id: &&InstanceId| {
            let placement = self.instances.get(id).and_then(|instance| instance.placement.as_ref());
            placement
                .is_some_and(|placement| which(placement.unit.failover) && (placement.stopping || !placement.is_over()))
        };
        let freed: Vec<InstanceId> = self.placed_on(node).filter(is_freed).cloned().collect();
        for id in &freed {
            self.free(id, OfInstance::Lost(because));
        }
    }

    /// Whether the epoch in which it was placed is over, at whose end nothing of it ran: it had ended before, and stayed. The
    /// node speaks only for what is of its own epoch, so it won't say so of this.
    pub fn has_outlived_its_epoch(&self, placement: &Placement) -> bool {
        let Some(lease) = self.nodes.get(&placement.node).map(|node| &node.lease) else { return false };
        let is_over = lease.epoch > placement.epoch || matches!(lease.standing, Standing::Fenced | Standing::Gone);
        placement.unit.failover == Failover::Automatic && is_over
    }

    /// An instance runs no more where it was placed.
    pub(super) fn free(&mut self, id: &InstanceId, because: OfInstance) {
        let instance = self.instances.get_mut(id).expect("what is placed is there");
        if let Some(placement) = instance.placement.take() {
            self.happened_to(id, placement.node, because);
        }
        self.dirty.instances.insert(id.clone());
        self.drop_if_removed(id);
    }
}

#[cfg(test)]
mod tests {
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
        let mut fixture =
            running(&[("a", vm("a", 1)), ("b", manual("b")), ("c", VmSpec { disk_mib: 9, ..vm("c", 1) })]);
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
}
