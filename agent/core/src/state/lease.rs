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

#[cfg(test)]
mod tests;

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

    /// Whether an arming is the one that its epoch began with: it comes again where its answer was lost.
    pub fn is_armed_by(&self, expected: NodeEpoch, nonce: Nonce) -> bool {
        expected.next() == self.epoch && self.arming().is_some_and(|arming| arming.nonce == nonce)
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
        if member.lease.is_armed_by(expected, nonce) {
            return Ok(Reply::Done);
        }
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

    /// An instance runs no more where it was placed, which is told as this.
    pub(super) fn free(&mut self, id: &InstanceId, what: OfInstance) {
        let instance = self.instances.get_mut(id).expect("what is placed is there");
        if let Some(placement) = instance.placement.take() {
            self.happened_to(id, placement.node, what);
        }
        self.dirty.instances.insert(id.clone());
        self.drop_if_removed(id);
    }
}
