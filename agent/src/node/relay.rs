//! A server passes on to the leader what nodes say to it, many at once: the leader hears of all by way of a few, however
//! many hosts there are, and their connections stay as they are when another one leads.
//!
//! ```text
//!   Lease, Beat ──▶ queue ── one batch at a time ──▶ this node's loop, where it leads
//!                                              └───▶ whoever leads
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use blixard_core::types::NodeId;
use tokio::sync::{mpsc, oneshot};

use super::{Followers, Handle};
use crate::transport::{Beat, Denials, Heartbeat, LeaseError};

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

/// What a server does for the nodes that follow it.
#[derive(Clone)]
pub(super) struct Serving {
    pub followers: Followers,
    /// Where heartbeats wait.
    relay: mpsc::Sender<Passing>,
    /// Whether what was relayed last has come to whoever leads.
    passes: Arc<AtomicBool>,
}

impl Serving {
    /// And where the heartbeats are taken from that wait.
    pub fn new(followers: Followers) -> (Self, mpsc::Receiver<Passing>) {
        let (relay, waiting) = mpsc::channel(QUEUE);
        (Self { followers, relay, passes: Arc::new(AtomicBool::new(true)) }, waiting)
    }
}

/// Passes on what waits, until it is dropped.
pub(super) async fn run(handle: Handle, mut waiting: mpsc::Receiver<Passing>) {
    let mut batch = Vec::new();
    while waiting.recv_many(&mut batch, BATCH).await > 0 {
        // Who has given up says it again.
        batch.retain(|passing| passing.answer.as_ref().is_none_or(|answer| !answer.is_closed()));
        if batch.is_empty() {
            continue;
        }
        let outcome = handle.pass(batch.iter().map(|passing| passing.heartbeat).collect()).await;
        let (leader, denials) = match outcome {
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

    /// A member that is no server says that it is there, and whoever leads hears of it; who that is, and which servers there
    /// are.
    pub fn heard(&self, node: NodeId) -> Beat {
        // It is said again.
        let _ = self.queue(Passing { heartbeat: Heartbeat { node, epoch: None }, answer: None });
        // Who is only said to lead is no help to it.
        let passes = self.serving.as_ref().is_some_and(|serving| serving.passes.load(Ordering::Relaxed));
        let servers = self.directory.borrow().only_servers();
        let applied = self.read(|_, standing| standing.applied).unwrap_or_default();
        Beat { leader: self.leader().filter(|_| passes), servers, applied }
    }

    fn queue(&self, passing: Passing) -> Result<(), LeaseError> {
        let serving = self.serving.as_ref().ok_or(LeaseError::NoLeader)?;
        serving.relay.try_send(passing).map_err(|_| LeaseError::NoLeader)
    }

    /// The node that leads, as far as this one knows.
    fn leader(&self) -> Option<NodeId> {
        self.leaders.borrow().and_then(|raft| self.directory.borrow().node_of(raft))
    }

    async fn pass(&self, heartbeats: Vec<Heartbeat>) -> Result<(NodeId, Denials), LeaseError> {
        let passed = self.pass_to_leader(heartbeats).await;
        if let Some(serving) = &self.serving {
            serving.passes.store(passed.is_ok(), Ordering::Relaxed);
        }
        passed
    }

    async fn pass_to_leader(&self, heartbeats: Vec<Heartbeat>) -> Result<(NodeId, Denials), LeaseError> {
        let mut leaders = self.leaders.clone();
        // Before it is looked at: nothing is missed.
        leaders.mark_unchanged();
        if self.leads() {
            return Ok((self.node(), self.take_heartbeats(heartbeats).await?));
        }
        let to = self.leader().ok_or(LeaseError::NoLeader)?;
        tokio::select! {
            denials = self.transport.pass_heartbeats(to, &heartbeats) => Ok((to, denials?)),
            // Whoever leads now is asked sooner than this one gives up.
            _ = leaders.changed() => Err(LeaseError::NoLeader),
        }
    }
}

#[cfg(test)]
mod tests {
    use blixard_core::state::State;
    use blixard_core::types::NodeEpoch;

    use super::super::known::{self, Standing};
    use super::super::{Common, INBOX, News};
    use super::*;
    use crate::transport::tests::rig::{Cluster, UNANSWERED, node, raft, wait_for};

    fn renewal(of: u64, epoch: NodeEpoch) -> Heartbeat {
        Heartbeat { node: NodeId(of), epoch: Some(epoch) }
    }

    #[tokio::test]
    async fn each_hears_what_the_leader_says_to_it_and_nobody_waits_for_one_that_leads_no_more() {
        let Cluster { nodes, .. } = Cluster::pair().await;
        let [leader, own] = nodes.try_into().ok().unwrap();
        let common = Common::of(node(1), &own);
        let (inbox, _inputs) = mpsc::channel(INBOX);
        let (serving, waiting) = Serving::new(Followers::default());
        let news = News::default();
        let known = known::Shared::new(State::default(), Standing::outside(node(1)));
        let handle = Handle::new(&common, inbox, known, &news, Some(serving));
        let relaying = tokio::spawn(run(handle.clone(), waiting));

        assert_eq!(handle.relay(renewal(7, NodeEpoch(2))).await, Err(LeaseError::NoLeader));
        news.leader.send_replace(Some(raft(0)));
        let denied = |why: &str| Err(LeaseError::Denied(why.to_owned()));
        let (one, other) = tokio::join!(handle.relay(renewal(7, NodeEpoch(2))), handle.relay(renewal(8, NodeEpoch(3))));
        assert_eq!((one, other), (denied("7 at 2"), denied("8 at 3")));

        let asked = || leader.recorder.heartbeats.load(Ordering::Relaxed);
        let before = asked();
        let (unanswered, ()) = tokio::join!(handle.relay(renewal(7, UNANSWERED)), async {
            wait_for("the leader to be asked", || (), || asked() > before).await;
            news.leader.send_replace(None);
        });
        assert_eq!(unanswered, Err(LeaseError::NoLeader));
        news.leader.send_replace(Some(raft(0)));
        assert_eq!(handle.heard(NodeId(8)).leader, None, "nothing has come to it yet");
        assert_eq!(handle.relay(Heartbeat { node: NodeId(7), epoch: None }).await, Ok(node(0)));
        assert_eq!(handle.heard(NodeId(8)).leader, Some(node(0)));
        relaying.abort();
    }
}
