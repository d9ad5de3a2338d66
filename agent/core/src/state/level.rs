//! The level: what `apply` does, raised only when every node understands the next one.

use super::{OfCluster, Refusal, State, refuse};
use crate::command::Reply;
use crate::types::{Level, NodeName};

impl State {
    /// What `apply` does now; nothing before there is a cluster.
    pub fn level(&self) -> Option<Level> {
        self.cluster.as_ref().map(|cluster| cluster.level)
    }

    /// The level that every node understands, if that is a newer one.
    pub fn next_level(&self) -> Option<Level> {
        let understood = self.nodes.values().map(|node| node.understands).min();
        understood.filter(|level| Some(*level) > self.level())
    }

    pub(super) fn raise_level(&mut self, level: Level) -> Result<Reply, Refusal> {
        if let Some(node) = self.nodes.values().find(|node| node.understands < level) {
            return refuse(format!("{} understands level {} and not {level}", node.name, node.understands));
        }
        let Some(cluster) = self.cluster.as_mut().filter(|cluster| cluster.level < level) else {
            return refuse(format!("the cluster is at level {level} or a newer one already"));
        };
        cluster.level = level;
        self.dirty.cluster = true;
        self.happened(OfCluster::Level(level));
        Ok(Reply::Done)
    }

    /// Refuses a node that could not carry out what the log holds from now on.
    pub(super) fn check_level(&self, name: &NodeName, understands: Level) -> Result<(), Refusal> {
        match self.level() {
            Some(level) if understands < level => refuse(format!(
                "the agent of {name} is too old: the cluster is at feature level {level}, and it understands \
                 {understands} at most: upgrade it"
            )),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{BOOT, Fixture, address, joiner, worker};
    use crate::command::{Command, NewNode, Reply};
    use crate::types::{Level, NodeId, NodeRole};

    fn upgrade(fixture: &mut Fixture, node: u64, understands: u64) -> Reply {
        let understands = Level(understands);
        fixture.say(Command::RegisterWorker {
            node: NodeId(node),
            address: address(node),
            understands,
            role: NodeRole::Auto,
            worker: worker(),
            secrets: None,
            boot: BOOT,
        })
    }

    fn is_refused(reply: &Reply, about: &str) -> bool {
        matches!(reply, Reply::Refused(why) if why.contains(about))
    }

    #[test]
    fn a_level_is_raised_once_every_node_understands_it() {
        let mut fixture = Fixture::of_nodes(3);
        assert_eq!((fixture.state.level(), fixture.state.next_level()), (Some(Level::NEWEST), None));
        upgrade(&mut fixture, 1, 3);
        upgrade(&mut fixture, 2, 2);
        assert_eq!(fixture.state.next_level(), None);
        assert!(is_refused(&fixture.decide(Command::RaiseLevel { level: Level(2) }), "node3 understands level 1"));
        upgrade(&mut fixture, 3, 4);
        assert_eq!(fixture.state.next_level(), Some(Level(2)));
        assert_eq!(fixture.decide(Command::RaiseLevel { level: Level(2) }), Reply::Done);
        assert_eq!((fixture.state.level(), fixture.state.next_level()), (Some(Level(2)), None));
        assert!(is_refused(&fixture.decide(Command::RaiseLevel { level: Level(2) }), "already"));
    }

    #[test]
    fn an_agent_that_is_older_than_the_clusters_level_is_no_member_of_it() {
        let mut fixture = Fixture::of_nodes(1);
        upgrade(&mut fixture, 1, 2);
        fixture.decide(Command::RaiseLevel { level: Level(2) });
        assert!(is_refused(&fixture.say(Command::Admit(joiner(2))), "the agent of node2 is too old"));
        assert!(is_refused(&upgrade(&mut fixture, 1, 1), "the agent of node1 is too old"));
        let newer = NewNode { understands: Level(2), ..joiner(2) };
        assert!(matches!(fixture.say(Command::Admit(newer)), Reply::Admitted { .. }));
    }
}
