//! How a cluster begins anew on one node: with what a survivor knows, or a backup holds, of it.
//!
//! What the other members knew last is lost, and what they run with it: one of them may have been given an instance that
//! this state has elsewhere, or doesn't have. So they are *absent*, and nothing is started anywhere, until each has come
//! back and runs nothing but what is placed on it, or a person has said that it is dead.
//!
//! ```text
//!  begin_epoch ─▶ away ── Rejoin: a fresh Raft id ─▶ rejoined ── ReturnNode: its strays are stopped ─▶ a member
//!                   └── RemoveNode{dead} ─▶ removed
//! ```

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::nodes::not_a_member;
use super::rows::Dirty;
use super::{OfCluster, OfNode, Refusal, Standing, State, Takeover, WorkerStatus, refuse};
use crate::ANEW;
use crate::command::{NewNode, Reply};
use crate::types::{Address, ClusterEpoch, Generation, NodeId, NodeName, NodeRole, RaftId, Timestamp};

/// How an epoch of a cluster began that isn't its first.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Renewal {
    /// From the data of a node that survived.
    Recovered,
    /// From a backup.
    Restored,
}

/// What is known of a node that was a member before the epoch began.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Absence {
    /// Nothing: it may run anything.
    Away,
    /// It is a member again, and hasn't said yet that it runs nothing but what is placed on it.
    Rejoined,
}

/// Whom an epoch begins with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Beginner<'a> {
    /// A member whose data it is; what is placed on it stays there.
    Survivor(NodeId),
    /// A host that was no member. Where one has its name, that one is replaced: it runs nothing any more, and its volumes
    /// are lost.
    Newcomer { host: &'a NewNode, replaces: bool },
}

/// Why a cluster can't begin anew like this; nothing has changed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BeginError {
    #[error("there is no cluster in this data")]
    NoCluster,
    #[error("node {node} is not a member of the cluster any more")]
    NotAMember { node: NodeId },
    #[error(
        "the name {name} is taken by a member at {address}: if nothing of that one runs any more, and this host is to take its \
         place, say so with --replace"
    )]
    NameTaken { name: NodeName, address: Address },
    #[error("{0}")]
    Refused(String),
}

impl State {
    /// Begins the cluster anew, with one node that has a fresh Raft id, and is to be its only server. Nobody but the agent
    /// that makes the node's data anew may call it: no log entry says it. The `tag` is drawn at random.
    ///
    /// # Errors
    /// Why it can't be.
    pub fn begin_epoch(
        &mut self,
        how: Renewal,
        beginner: Beginner,
        tag: u32,
        at: Timestamp,
    ) -> Result<(NodeId, RaftId), BeginError> {
        let cluster = self.cluster.as_mut().ok_or(BeginError::NoCluster)?;
        // All others are given a certificate of the authority that issues when they rejoin.
        cluster.rotation = None;
        let first = match beginner {
            Beginner::Survivor(node) => {
                if !self.nodes.contains_key(&node) {
                    return Err(BeginError::NotAMember { node });
                }
                node
            }
            Beginner::Newcomer { host, replaces } => {
                if let Some((node, member)) = self.node_named(&host.name) {
                    if !replaces {
                        return Err(BeginError::NameTaken { name: host.name.clone(), address: member.address.clone() });
                    }
                    self.abandon_volumes(node);
                    self.bury(node, at);
                }
                match self.admit(host, at) {
                    Ok(Reply::Admitted { node, .. }) => node,
                    Ok(reply) => unreachable!("a newcomer is admitted or refused: {reply:?}"),
                    Err(Refusal(why)) => return Err(BeginError::Refused(why)),
                }
            }
        };
        let absent: BTreeMap<_, _> =
            self.nodes.keys().filter(|node| **node != first).map(|node| (*node, Absence::Away)).collect();
        for node in absent.keys() {
            if self.worker_status(*node).is_none_or(|status| status.alive) {
                self.worker_status.insert(*node, WorkerStatus { alive: false, since: at });
            }
        }
        for node in self.nodes.values_mut() {
            // The raft group is another one. Who was to go would be forgotten for running nothing that is known.
            (node.raft, node.leaving) = (None, false);
            // What was granted is forgotten: all arm anew before anything automatic is placed.
            node.lease.standing = Standing::Unarmed;
        }
        self.pass_generations(at);
        let raft = self.draw_raft(first);
        self.check = None;
        let cluster = self.cluster.as_mut().expect("it was there just now");
        cluster.epoch = cluster.epoch.next(tag);
        cluster.renewal = Some((how, at));
        cluster.absent = absent;
        cluster.takeover = Takeover::Free;
        let epoch = cluster.epoch;
        self.happened(OfCluster::Renewed { how, epoch });
        self.enter_events(0, at);
        self.dirty = Dirty::default();
        self.index_all();
        Ok((first, raft))
    }

    /// The members of an earlier epoch of which isn't known yet what they run: nothing is started while there is one.
    pub fn absent(&self) -> &BTreeMap<NodeId, Absence> {
        const NOBODY: &BTreeMap<NodeId, Absence> = &BTreeMap::new();
        self.cluster.as_ref().map_or(NOBODY, |cluster| &cluster.absent)
    }

    /// A member of an earlier epoch has given up what it had of it, and wants in again: the same host, with the same key.
    /// `bound` says to which role, given to which it was.
    pub(super) fn rejoin(
        &mut self,
        host: &NewNode,
        was_in: ClusterEpoch,
        bound: impl FnOnce(Option<NodeRole>) -> Option<NodeRole>,
    ) -> Result<Reply, Refusal> {
        self.check_level(&host.name, host.understands)?;
        let cluster = self.cluster.as_ref().expect("nothing else is carried out before there is one");
        let name = &host.name;
        let Some((node, _)) = self.node_named(name).filter(|(_, known)| known.key == host.key) else {
            return refuse(format!("{name}, with the key of this host, is no member of the cluster any more: {ANEW}"));
        };
        // Of this epoch it may have given its vote already, and it has forgotten to whom.
        if was_in == cluster.epoch {
            return refuse(format!("{name} gave up what it had of this very epoch of the cluster, {was_in}: {ANEW}"));
        }
        let Some(absence) = cluster.absent.get(&node).copied() else {
            return refuse(format!("{name} has rejoined the cluster already: {ANEW}"));
        };
        let member = self.node_mut(node)?;
        member.address.clone_from(&host.address);
        member.bound = bound(member.bound);
        let role = member.bound.unwrap_or(host.role);
        (member.understands, member.role, member.raft) = (host.understands, role, None);
        let raft = self.lacks_server(role).then(|| self.draw_raft(node));
        self.set_absence(node, Some(Absence::Rejoined));
        if absence == Absence::Away {
            self.happened_on(node, OfNode::Rejoined);
        }
        Ok(Reply::Admitted { node, raft })
    }

    /// A node that has rejoined runs nothing but what is placed on it.
    pub(super) fn return_node(&mut self, node: NodeId) -> Result<Reply, Refusal> {
        if !self.nodes.contains_key(&node) {
            return Err(not_a_member(node));
        }
        if self.absent().get(&node) == Some(&Absence::Away) {
            return refuse(format!("node {node} has not rejoined the cluster"));
        }
        self.set_absence(node, None);
        Ok(Reply::Done)
    }

    pub(super) fn set_absence(&mut self, node: NodeId, absence: Option<Absence>) {
        let cluster = self.cluster.as_mut().expect("nothing else is carried out before there is one");
        let before = match absence {
            Some(absence) => cluster.absent.insert(node, absence),
            None => cluster.absent.remove(&node),
        };
        self.dirty.cluster |= before != absence;
    }

    /// Refuses to start anything while somebody may run it already.
    pub(super) fn check_absent(&self) -> Result<(), Refusal> {
        match self.absent().keys().next() {
            Some(node) => refuse(format!("what node {node} runs is not known since the cluster began anew")),
            None => Ok(()),
        }
    }

    /// Has whatever is placed from now on be of a generation that was never placed before, also not by entries that are lost:
    /// what a host knows of it, above all that it was stopped, would be taken to be of the new one. So they go on from the time,
    /// in seconds.
    fn pass_generations(&mut self, at: Timestamp) {
        let floor = self.counters.generation_floor.max(Generation(at.0 / 1000));
        self.counters.generation_floor = floor;
        for instance in self.instances.values_mut() {
            instance.generation = instance.generation.max(floor);
        }
    }

    fn draw_raft(&mut self, node: NodeId) -> RaftId {
        let raft = self.next_raft();
        self.dirty.nodes.insert(node);
        self.nodes.get_mut(&node).expect("only a member is given one").raft = Some(raft);
        raft
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Fixture, TAG, id, is_refused, joiner, vm};
    use super::*;
    use crate::command::{Command, InstancePhase, TaskSpec};
    use crate::manifest::VmSpec;
    use crate::reconcile::{Attempts, reconcile};
    use crate::schedule::schedule;
    use crate::types::{Hash, Resources, TaskId, TokenId};
    use crate::unit::Observed;

    const HERE: NodeId = NodeId(1);

    const FIRST: ClusterEpoch = ClusterEpoch::FIRST;

    fn rejoin(node: u64, was_in: ClusterEpoch) -> Command {
        Command::Rejoin { host: joiner(node), was_in }
    }

    fn bury(node: u64) -> Command {
        Command::RemoveNode { node: NodeId(node), dead: true, abandon_volumes: false }
    }

    #[track_caller]
    /// Three nodes, of which the first has survived, with an instance on each of two and one that waits.
    fn recovered() -> Fixture {
        let mut fixture = Fixture::of_nodes(3);
        fixture.declare(&[("web", vm("web", 2))]);
        fixture.settle();
        fixture.report("web-0", InstancePhase::Running);
        fixture.declare(&[("web", vm("web", 3))]);
        let request = Resources { cpus: 1, memory_mib: 1, disk_mib: 0 };
        fixture.say(Command::RunTask(TaskSpec { command: vec!["true".to_owned()], request }));
        assert_eq!(fixture.begin_epoch(Beginner::Survivor(HERE)), Ok((HERE, RaftId(4))));
        fixture
    }

    fn starts(fixture: &Fixture) -> usize {
        let observed = Observed { armed: Some(fixture.state.nodes()[&HERE].lease.epoch), ..Observed::default() };
        reconcile(HERE, &fixture.state, &observed, &Attempts::default()).len()
    }

    #[test]
    fn a_survivor_begins_the_next_epoch_alone_and_the_others_are_away() {
        let fixture = recovered();
        let cluster = fixture.state.cluster().unwrap();
        assert_eq!((cluster.epoch, cluster.renewal.unwrap().0), (FIRST.next(TAG), Renewal::Recovered));
        assert_eq!(*fixture.state.absent(), [(NodeId(2), Absence::Away), (NodeId(3), Absence::Away)].into());
        let alive = |node| fixture.state.worker_status(NodeId(node)).unwrap().alive;
        assert_eq!([1, 2, 3].map(alive), [true, false, false]);
        assert_eq!(["web-0", "web-1", "web-2"].map(|id| fixture.node_of(id)), [Some(1), Some(2), None]);
    }

    #[test]
    fn nothing_is_started_anywhere_while_somebody_may_run_it() {
        let mut fixture = recovered();
        let place = Command::Place { instance: id("web-2"), node: HERE, generation: Generation(1) };
        is_refused(&fixture.decide(place), &["what node 2 runs is not known"]);
        is_refused(&fixture.decide(Command::PlaceTask { task: TaskId(1), node: HERE }), &["what node 2 runs"]);
        assert_eq!((schedule(&fixture.state), starts(&fixture)), (vec![], 0));
        assert_eq!(fixture.say(bury(2)), Reply::Done);
        assert_eq!((schedule(&fixture.state), starts(&fixture)), (vec![], 0), "the third may run it");
        assert_eq!(fixture.say(bury(3)), Reply::Done);
        assert_eq!(starts(&fixture), 1);
        fixture.settle();
        assert_eq!(["web-0", "web-1", "web-2"].map(|id| fixture.node_of(id)), [Some(1); 3]);
        assert_eq!(fixture.state.tasks()[&TaskId(1)].node, Some(HERE));
    }

    #[test]
    fn what_is_placed_in_a_new_epoch_is_of_no_generation_that_was_before() {
        let mut fixture = Fixture::of_nodes(1);
        fixture.declare(&[("web", vm("web", 1))]);
        fixture.settle();
        let began = fixture.index;
        fixture.begin_epoch(Beginner::Survivor(HERE)).unwrap();
        let generation = |fixture: &Fixture, id| fixture.placement(id).unwrap().unit.generation.0;
        assert_eq!(generation(&fixture, "web-0"), 1, "it runs on");
        fixture.declare(&[("web", vm("other", 1)), ("db", vm("db", 1))]);
        fixture.settle();
        assert_eq!(["web-0", "db-0"].map(|id| generation(&fixture, id)), [began + 1; 2]);
    }

    #[test]
    fn what_is_not_declared_any_more_is_stopped_all_the_same() {
        let mut fixture = recovered();
        fixture.declare(&[]);
        assert!(fixture.placement("web-0").unwrap().stopping);
        fixture.report("web-0", InstancePhase::Stopped);
        assert_eq!(fixture.placement("web-0"), None);
    }

    #[test]
    fn who_rejoins_is_the_node_that_it_was_with_a_fresh_raft_id_and_is_back_once_its_strays_are_gone() {
        let mut fixture = recovered();
        is_refused(&fixture.say(Command::ReturnNode { node: NodeId(2) }), &["has not rejoined"]);
        assert_eq!(fixture.say(rejoin(2, FIRST)), Reply::Admitted { node: NodeId(2), raft: Some(RaftId(5)) });
        assert_eq!(fixture.state.absent()[&NodeId(2)], Absence::Rejoined);
        assert_eq!(
            fixture.say(rejoin(2, FIRST)),
            Reply::Admitted { node: NodeId(2), raft: Some(RaftId(6)) },
            "asked for again"
        );
        assert_eq!(schedule(&fixture.state), []);
        assert_eq!(fixture.say(Command::ReturnNode { node: NodeId(2) }), Reply::Done);
        assert_eq!(fixture.state.absent().keys().collect::<Vec<_>>(), [&NodeId(3)]);
        assert_eq!(fixture.node_of("web-1"), Some(2), "what is placed on it stays there");
        assert_eq!(fixture.say(Command::ReturnNode { node: NodeId(2) }), Reply::Done, "it is said again");
        is_refused(&fixture.say(rejoin(2, FIRST)), &["node2 has rejoined the cluster already"]);
    }

    #[test]
    fn who_was_bound_to_a_role_by_a_token_rejoins_in_it() {
        let mut fixture = Fixture::of_nodes(1);
        let (token, secret) = (TokenId(7), Hash::of(b"secret"));
        fixture.say(Command::CreateToken { token, secret, ttl_ms: 3_600_000, role: Some(NodeRole::Worker) });
        let (expires, host) = (fixture.state.tokens()[&token].expires, joiner(2));
        fixture.say(Command::Redeem { token, secret, expires, host, was_in: None });
        fixture.begin_epoch(Beginner::Survivor(HERE)).unwrap();
        assert_eq!(fixture.say(rejoin(2, FIRST)), Reply::Admitted { node: NodeId(2), raft: None });
    }

    #[test]
    fn who_was_in_this_epoch_has_another_key_or_is_no_member_does_not_rejoin() {
        let mut fixture = recovered();
        is_refused(&fixture.say(rejoin(2, FIRST.next(TAG))), &["this very epoch"]);
        let elsewhere = fixture.clone().say(rejoin(2, FIRST.next(TAG + 1)));
        assert_eq!(
            elsewhere,
            Reply::Admitted { node: NodeId(2), raft: Some(RaftId(5)) },
            "it began anew on another host"
        );
        let host = NewNode { key: Hash::of(b"another key"), ..joiner(2) };
        is_refused(&fixture.say(Command::Rejoin { host, was_in: FIRST }), &["is no member"]);
        fixture.say(bury(2));
        is_refused(&fixture.say(rejoin(2, FIRST)), &["is no member"]);
    }

    #[test]
    fn who_is_absent_goes_only_as_dead_and_not_as_one_that_runs_nothing() {
        let mut fixture = Fixture::of_nodes(2);
        let remove = Command::RemoveNode { node: NodeId(2), dead: false, abandon_volumes: false };
        assert_eq!(fixture.say(remove.clone()), Reply::Done);
        fixture.begin_epoch(Beginner::Survivor(HERE)).unwrap();
        assert_eq!(fixture.state.emptied_nodes().next(), None, "it was being removed");
        is_refused(&fixture.say(remove), &["node2", "rejoin", "--dead"]);
        assert_eq!(fixture.say(bury(2)), Reply::Done);
        assert!(fixture.state.absent().is_empty());
    }

    #[test]
    fn a_newcomer_takes_a_members_name_only_where_that_one_is_said_to_be_dead() {
        let mut fixture = Fixture::of_nodes(2);
        fixture.declare(&[("web", VmSpec { disk_mib: 10, ..vm("web", 2) })]);
        fixture.settle();
        let host = NewNode { key: Hash::of(b"another key"), ..joiner(2) };
        let newcomer = |replaces| Beginner::Newcomer { host: &host, replaces };
        let taken = fixture.begin_epoch(newcomer(false)).unwrap_err().to_string();
        assert!(taken.contains("node2 is taken by a member at 10.0.0.2"), "{taken}");
        assert_eq!(fixture.begin_epoch(newcomer(true)), Ok((NodeId(3), RaftId(4))));
        assert_eq!(fixture.state.absent().keys().collect::<Vec<_>>(), [&NodeId(1)]);
        assert_eq!((fixture.node_of("web-0"), fixture.node_of("web-1")), (Some(1), None));
        assert_eq!(fixture.state.volumes_on(&id("web-1")), None);
    }

    #[test]
    fn only_a_member_of_a_cluster_begins_it_anew() {
        let mut fixture = Fixture::default();
        assert_eq!(fixture.begin_epoch(Beginner::Survivor(HERE)), Err(BeginError::NoCluster));
        let mut fixture = Fixture::of_nodes(1);
        let nobody = fixture.begin_epoch(Beginner::Survivor(NodeId(2)));
        assert_eq!(nobody, Err(BeginError::NotAMember { node: NodeId(2) }));
        let host = NewNode { understands: crate::types::Level(0), ..joiner(3) };
        let old = fixture.begin_epoch(Beginner::Newcomer { host: &host, replaces: false });
        assert!(matches!(old, Err(BeginError::Refused(why)) if why.contains("too old")));
    }
}
