//! The calls between members: the stream of Raft messages, the rows of snapshots, and forwarded commands.

use std::sync::Arc;
use std::time::Duration;

use blixard_core::driver::Position;
use blixard_core::types::{ClusterId, NodeId, RaftId};
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status, Streaming};

use super::connect;
use super::heartbeat::{LeaseReplies, renew_leases};
use super::incarnations::{Hello, Verdict};
use super::link::describe;
use super::listener::Caller;
use super::proto::follow_reply::Told;
use super::proto::forward_reply::Result as Reply;
use super::proto::peer_client::PeerClient;
use super::proto::peer_server::Peer;
use super::proto::{
    BeatReply, BeatRequest, FollowReply, FollowRequest, ForwardReply, ForwardRequest, HeartbeatsReply,
    HeartbeatsRequest, LeaseRequest, NotLeader, RaftEnd, RaftFrame, SnapshotChunk, SnapshotRequest, Unknown,
};
use super::{ForwardError, MAX_COMMAND, MAX_FRAME, Member, Refused, Shared, directory, gate, proto, snapshot};

/// Longest that a forwarded command is waited for, whatever its sender asks.
const MAX_FORWARD: Duration = Duration::from_secs(120);

/// The server side.
pub struct PeerService {
    pub(super) shared: Arc<Shared>,
}

impl PeerService {
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The member that calls, this node, and their cluster.
    pub(super) fn authenticate<T>(&self, request: &Request<T>) -> Result<(NodeId, NodeId, ClusterId), Status> {
        let caller = request.extensions().get::<Caller>().expect("the listener adds it to each request");
        let identity = self.shared.identity.borrow().clone();
        match (caller.peer, identity) {
            (Some(peer), Some(identity)) => Ok((peer, identity.node, identity.cluster)),
            _ => Err(no_certificate()),
        }
    }

    /// Takes the word of a member that joined, or became a server, after what this node knows; of everybody else, the
    /// directory's. The raft id that it says it has.
    async fn meet(&self, peer: NodeId, introduction: &proto::Member) -> Option<RaftId> {
        let (_, member) = Member::decode(introduction).ok().filter(|(node, _)| *node == peer)?;
        let is_news = self.shared.directory.borrow().is_news(peer, &member);
        if is_news {
            self.shared.inbound.introduce(peer, member.clone()).await;
        }
        member.raft
    }

    /// What this node, which is no server, says to a member that takes it for one: of a server that was away for long, none
    /// that it knows may be one, and it is perhaps none either.
    async fn turn_away(
        &self,
        peer: NodeId,
        own: NodeId,
        mut frames: Streaming<RaftFrame>,
    ) -> Result<Response<RaftEnd>, Status> {
        let introduction = frames.message().await?.and_then(|frame| frame.introduction);
        let claimed =
            introduction.filter(|member| member.node == peer.0).and_then(|member| directory::raft(member.raft));
        if claimed.is_some_and(|raft| self.shared.directory.borrow().is_spent(raft)) {
            return Ok(Response::new(RaftEnd { dismissed: true, ..RaftEnd::default() }));
        }
        Err(Status::unavailable(format!("node {own} is no server")))
    }

    /// What ends a stream that begins like this, if it has to end.
    fn judge(&self, peer: NodeId, hello: Hello) -> Option<RaftEnd> {
        let directory = self.shared.directory.borrow().clone();
        let verdict = self.shared.incarnations.judge(peer, hello, |node| directory.get(node).is_some());
        if verdict == Verdict::Superseded {
            let reason = "another process speaks for it, and both run: one has a copy of the other's disk";
            self.shared.noise.warn(format_args!("a stream of node {peer}: {reason}"));
        }
        end_of(verdict)
    }

    /// Returns what ends a stream of this process once another one speaks for its node.
    async fn succession(&self, peer: NodeId, hello: Option<Hello>) -> Option<RaftEnd> {
        match hello {
            Some(hello) => end_of(self.shared.incarnations.succession(peer, hello.incarnation).await),
            None => std::future::pending().await,
        }
    }

    async fn dismissal(&self, peer: NodeId, claimed: Option<RaftId>) {
        match claimed {
            Some(raft) => self.shared.dismissal(peer, raft).await,
            None => std::future::pending().await,
        }
    }
}

#[tonic::async_trait]
impl Peer for PeerService {
    async fn raft(&self, request: Request<Streaming<RaftFrame>>) -> Result<Response<RaftEnd>, Status> {
        let (peer, own, cluster) = self.authenticate(&request)?;
        if self.shared.raft().is_none() {
            return self.turn_away(peer, own, request.into_inner()).await;
        }
        self.shared.links.called_by(peer);
        self.shared.inbound.called();
        let mut frames = request.into_inner();
        let removal = self.shared.removal(peer);
        tokio::pin!(removal);
        let (mut claimed, mut hello) = (None, None);
        let refuse = |reason: &str| self.shared.noise.warn(format_args!("a stream of node {peer}: {reason}"));
        loop {
            let next = tokio::select! {
                biased;
                () = &mut removal => return Ok(Response::new(RaftEnd { removed: true, ..RaftEnd::default() })),
                () = self.dismissal(peer, claimed) => {
                    return Ok(Response::new(RaftEnd { dismissed: true, ..RaftEnd::default() }));
                }
                Some(end) = self.succession(peer, hello) => return Ok(Response::new(end)),
                next = frames.message() => next,
            };
            let frame = match next {
                Ok(Some(frame)) => frame,
                Ok(None) => return Ok(Response::new(RaftEnd::default())),
                Err(status) => {
                    if status.code() == Code::OutOfRange {
                        refuse(status.message());
                    }
                    return Err(status);
                }
            };
            if let Some(introduction) = &frame.introduction {
                claimed = self.meet(peer, introduction).await;
            }
            let directory = self.shared.directory.borrow().clone();
            if claimed.is_some_and(|raft| directory.is_dismissed(peer, raft)) {
                return Ok(Response::new(RaftEnd { dismissed: true, ..RaftEnd::default() }));
            }
            let messages = match gate::open(&frame, cluster, peer, &directory) {
                Ok(messages) => messages,
                Err(Refused::Removed { .. }) => {
                    return Ok(Response::new(RaftEnd { removed: true, ..RaftEnd::default() }));
                }
                Err(error) => {
                    refuse(&error.to_string());
                    return Err(status_of(&error));
                }
            };
            if frame.introduction.is_some() {
                let said = Hello { incarnation: frame.incarnation, token: frame.token };
                if let Some(end) = self.judge(peer, said) {
                    return Ok(Response::new(end));
                }
                hello = Some(said);
            }
            self.shared.inbound.step(messages);
        }
    }

    type FollowStream = BoxStream<'static, Result<FollowReply, Status>>;

    async fn follow(&self, request: Request<FollowRequest>) -> Result<Response<Self::FollowStream>, Status> {
        let (peer, ..) = self.authenticate(&request)?;
        let reply = |told| Ok(FollowReply { told: Some(told) });
        if self.shared.directory.borrow().is_removed(peer) {
            return Ok(Response::new(tokio_stream::once(reply(Told::Removed(true))).boxed()));
        }
        let assignments = self.shared.inbound.follow(peer).await;
        let assignments = assignments.map_err(|refusal| Status::unavailable(refusal.0))?;
        Ok(Response::new(assignments.map(move |assignment| reply(Told::Assignment(assignment))).boxed()))
    }

    async fn beat(&self, request: Request<BeatRequest>) -> Result<Response<BeatReply>, Status> {
        let (peer, ..) = self.authenticate(&request)?;
        if self.shared.directory.borrow().is_removed(peer) {
            return Err(status_of(&Refused::Removed { peer }));
        }
        Ok(Response::new(self.shared.inbound.beat(peer).into()))
    }

    type LeaseStream = LeaseReplies;

    async fn lease(&self, request: Request<Streaming<LeaseRequest>>) -> Result<Response<Self::LeaseStream>, Status> {
        let (peer, ..) = self.authenticate(&request)?;
        Ok(Response::new(renew_leases(self.shared.clone(), peer, request.into_inner())))
    }

    async fn heartbeats(&self, request: Request<HeartbeatsRequest>) -> Result<Response<HeartbeatsReply>, Status> {
        self.take_heartbeats(request).await
    }

    type SnapshotStream = ReceiverStream<Result<SnapshotChunk, Status>>;

    async fn snapshot(&self, request: Request<SnapshotRequest>) -> Result<Response<Self::SnapshotStream>, Status> {
        let (peer, own, _) = self.authenticate(&request)?;
        let SnapshotRequest { index, term, after } = request.into_inner();
        let rows = self.shared.inbound.snapshot(peer, Position { index, term }).await;
        let rows = rows.ok_or_else(|| Status::not_found(format!("node {own} offers node {peer} no such snapshot")))?;
        let (out, chunks) = mpsc::channel(snapshot::CHUNKS_AHEAD);
        let served = snapshot::serve(rows, after, out);
        served.map_err(|error| Status::resource_exhausted(format!("node {own} can't read it now: {error}")))?;
        Ok(Response::new(ReceiverStream::new(chunks)))
    }

    async fn forward(&self, request: Request<ForwardRequest>) -> Result<Response<ForwardReply>, Status> {
        let (peer, own, _) = self.authenticate(&request)?;
        self.shared.directory.borrow().member(peer).map_err(|refused| status_of(&refused))?;
        let ForwardRequest { command, timeout_ms } = request.into_inner();
        let deadline = Instant::now() + Duration::from_millis(timeout_ms).min(MAX_FORWARD);
        let result = if command.len() > MAX_COMMAND {
            Reply::Refused(too_large(command.len()))
        } else {
            let forwarded = self.shared.inbound.forward(peer, command, deadline);
            match tokio::time::timeout_at(deadline, forwarded).await {
                Ok(Ok(outcome)) => Reply::Outcome(outcome),
                Ok(Err(ForwardError::NotLeader { leader, .. })) => {
                    Reply::NotLeader(NotLeader { leader: leader.map_or(0, |leader| leader.0) })
                }
                Ok(Err(ForwardError::Refused { reason, to })) if to == own => Reply::Refused(reason),
                Ok(Err(error @ (ForwardError::Refused { .. } | ForwardError::Unreachable { .. }))) => {
                    Reply::Refused(error.to_string())
                }
                Ok(Err(ForwardError::OutcomeUnknown { .. })) | Err(_) => Reply::Unknown(Unknown {}),
            }
        };
        Ok(Response::new(ForwardReply { result: Some(result) }))
    }
}

fn end_of(verdict: Verdict) -> Option<RaftEnd> {
    match verdict {
        Verdict::Speaks => None,
        Verdict::Prove(token) => Some(RaftEnd { prove: token, ..RaftEnd::default() }),
        Verdict::Superseded => Some(RaftEnd { superseded: true, ..RaftEnd::default() }),
    }
}

/// What whoever is no member is told.
pub fn no_certificate() -> Status {
    Status::unauthenticated("this call needs a client certificate of this node's cluster")
}

/// The one place where what the gate refuses becomes a status.
pub fn status_of(error: &Refused) -> Status {
    let code = match error {
        Refused::Cluster { .. }
        | Refused::Sender { .. }
        | Refused::From { .. }
        | Refused::Stranger { .. }
        | Refused::Removed { .. }
        | Refused::NoServer { .. } => Code::PermissionDenied,
        Refused::TooMany { .. } | Refused::TooLarge { .. } | Refused::Undecodable => Code::InvalidArgument,
    };
    Status::new(code, error.to_string())
}

fn too_large(bytes: usize) -> String {
    format!("the command has {bytes} bytes, and at most {MAX_COMMAND} are taken: make it smaller")
}

/// The client side of `Forward`.
pub async fn call_forward(
    channel: Channel,
    to: NodeId,
    command: Vec<u8>,
    deadline: Instant,
) -> Result<Vec<u8>, ForwardError> {
    if command.len() > MAX_COMMAND {
        return Err(ForwardError::Refused { to, reason: too_large(command.len()) });
    }
    let mut client = PeerClient::new(channel).max_decoding_message_size(MAX_FRAME);
    let left = deadline.saturating_duration_since(Instant::now());
    let timeout_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
    let call = client.forward(ForwardRequest { command, timeout_ms });
    let unknown = ForwardError::OutcomeUnknown { to };
    let reply = match tokio::time::timeout_at(deadline, call).await {
        Ok(Ok(reply)) => reply.into_inner(),
        Ok(Err(status)) => return Err(if was_sent(&status) { unknown } else { not_sent(to, &status) }),
        Err(_) => return Err(unknown),
    };
    match reply.result {
        Some(Reply::Outcome(outcome)) => Ok(outcome),
        Some(Reply::NotLeader(NotLeader { leader })) => {
            Err(ForwardError::NotLeader { to, leader: (leader != 0).then_some(NodeId(leader)) })
        }
        Some(Reply::Refused(reason)) => Err(ForwardError::Refused { to, reason }),
        Some(Reply::Unknown(Unknown {})) | None => Err(unknown),
    }
}

/// Whether the command may have reached the node that was to propose it.
fn was_sent(status: &Status) -> bool {
    // What the other side says before it looks at the command.
    let is_refused = matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied | Code::Unimplemented);
    connect::had_connection(status) && !is_refused
}

fn not_sent(to: NodeId, status: &Status) -> ForwardError {
    ForwardError::Unreachable { to, reason: describe(status) }
}
