//! A node is there, and has its lease renewed: it says so to a server, which passes on to the leader what many say.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use blixard_core::types::{NodeEpoch, NodeId};
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

use super::link::describe;
use super::peer::{PeerService, status_of};
use super::proto::peer_client::PeerClient;
use super::proto::{
    self, Granted, HeartbeatsReply, HeartbeatsRequest, LeaseReply, LeaseRequest, NotLeader, lease_reply,
};
use super::{Refused, Shared, Transport};

/// How long an answer may take: with four servers that don't, a fifth is asked within the shortest lease of the profiles.
const RENEWAL_TIMEOUT: Duration = Duration::from_millis(500);
/// How long one for many may, while nobody else is known to lead.
const PASSING_TIMEOUT: Duration = Duration::from_secs(1);

/// A node is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heartbeat {
    pub node: NodeId,
    /// The one for which its lease is to be renewed, if it is.
    pub epoch: Option<NodeEpoch>,
}

/// Why a lease isn't renewed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    #[error("nobody is known to lead")]
    NoLeader,
    #[error("cannot reach node {to}: {reason}")]
    Unreachable { to: NodeId, reason: String },
    #[error("the leader doesn't renew it: {0}")]
    Denied(String),
}

/// For each of several heartbeats, in order, why its lease isn't renewed, if it was to be.
pub type Denials = Vec<Option<String>>;

/// The stream by which this node's lease is renewed: the last one, unless it has failed.
#[derive(Default)]
pub(super) struct Renewals(Mutex<Option<Renewing>>);

impl Renewals {
    fn last(&self) -> MutexGuard<'_, Option<Renewing>> {
        self.0.lock().expect("nothing panics while it holds this lock")
    }
}

/// Each request has its answer before the next one is made.
struct Renewing {
    by: NodeId,
    requests: mpsc::Sender<LeaseRequest>,
    replies: Streaming<LeaseReply>,
}

impl Renewing {
    async fn begin(client: &mut PeerClient<Channel>, by: NodeId) -> Result<Self, Status> {
        let (requests, to_send) = mpsc::channel(1);
        let replies = client.lease(ReceiverStream::new(to_send)).await?.into_inner();
        Ok(Self { by, requests, replies })
    }

    async fn ask(mut self, request: LeaseRequest) -> Result<(Self, LeaseReply), Status> {
        let ended = || Status::unavailable("it has ended the stream");
        self.requests.send(request).await.map_err(|_| ended())?;
        let reply = self.replies.message().await?.ok_or_else(ended)?;
        Ok((self, reply))
    }
}

impl Transport {
    /// Has this node's lease renewed by way of server `by`; the node that leads.
    ///
    /// # Errors
    /// Within half a second.
    pub async fn renew_lease(&self, by: NodeId, epoch: NodeEpoch) -> Result<NodeId, LeaseError> {
        let request = LeaseRequest { epoch: epoch.0 };
        // It isn't put back before its answer is here: nothing else is taken for that, however late it comes.
        let last = self.renewals.last().take().filter(|renewing| renewing.by == by);
        let asked = self.say(by, RENEWAL_TIMEOUT, async |mut client| {
            if let Some(renewing) = last
                && let Ok(asked) = renewing.ask(request).await
            {
                return Ok(asked);
            }
            Renewing::begin(&mut client, by).await?.ask(request).await
        });
        let (renewing, reply) = asked.await?;
        *self.renewals.last() = Some(renewing);
        match reply.result {
            Some(lease_reply::Result::Granted(Granted { leader })) => Ok(NodeId(leader)),
            Some(lease_reply::Result::Denied(why)) => Err(LeaseError::Denied(why)),
            Some(lease_reply::Result::NotLeader(_)) | None => Err(LeaseError::NoLeader),
        }
    }

    /// Passes on to server `to` what others have said to this one.
    ///
    /// # Errors
    /// Within a second; `NoLeader` if it doesn't lead.
    pub async fn pass_heartbeats(&self, to: NodeId, heartbeats: &[Heartbeat]) -> Result<Denials, LeaseError> {
        let encode = |beat: &Heartbeat| proto::Heartbeat { node: beat.node.0, epoch: beat.epoch.map(|e| e.0) };
        let request = HeartbeatsRequest { heartbeats: heartbeats.iter().map(encode).collect() };
        let reply =
            self.say(to, PASSING_TIMEOUT, async |mut client| client.heartbeats(request).await).await?.into_inner();
        if reply.not_leader.is_some() || reply.denials.len() != heartbeats.len() {
            return Err(LeaseError::NoLeader);
        }
        Ok(reply.denials.into_iter().map(|why| (!why.is_empty()).then_some(why)).collect())
    }

    async fn say<T>(
        &self,
        to: NodeId,
        max_wait: Duration,
        call: impl AsyncFnOnce(PeerClient<Channel>) -> Result<T, Status>,
    ) -> Result<T, LeaseError> {
        let unreachable = |reason: String| LeaseError::Unreachable { to, reason };
        let channel = self.shared.links.channel(to);
        let channel = channel.ok_or_else(|| unreachable("it is not in the directory of servers".to_owned()))?;
        let reply = tokio::time::timeout(max_wait, call(PeerClient::new(channel))).await;
        let reply = reply.map_err(|_| unreachable("no answer in time".to_owned()))?;
        reply.map_err(|status| unreachable(describe(&status)))
    }
}

/// What is answered to who has its lease renewed.
pub(super) type LeaseReplies = BoxStream<'static, Result<LeaseReply, Status>>;

pub(super) fn renew_leases(shared: Arc<Shared>, of: NodeId, requests: Streaming<LeaseRequest>) -> LeaseReplies {
    stream::try_unfold((shared, requests), move |(shared, mut requests)| async move {
        let Some(LeaseRequest { epoch }) = requests.message().await? else { return Ok(None) };
        if shared.directory.borrow().is_removed(of) {
            return Err(status_of(&Refused::Removed { peer: of }));
        }
        let heartbeat = Heartbeat { node: of, epoch: Some(NodeEpoch(epoch)) };
        let result = match shared.inbound.heartbeat(heartbeat).await {
            Ok(leader) => lease_reply::Result::Granted(Granted { leader: leader.0 }),
            Err(LeaseError::Denied(why)) => lease_reply::Result::Denied(why),
            Err(LeaseError::NoLeader | LeaseError::Unreachable { .. }) => {
                lease_reply::Result::NotLeader(NotLeader::default())
            }
        };
        Ok(Some((LeaseReply { result: Some(result) }, (shared, requests))))
    })
    .boxed()
}

impl PeerService {
    pub(super) async fn take_heartbeats(
        &self,
        request: Request<HeartbeatsRequest>,
    ) -> Result<Response<HeartbeatsReply>, Status> {
        let (peer, ..) = self.authenticate(&request)?;
        if self.shared.directory.borrow().get(peer).is_none_or(|member| member.raft.is_none()) {
            return Err(Status::permission_denied(format!("node {peer} is no server")));
        }
        let decode = |proto::Heartbeat { node, epoch }: proto::Heartbeat| Heartbeat {
            node: NodeId(node),
            epoch: epoch.map(NodeEpoch),
        };
        let heartbeats = request.into_inner().heartbeats.into_iter().map(decode).collect();
        let reply = match self.shared.inbound.heartbeats(heartbeats).await {
            Ok(denials) => HeartbeatsReply {
                not_leader: None,
                denials: denials.into_iter().map(Option::unwrap_or_default).collect(),
            },
            Err(_) => HeartbeatsReply { not_leader: Some(NotLeader::default()), denials: Vec::new() },
        };
        Ok(Response::new(reply))
    }
}
