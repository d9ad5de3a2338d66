//! Leases: every node has its own renewed by the leader, and the leader ends those that are over.

use std::time::Duration;

use blixard_core::types::{NodeEpoch, NodeId};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::reads::Heartbeats;
use super::{Attempt, Handle, Input, Node, SILENT_TICKS, Waiting};
use crate::boot_time;
use crate::transport::{Denials, Heartbeat, LeaseError};

/// How long heartbeats wait for a quorum.
const PATIENCE: Duration = Duration::from_secs(1);
/// So often a server that this node reaches may know of nobody who leads, as while one is elected, until another is asked.
const MAX_MISSES: usize = 4;

/// What came of the renewals of this node's lease.
#[derive(Clone, Copy, Default)]
pub(super) struct Renewed {
    /// The node that leads, if it has renewed it just now.
    pub leader: Option<NodeId>,
    /// The server by way of which it was renewed last.
    pub helped: Option<NodeId>,
    /// How much speaks for asking another one.
    pub misses: usize,
}

impl Renewed {
    /// Which of these servers to ask next: first the one that is followed, then who helped last, then the others, as the
    /// followed one may be cut off from the leader, or from this node.
    fn whom(self, followed: Option<NodeId>, servers: &[NodeId]) -> Option<NodeId> {
        let preferred = [followed, self.helped].into_iter().flatten().filter(|server| servers.contains(server));
        let mut order: Vec<NodeId> = Vec::new();
        for server in preferred.chain(servers.iter().copied()) {
            if !order.contains(&server) {
                order.push(server);
            }
        }
        order.get((self.misses / MAX_MISSES).checked_rem(order.len())?).copied()
    }

    fn after(self, by: NodeId, renewed: &Result<NodeId, LeaseError>) -> Self {
        let misses = match renewed {
            Ok(leader) => return Self { leader: Some(*leader), helped: Some(by), misses: 0 },
            Err(LeaseError::Denied(_)) => 0,
            Err(LeaseError::NoLeader) => self.misses + 1,
            Err(LeaseError::Unreachable { .. }) => self.misses + MAX_MISSES,
        };
        Self { leader: None, misses, ..self }
    }
}

impl Handle {
    /// Has the leader renew this node's lease: the time counts from before this call.
    ///
    /// # Errors
    /// Within a few seconds.
    pub async fn renew_lease(&self, epoch: NodeEpoch) -> Result<(), LeaseError> {
        if self.serving.is_some() {
            return self.relay(Heartbeat { node: self.node(), epoch: Some(epoch) }).await.map(drop);
        }
        let (last, followed, mut servers) = (*self.renewed.borrow(), *self.followed.borrow(), self.servers());
        // Not all turn to the same one.
        let own = usize::try_from(self.node().0).unwrap_or_default();
        let first = own.checked_rem(servers.len()).unwrap_or_default();
        servers.rotate_left(first);
        let by = last.whom(followed, &servers).ok_or(LeaseError::NoLeader)?;
        let renewed = self.transport.renew_lease(by, epoch).await;
        self.renewed.send_replace(last.after(by, &renewed));
        renewed.map(drop)
    }

    /// Takes what others have said to this node or to another server, if this one leads.
    ///
    /// # Errors
    /// `NoLeader`: it doesn't, or no quorum confirms it within a second.
    pub async fn take_heartbeats(&self, heartbeats: Vec<Heartbeat>) -> Result<Denials, LeaseError> {
        let (answer, answered) = oneshot::channel();
        let waiting = Waiting { deadline: (Instant::now() + PATIENCE).into_std(), answer };
        let heartbeats = Heartbeats { heartbeats, waiting };
        self.send(Input::Heartbeats(heartbeats)).map_err(|_| LeaseError::NoLeader)?;
        match answered.await {
            Ok(Ok(denials)) => Ok(denials),
            _ => Err(LeaseError::NoLeader),
        }
    }
}

impl Node {
    /// What is automatic on a node whose lease is over is to start elsewhere; unless many are silent at once: then it is
    /// likelier that the network is lost, and takeover waits.
    pub(super) fn end_leases(&mut self) {
        let is_silent = |node| node != self.own && self.liveness.is_silent_for(node, self.ticks, SILENT_TICKS);
        let decisions = self.grants.decide(&self.known.look().state, is_silent, boot_time::now());
        for decision in decisions {
            tracing::warn!(?decision, "leases are over, or takeover is frozen or goes on");
            self.decide(decision);
        }
    }

    /// A quorum has confirmed that this node led when they were passed to it.
    pub(super) fn grant(&mut self, Heartbeats { heartbeats, waiting }: Heartbeats) {
        if !self.may_decide() {
            return waiting.fail(Attempt::NotLeader(self.driver.soft().leader));
        }
        let (known, now) = (self.known.look(), boot_time::now());
        let denial = |Heartbeat { node, epoch }| {
            self.liveness.heard(node, self.ticks);
            let denial = self.grants.grant(&known.state, node, epoch?, now).err()?;
            Some(denial.to_string())
        };
        waiting.answer(heartbeats.into_iter().map(denial).collect());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_server_is_asked_once_one_cannot_be_reached_or_has_known_of_no_leader_for_long() {
        let answer = |word| match word {
            'g' => Ok(NodeId(9)),
            'd' => Err(LeaseError::Denied(String::new())),
            'n' => Err(LeaseError::NoLeader),
            _ => Err(LeaseError::Unreachable { to: NodeId(1), reason: String::new() }),
        };
        let after = |by, words: &str| {
            words.chars().map(answer).fold(Renewed::default(), |last, of| last.after(NodeId(by), &of))
        };
        let servers = [3, 1, 2, 4].map(NodeId);
        let next = |renewed: Renewed| renewed.whom(Some(NodeId(1)), &servers).map(|node| node.0);
        let asked = [("", 1), ("u", 3), ("uu", 2), ("uuuu", 1), ("nnn", 1), ("nnnn", 3), ("nnnng", 1), ("ud", 1)];
        for (words, server) in asked {
            assert_eq!(next(after(1, words)), Some(server), "after {words:?}");
        }
        assert_eq!(next(after(4, "gu")), Some(4), "who helped last is second");
        assert_eq!(next(after(9, "gu")), Some(3), "and is no server any more");
        assert_eq!((after(1, "ug").leader, after(1, "gn").leader), (Some(NodeId(9)), None));
        assert_eq!(after(1, "").whom(None, &[]), None);
    }
}
