//! Leases: every node has its own renewed by the leader, and the leader ends those that are over.

use std::time::Duration;

use blixard_core::types::{NodeEpoch, NodeId};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::reads::Renewal;
use super::{Attempt, Handle, Input, Node, SILENT_TICKS, Waiting};
use crate::boot_time;
use crate::transport::LeaseError;

/// How long a renewal waits for a quorum.
const PATIENCE: Duration = Duration::from_secs(1);

impl Handle {
    /// Has the leader renew this node's lease: the time counts from before this call.
    ///
    /// # Errors
    /// Within a second or two.
    pub async fn renew_lease(&self, epoch: NodeEpoch) -> Result<(), LeaseError> {
        if self.leads() {
            return self.renew_lease_of(self.node(), epoch).await;
        }
        let leader = *self.leaders.borrow();
        let to = leader.and_then(|raft| self.directory.borrow().node_of(raft)).ok_or(LeaseError::NoLeader)?;
        let renewed = self.transport.renew_lease(to, epoch).await;
        self.answers.send_replace(matches!(renewed, Ok(()) | Err(LeaseError::Denied(_))));
        renewed
    }

    /// Renews a node's lease, if this one leads.
    pub(crate) async fn renew_lease_of(&self, node: NodeId, epoch: NodeEpoch) -> Result<(), LeaseError> {
        let (answer, answered) = oneshot::channel();
        let waiting = Waiting { deadline: (Instant::now() + PATIENCE).into_std(), answer };
        let renewal = Renewal { node, epoch, waiting };
        self.send(Input::Renew(renewal)).map_err(|_| LeaseError::NoLeader)?;
        match answered.await {
            Ok(Ok(granted)) => granted.map_err(|denial| LeaseError::Denied(denial.to_string())),
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

    /// A quorum has confirmed that this node led when it was asked.
    pub(super) fn grant(&mut self, Renewal { node, epoch, waiting }: Renewal) {
        if !self.may_decide() {
            return waiting.fail(Attempt::NotLeader(self.driver.soft().leader));
        }
        self.liveness.heard(node, self.ticks);
        let granted = self.grants.grant(&self.known.look().state, node, epoch, boot_time::now());
        waiting.answer(granted);
    }
}
