//! What can happen, and what is said of it. New kinds go to the end of their list: the position is part of the encoding.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Event;
use crate::state::Renewal;
use crate::types::{
    Availability, ClusterEpoch, Exit, Failover, Generation, Hash, InstanceId, Level, NodeEpoch, NodeName,
};

/// Nodes are named: a name outlives its node here.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Happening {
    Instance { instance: InstanceId, node: NodeName, what: OfInstance },
    Node { node: NodeName, what: OfNode },
    Cluster(OfCluster),
}

/// What happens to an instance on a node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum OfInstance {
    /// It is to run there.
    Placed { generation: Generation, failover: Failover, because: PlacedBecause },
    /// It runs, for the first time since it was placed.
    Started,
    /// It ended, and was started again where it is: so often since it was placed. Said of 1, 2, 4, 8, … times.
    Restarted { times: u32 },
    /// It ended, and isn't started again.
    Ended(Exit),
    /// It is to stop.
    Stopping(StopBecause),
    /// Nothing of it runs there any more.
    Stopped,
    /// It runs there no more, though nobody there has said so.
    Lost(LostBecause),
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum PlacedBecause {
    /// It was nowhere.
    Waited,
    /// It was there already, and is declared otherwise now.
    Changed,
    /// It was on this node, perhaps the same one, and has stopped there.
    Stopped { on: NodeName },
    /// It was lost with this node.
    Lost { from: NodeName },
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum StopBecause {
    Undeclared,
    /// A person has stopped its VM.
    Asked,
    /// A person wants it elsewhere.
    Moved {
        to: NodeName,
    },
    Draining,
    /// Its node is being removed.
    Leaving,
    /// Its node can't run what is declared now.
    Unsuitable,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum LostBecause {
    /// The lease of its node has ended.
    Fenced,
    /// Its node has begun another epoch, as it does after a restart.
    Armed,
    /// A person has said that its node is dead.
    ConfirmedDead,
    /// Its node was removed as dead.
    Removed,
}

/// What happens to a node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum OfNode {
    Joined,
    /// It is a member again, of another epoch of the cluster.
    Rejoined,
    /// It isn't heard any more.
    Silent,
    /// It is heard again.
    Back,
    Armed {
        epoch: NodeEpoch,
    },
    Fenced {
        epoch: NodeEpoch,
    },
    ConfirmedDead,
    Availability(Availability),
    /// It is being removed.
    Leaving,
    /// It is no member any more.
    Removed,
    /// It is to be a server.
    Enlisted,
    /// It carries a manifest that was head before, which is held.
    Held {
        manifest: Hash,
    },
    /// Its host has booted.
    Booted,
}

/// What happens to the cluster.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum OfCluster {
    /// A manifest is the head.
    Head {
        manifest: Hash,
        from: String,
    },
    /// Too many nodes are silent at once.
    TakeoverFrozen,
    /// A person lets it go on all the same.
    TakeoverResumed,
    /// No longer too many are silent.
    TakeoverFree,
    Level(Level),
    /// It was begun anew.
    Renewed {
        how: Renewal,
        epoch: ClusterEpoch,
    },
}

impl Event {
    /// One word for what has happened.
    pub fn kind(&self) -> &'static str {
        match &self.what {
            Happening::Instance { what, .. } => match what {
                OfInstance::Placed { .. } => "placed",
                OfInstance::Started => "started",
                OfInstance::Restarted { .. } => "restarted",
                OfInstance::Ended(_) => "ended",
                OfInstance::Stopping(_) => "stopping",
                OfInstance::Stopped => "stopped",
                OfInstance::Lost(_) => "lost",
            },
            Happening::Node { what, .. } => match what {
                OfNode::Joined => "joined",
                OfNode::Rejoined => "rejoined",
                OfNode::Silent => "silent",
                OfNode::Back => "back",
                OfNode::Armed { .. } => "armed",
                OfNode::Fenced { .. } => "fenced",
                OfNode::ConfirmedDead => "dead",
                OfNode::Availability(Availability::Active) => "uncordoned",
                OfNode::Availability(Availability::Cordoned) => "cordoned",
                OfNode::Availability(Availability::Draining) => "draining",
                OfNode::Availability(Availability::Rebooting) => "rebooting",
                OfNode::Leaving => "leaving",
                OfNode::Removed => "removed",
                OfNode::Enlisted => "enlisted",
                OfNode::Held { .. } => "held",
                OfNode::Booted => "booted",
            },
            Happening::Cluster(what) => match what {
                OfCluster::Head { .. } => "head",
                OfCluster::TakeoverFrozen => "frozen",
                OfCluster::TakeoverResumed => "resumed",
                OfCluster::TakeoverFree => "free",
                OfCluster::Level(_) => "level",
                OfCluster::Renewed { .. } => "renewed",
            },
        }
    }

    /// The instance that it is about, if it is about one.
    pub fn instance(&self) -> Option<&InstanceId> {
        match &self.what {
            Happening::Instance { instance, .. } => Some(instance),
            _ => None,
        }
    }

    /// The node that it is about, if it is about one.
    pub fn node(&self) -> Option<&NodeName> {
        match &self.what {
            Happening::Instance { node, .. } | Happening::Node { node, .. } => Some(node),
            Happening::Cluster(_) => None,
        }
    }

    /// Why, or with what; empty where the word for it says all.
    pub fn reason(&self) -> String {
        match &self.what {
            Happening::Instance { what, .. } => what.reason(),
            Happening::Node { what, .. } => what.reason(),
            Happening::Cluster(what) => what.reason(),
        }
    }
}

impl OfInstance {
    fn reason(&self) -> String {
        match self {
            Self::Placed { generation, failover, because } => {
                format!("{because} (generation {generation}, {failover} failover)")
            }
            Self::Restarted { times: 1 } => "it ended, and was started again".to_owned(),
            Self::Restarted { times } => format!("it ended, and was started again: {times} times by now"),
            Self::Ended(exit) => exit.to_string(),
            Self::Stopping(because) => because.to_string(),
            Self::Lost(because) => because.to_string(),
            Self::Started | Self::Stopped => String::new(),
        }
    }
}

impl fmt::Display for PlacedBecause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Waited => f.write_str("it was nowhere"),
            Self::Changed => f.write_str("it is declared otherwise"),
            Self::Stopped { on } => write!(f, "it was on {on}, and has stopped there"),
            Self::Lost { from } => write!(f, "it was on {from}, and was lost there"),
        }
    }
}

impl fmt::Display for StopBecause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Undeclared => f.write_str("it is no longer declared"),
            Self::Asked => f.write_str("its VM is to be stopped"),
            Self::Moved { to } => write!(f, "it is to move to {to}"),
            Self::Draining => f.write_str("its node is being drained"),
            Self::Leaving => f.write_str("its node is being removed"),
            Self::Unsuitable => f.write_str("its node won't do for what is declared now"),
        }
    }
}

impl fmt::Display for LostBecause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fenced => "the lease of its node has ended",
            Self::Armed => "its node has armed anew, so nothing of before runs there",
            Self::ConfirmedDead => "a person has said that its node is dead",
            Self::Removed => "its node was removed as dead",
        })
    }
}

impl OfNode {
    fn reason(&self) -> String {
        match self {
            Self::Silent => "it does not answer".to_owned(),
            Self::Back => "it answers again".to_owned(),
            Self::Armed { epoch } => format!("it is at epoch {epoch}"),
            Self::Fenced { epoch } => format!("its lease of epoch {epoch} has ended"),
            Self::ConfirmedDead => "a person has said so".to_owned(),
            Self::Enlisted => "it is to be a server".to_owned(),
            Self::Held { manifest } => format!("it carries {}, an earlier manifest", manifest.short()),
            Self::Joined | Self::Rejoined | Self::Availability(_) | Self::Leaving | Self::Removed | Self::Booted => {
                String::new()
            }
        }
    }
}

impl OfCluster {
    fn reason(&self) -> String {
        match self {
            Self::Head { manifest, from } => format!("manifest {} of {from}", manifest.short()),
            Self::TakeoverFrozen => "many nodes fell silent at once: nothing starts elsewhere".to_owned(),
            Self::TakeoverResumed => "a person lets instances start elsewhere".to_owned(),
            Self::TakeoverFree => "enough nodes answer again".to_owned(),
            Self::Level(level) => format!("the feature level is {level}"),
            Self::Renewed { how: Renewal::Recovered, epoch } => format!("recovered: epoch {epoch} begins"),
            Self::Renewed { how: Renewal::Restored, epoch } => format!("restored from a backup: epoch {epoch} begins"),
        }
    }
}
