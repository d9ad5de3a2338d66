//! How a node ceases to be a member: what it runs goes first, then its vote, then it is forgotten.
//!
//! Ids are never given out twice, so an id that was given out and is nobody's is a removed node's: there is no list of
//! them that could grow or get lost.

use super::nodes::not_a_member;
use super::{LostBecause, OfInstance, OfNode, Refusal, State, refuse};
use crate::command::{Reply, TaskPhase};
use crate::types::{Exit, InstanceId, NodeId, Timestamp};

/// Most names of instances in a refusal.
const NAMED: usize = 3;

impl State {
    /// Whether this id was once a member's and isn't any more.
    pub fn is_removed(&self, node: NodeId) -> bool {
        node <= self.newest_node() && !self.nodes.contains_key(&node)
    }

    /// The last id that was given to a node.
    pub fn newest_node(&self) -> NodeId {
        self.counters.node
    }

    /// A node that is being removed and has nothing to run any more.
    pub fn emptied_nodes(&self) -> impl Iterator<Item = NodeId> {
        let leaving = self.nodes.iter().filter(|(_, node)| node.leaving).map(|(id, _)| *id);
        leaving.filter(|node| self.is_empty(*node))
    }

    /// Whether it has nothing to run.
    pub fn is_empty(&self, node: NodeId) -> bool {
        self.placed_on(node).next().is_none() && self.tasks_on(node).next().is_none()
    }

    /// A person wants a node out of the cluster. With `dead` they say that it runs nothing and never will again.
    pub(super) fn remove_node(
        &mut self,
        node: NodeId,
        dead: bool,
        abandon_volumes: bool,
        at: Timestamp,
    ) -> Result<Reply, Refusal> {
        let member = self.nodes.get(&node).ok_or_else(|| not_a_member(node))?;
        let name = member.name.clone();
        let leaving = self.nodes.iter().find(|(id, other)| other.leaving && **id != node).map(|(_, other)| other);
        // A dead one has nothing to wait for, and who leaves may have to wait until it is gone.
        if let Some(other) = leaving.filter(|_| !dead) {
            return refuse(format!("{} is being removed: wait until it is gone, one node goes at a time", other.name));
        }
        if self.nodes.iter().all(|(id, other)| *id == node || other.leaving) {
            return refuse(format!("{name} is the only node: a cluster without one would be none"));
        }
        let is_alive = self.worker_status(node).is_some_and(|status| status.alive);
        if dead && is_alive {
            return refuse(format!(
                "{name} answers, so it isn't dead: shut it down first, or leave out --dead, and what it runs is moved"
            ));
        }
        if !dead && self.absent().contains_key(&node) {
            return refuse(format!(
                "what {name} runs is not known since the cluster began anew: let it rejoin first, or, if it is gone for \
                 good, and nothing runs on it, say so with --dead"
            ));
        }
        if !dead && !is_alive && !self.is_empty(node) {
            return refuse(format!(
                "{name} does not answer, and may still run {}: if it is gone for good, and nothing runs on it, say so \
                 with --dead",
                listed(self.placed_on(node).map(InstanceId::to_string), "a task")
            ));
        }
        let at_home: Vec<_> = self.at_home(node).collect();
        if !at_home.is_empty() && !abandon_volumes {
            return refuse(format!(
                "the volumes of {} are on {name}, and are lost with it: to give them up, say so with --abandon-volumes",
                listed(at_home.iter().map(InstanceId::to_string), "")
            ));
        }
        self.abandon_volumes(node);
        if dead {
            self.bury(node, at);
        } else {
            let member = self.nodes.get_mut(&node).expect("it was there just now");
            let was_leaving = std::mem::replace(&mut member.leaving, true);
            self.dirty.nodes.insert(node);
            if !was_leaving {
                self.happened_on(node, OfNode::Leaving);
            }
        }
        Ok(Reply::Done)
    }

    /// The instances whose volumes are on a node.
    fn at_home(&self, node: NodeId) -> impl Iterator<Item = InstanceId> {
        self.instances.keys().filter(move |id| self.volumes_on(id) == Some(node)).cloned()
    }

    pub(super) fn abandon_volumes(&mut self, node: NodeId) {
        for id in self.at_home(node).collect::<Vec<_>>() {
            self.instances.get_mut(&id).expect("it was there just now").volumes_on = None;
            self.dirty.instances.insert(id);
        }
    }

    /// The leader has seen that a node which is being removed runs nothing and has no vote.
    pub(super) fn forget_node(&mut self, node: NodeId) -> Result<Reply, Refusal> {
        let member = self.nodes.get(&node).ok_or_else(|| not_a_member(node))?;
        if !member.leaving {
            return refuse(format!("{} is not being removed", member.name));
        }
        if !self.is_empty(node) {
            return refuse(format!("{} still has something to run", member.name));
        }
        self.drop_node(node);
        Ok(Reply::Done)
    }

    /// What a dead node ran runs nowhere: that is a person's word.
    pub(super) fn bury(&mut self, node: NodeId, at: Timestamp) {
        let placed: Vec<InstanceId> = self.placed_on(node).cloned().collect();
        for id in &placed {
            self.free(id, OfInstance::Lost(LostBecause::Removed));
        }
        self.end_tasks(node, "its node was removed as dead", at);
        self.drop_node(node);
    }

    /// What a node was to run once has ended with it.
    pub(super) fn end_tasks(&mut self, node: NodeId, why: &str, at: Timestamp) {
        let tasks: Vec<_> = self.tasks_on(node).collect();
        for id in tasks {
            let task = self.tasks.get_mut(&id).expect("what is placed is there");
            task.phase = Some(TaskPhase::Ended(Exit::HostRestarted));
            task.phase_since = at;
            why.clone_into(&mut task.message);
            self.dirty.tasks.insert(id);
        }
    }

    fn drop_node(&mut self, node: NodeId) {
        self.happened_on(node, OfNode::Removed);
        self.nodes.remove(&node);
        self.worker_status.remove(&node);
        self.dirty.nodes.insert(node);
        self.dirty.workers.insert(node);
        self.dirty.worker_status.insert(node);
        self.dirty.leases.insert(node);
        if self.held.remove(&node).is_some() {
            self.dirty.held.insert(node);
        }
        self.set_absence(node, None);
        self.go_on_rotating();
    }
}

/// The first few, and how many more there are; `nothing` where there is none.
fn listed(mut names: impl Iterator<Item = String>, nothing: &str) -> String {
    let shown: Vec<String> = names.by_ref().take(NAMED).collect();
    match (shown.is_empty(), names.count()) {
        (true, _) => nothing.to_owned(),
        (false, 0) => shown.join(", "),
        (false, more) => format!("{} and {more} more", shown.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Fixture, id, is_refused, joiner, vm};
    use super::*;
    use crate::command::{Command, InstancePhase, TaskSpec};
    use crate::manifest::VmSpec;
    use crate::types::{RaftId, Resources, TaskId};

    fn remove(node: u64) -> Command {
        Command::RemoveNode { node: NodeId(node), dead: false, abandon_volumes: false }
    }

    fn bury(node: u64) -> Command {
        Command::RemoveNode { node: NodeId(node), dead: true, abandon_volumes: false }
    }

    fn silence(fixture: &mut Fixture, node: u64) {
        fixture.decide(Command::SetWorkerAlive { node: NodeId(node), alive: false });
    }

    #[track_caller]
    /// Two nodes, with a VM on the first.
    fn placed(spec: VmSpec) -> Fixture {
        let mut fixture = Fixture::of_nodes(2);
        fixture.declare(&[("web", spec)]);
        fixture.settle();
        assert_eq!(fixture.node_of("web-0"), Some(1));
        fixture
    }

    #[test]
    fn what_a_leaving_node_runs_is_stopped_and_placed_elsewhere_and_then_it_is_forgotten() {
        let mut fixture = placed(vm("web", 1));
        assert_eq!(fixture.say(remove(1)), Reply::Done);
        fixture.settle();
        assert!(
            fixture.placement("web-0").unwrap().stopping,
            "it is confirmed to have stopped before it runs elsewhere"
        );
        assert_eq!(fixture.state.emptied_nodes().next(), None);
        is_refused(&fixture.decide(Command::ForgetNode { node: NodeId(1) }), &["node1", "still has something"]);
        fixture.report("web-0", InstancePhase::Stopped);
        fixture.settle();
        assert_eq!(fixture.node_of("web-0"), Some(2));
        assert_eq!(fixture.state.emptied_nodes().collect::<Vec<_>>(), [NodeId(1)]);
        assert_eq!(fixture.decide(Command::ForgetNode { node: NodeId(1) }), Reply::Done);
        assert!(fixture.state.is_removed(NodeId(1)) && !fixture.state.is_removed(NodeId(2)));
        assert!(!fixture.state.is_removed(NodeId(3)), "it may come yet");
    }

    #[test]
    fn a_name_is_free_once_its_node_is_gone_and_the_ids_are_fresh() {
        let mut fixture = Fixture::of_nodes(2);
        silence(&mut fixture, 2);
        assert_eq!(fixture.say(bury(2)), Reply::Done);
        let again = fixture.say(Command::Admit(joiner(2)));
        assert_eq!(again, Reply::Admitted { node: NodeId(3), raft: Some(RaftId(3)) });
        assert!(fixture.state.is_removed(NodeId(2)));
    }

    #[test]
    fn what_a_dead_node_ran_is_placed_elsewhere_at_a_persons_word_alone() {
        let mut fixture = placed(vm("web", 1));
        let request = Resources { cpus: 1, memory_mib: 1, disk_mib: 0 };
        fixture.say(Command::RunTask(TaskSpec { command: vec!["true".to_owned()], request }));
        fixture.decide(Command::PlaceTask { task: TaskId(1), node: NodeId(1) });
        is_refused(&fixture.say(bury(1)), &["node1 answers", "--dead"]);
        silence(&mut fixture, 1);
        is_refused(&fixture.say(remove(1)), &["node1 does not answer", "web-0", "--dead"]);
        fixture.settle();
        assert_eq!(fixture.node_of("web-0"), Some(1), "nothing is placed elsewhere before");
        assert_eq!(fixture.say(bury(1)), Reply::Done);
        fixture.settle();
        let moved = fixture.placement("web-0").unwrap();
        assert_eq!((moved.node, moved.unit.generation.0), (NodeId(2), 2));
        let task = &fixture.state.tasks()[&TaskId(1)];
        assert!(task.is_over() && task.message.contains("removed"), "{task:?}");
    }

    #[test]
    fn volumes_are_given_up_only_where_a_person_says_so() {
        let mut fixture = placed(VmSpec { disk_mib: 10, ..vm("web", 1) });
        is_refused(&fixture.say(remove(1)), &["web-0", "node1", "--abandon-volumes"]);
        let command = Command::RemoveNode { node: NodeId(1), dead: false, abandon_volumes: true };
        assert_eq!(fixture.say(command), Reply::Done);
        fixture.settle();
        fixture.report("web-0", InstancePhase::Stopped);
        fixture.settle();
        assert_eq!(fixture.node_of("web-0"), Some(2));
        assert_eq!(fixture.state.volumes_on(&id("web-0")), Some(NodeId(2)));
    }

    #[test]
    fn a_dead_node_goes_though_another_one_is_being_removed() {
        let mut fixture = Fixture::of_nodes(3);
        assert_eq!(fixture.say(remove(3)), Reply::Done);
        silence(&mut fixture, 2);
        assert_eq!(fixture.say(bury(2)), Reply::Done, "node3 may keep its vote until node2 has lost its own");
        assert!(fixture.state.is_removed(NodeId(2)) && fixture.state.nodes()[&NodeId(3)].leaving);
        silence(&mut fixture, 1);
        is_refused(&fixture.say(bury(1)), &["node1 is the only node"]);
    }

    #[test]
    fn one_node_goes_at_a_time_and_the_last_one_stays() {
        let mut fixture = Fixture::of_nodes(3);
        assert_eq!(fixture.say(remove(3)), Reply::Done);
        is_refused(&fixture.say(remove(2)), &["node3 is being removed"]);
        assert_eq!(fixture.say(remove(3)), Reply::Done, "it is asked for again");
        fixture.decide(Command::ForgetNode { node: NodeId(3) });
        is_refused(&fixture.say(remove(3)), &["not a member"]);
        assert_eq!(fixture.say(remove(2)), Reply::Done);
        fixture.decide(Command::ForgetNode { node: NodeId(2) });
        is_refused(&fixture.say(remove(1)), &["the only node"]);
        is_refused(&fixture.decide(Command::ForgetNode { node: NodeId(1) }), &["not being removed"]);
    }

    #[test]
    fn nothing_is_placed_on_a_node_that_leaves() {
        let mut fixture = Fixture::of_nodes(2);
        fixture.say(remove(1));
        fixture.declare(&[("web", vm("web", 2))]);
        fixture.settle();
        assert_eq!((fixture.node_of("web-0"), fixture.node_of("web-1")), (Some(2), Some(2)));
    }
}
