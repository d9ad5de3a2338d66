//! A server passes on to the leader what nodes say to it, many at once: the leader hears of all by way of a few, however
//! many hosts there are, and their connections stay as they are when another one leads.
//!
//! ```text
//!   Lease, Beat ──▶ queue ── one batch at a time ──▶ this node's loop, where it leads
//!                                              └───▶ whoever leads
//! ```

use blixard_core::types::NodeId;
use tokio::sync::{mpsc, oneshot};

use super::Handle;
use crate::transport::{Denials, Heartbeat, LeaseError};

/// Most that wait: by far more than hosts follow one server.
const QUEUE: usize = 16_384;
/// Most that are passed on at once.
const BATCH: usize = 4096;

/// A heartbeat on its way.
pub(super) struct Passing {
    heartbeat: Heartbeat,
    /// Who waits for the node that leads, which has then renewed the lease.
    answer: Option<oneshot::Sender<Result<NodeId, LeaseError>>>,
}

/// Where heartbeats wait, and where they are taken from.
pub(super) fn queue() -> (mpsc::Sender<Passing>, mpsc::Receiver<Passing>) {
    mpsc::channel(QUEUE)
}

/// Passes on what waits, until it is dropped.
pub(super) async fn run(handle: Handle, mut waiting: mpsc::Receiver<Passing>) {
    let mut batch = Vec::new();
    while waiting.recv_many(&mut batch, BATCH).await > 0 {
        // Who has given up says it again.
        batch.retain(|passing| passing.answer.as_ref().is_none_or(|answer| !answer.is_closed()));
        let passed = handle.pass(batch.iter().map(|passing| passing.heartbeat).collect()).await;
        let (leader, denials) = match passed {
            Ok((leader, denials)) => (Ok(leader), denials),
            Err(error) => (Err(error), Vec::new()),
        };
        let denials = denials.into_iter().chain(std::iter::repeat(None));
        for (Passing { answer, .. }, denial) in batch.drain(..).zip(denials) {
            let answered = denial.map_or_else(|| leader.clone(), |why| Err(LeaseError::Denied(why)));
            // Nobody waits, or not any more.
            let _ = answer.map(|answer| answer.send(answered));
        }
    }
}

impl Handle {
    /// Has whoever leads hear that a node is there, and renew its lease where it wants that; the node that leads.
    ///
    /// # Errors
    /// Within a few seconds; `NoLeader` where this node is no server.
    pub async fn relay(&self, heartbeat: Heartbeat) -> Result<NodeId, LeaseError> {
        let (answer, answered) = oneshot::channel();
        self.queue(Passing { heartbeat, answer: Some(answer) })?;
        answered.await.unwrap_or(Err(LeaseError::NoLeader))
    }

    /// The same for one that has no lease, and which isn't told.
    pub(super) fn relay_presence(&self, node: NodeId) {
        // It is said again.
        let _ = self.queue(Passing { heartbeat: Heartbeat { node, epoch: None }, answer: None });
    }

    fn queue(&self, passing: Passing) -> Result<(), LeaseError> {
        let serving = self.serving.as_ref().ok_or(LeaseError::NoLeader)?;
        serving.relay.try_send(passing).map_err(|_| LeaseError::NoLeader)
    }

    async fn pass(&self, heartbeats: Vec<Heartbeat>) -> Result<(NodeId, Denials), LeaseError> {
        let mut leaders = self.leaders.clone();
        let leader = *leaders.borrow_and_update();
        if self.leads() {
            return Ok((self.node(), self.take_heartbeats(heartbeats).await?));
        }
        let to = leader.and_then(|raft| self.directory.borrow().node_of(raft)).ok_or(LeaseError::NoLeader)?;
        tokio::select! {
            denials = self.transport.pass_heartbeats(to, &heartbeats) => Ok((to, denials?)),
            // Whoever leads now is asked sooner than this one gives up.
            _ = leaders.changed() => Err(LeaseError::NoLeader),
        }
    }
}
