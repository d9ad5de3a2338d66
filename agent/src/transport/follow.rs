//! A member follows what it has to do, and says that it is there.

use std::sync::Arc;
use std::time::Duration;

use blixard_core::types::{Address, InvalidValue, NodeId};
use futures_util::stream::BoxStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use super::connect;
use super::join::Connection;
use super::link::describe;
use super::proto::follow_reply::Told as Reply;
use super::proto::peer_client::PeerClient;
use super::proto::{BeatReply, BeatRequest, FollowReply, FollowRequest};
use super::{Directory, MAX_FRAME, Member, Tasks, Transport};
use crate::identity::{Clock, Expected, NodeIdentity, member_client};

/// How long the answer to a beat may take.
const BEAT_TIMEOUT: Duration = Duration::from_secs(1);

/// Assignments, encoded, one after the other.
pub type Told = BoxStream<'static, Vec<u8>>;

/// What is answered to a beat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beat {
    pub leader: Option<NodeId>,
    /// The servers that it knows, and as of which log entry.
    pub servers: Directory,
    pub applied: u64,
}

/// Why a server is no help to a member that follows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FollowError {
    #[error("cannot reach node {to}: {reason}")]
    Unreachable { to: NodeId, reason: String },
    #[error("node {to} refused: {reason}")]
    Refused { to: NodeId, reason: String },
    #[error("node {to} says that this node was removed from the cluster")]
    Removed { to: NodeId },
}

/// What a member has to do, as one server tells it.
pub struct Assignments {
    from: NodeId,
    stream: Streaming<FollowReply>,
}

impl Assignments {
    /// The next, encoded.
    ///
    /// # Errors
    /// Why there are no more.
    pub async fn next(&mut self) -> Result<Vec<u8>, FollowError> {
        match self.stream.message().await {
            Ok(Some(FollowReply { told: Some(Reply::Assignment(assignment)) })) => Ok(assignment),
            Ok(Some(FollowReply { told: Some(Reply::Removed(true)) })) => Err(FollowError::Removed { to: self.from }),
            Ok(Some(_)) => Err(FollowError::Refused { to: self.from, reason: "it gave no reason".to_owned() }),
            Ok(None) => Err(FollowError::Unreachable { to: self.from, reason: "it has ended the stream".to_owned() }),
            Err(status) => Err(of(self.from, &status)),
        }
    }
}

impl Transport {
    /// What this node has to do, told by server `to`.
    ///
    /// # Errors
    /// `Unreachable`, `Refused`; another server may do better.
    pub async fn follow(&self, to: NodeId) -> Result<Assignments, FollowError> {
        call_follow(self.shared.links.channel(to), to).await
    }

    /// Tells `to` that this node is there.
    ///
    /// # Errors
    /// `Unreachable`, `Refused`, each within a second.
    pub async fn beat(&self, to: NodeId) -> Result<Beat, FollowError> {
        call_beat(self.shared.links.channel(to), to).await
    }

    /// What the first of the configured servers says to a beat that answers, whoever is at its address.
    pub async fn beat_configured(&self) -> Option<Beat> {
        let identity = self.shared.identity.borrow().clone()?;
        for server in self.shared.servers.iter().filter(|server| server.name != self.shared.own.name) {
            if let Some(beat) = beat_at(&server.address, &identity, self.shared.clock).await {
                return Some(beat);
            }
        }
        None
    }
}

async fn call_follow(channel: Option<Channel>, to: NodeId) -> Result<Assignments, FollowError> {
    let mut client = client(channel, to)?.max_decoding_message_size(MAX_FRAME);
    match client.follow(FollowRequest {}).await {
        Ok(reply) => Ok(Assignments { from: to, stream: reply.into_inner() }),
        Err(status) => Err(of(to, &status)),
    }
}

async fn call_beat(channel: Option<Channel>, to: NodeId) -> Result<Beat, FollowError> {
    let mut client = client(channel, to)?;
    let reply = match tokio::time::timeout(BEAT_TIMEOUT, client.beat(BeatRequest {})).await {
        Ok(Ok(reply)) => reply.into_inner(),
        Ok(Err(status)) => return Err(of(to, &status)),
        Err(_) => return Err(FollowError::Unreachable { to, reason: "no answer in time".to_owned() }),
    };
    Beat::try_from(reply).map_err(|error| FollowError::Refused { to, reason: error.to_string() })
}

/// The answer of whichever member of the cluster is at this address; nothing where none answers.
async fn beat_at(address: &Address, identity: &NodeIdentity, clock: Clock) -> Option<Beat> {
    let mut config = member_client(identity, Expected::AnyMember).ok()?;
    config.time_provider = Arc::new(clock);
    let stream = connect::connect(address, Arc::new(config)).await.ok()?;
    let tasks = Connection(Tasks::default());
    let call = async {
        let channel = connect::over(stream, &tasks.0).await.ok()?;
        PeerClient::new(channel).beat(BeatRequest {}).await.ok()
    };
    let reply = tokio::time::timeout(BEAT_TIMEOUT, call).await.ok()??;
    Beat::try_from(reply.into_inner()).ok()
}

impl TryFrom<BeatReply> for Beat {
    type Error = InvalidValue;

    fn try_from(BeatReply { leader, servers, applied }: BeatReply) -> Result<Self, InvalidValue> {
        let servers = servers.iter().map(Member::decode).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { leader: (leader != 0).then_some(NodeId(leader)), servers: Directory::of(servers), applied })
    }
}

impl From<Beat> for BeatReply {
    fn from(Beat { leader, servers, applied }: Beat) -> Self {
        let servers = servers.servers().map(|(node, member)| member.encode(node)).collect();
        Self { leader: leader.map_or(0, |leader| leader.0), servers, applied }
    }
}

fn client(channel: Option<Channel>, to: NodeId) -> Result<PeerClient<Channel>, FollowError> {
    let unknown = || FollowError::Unreachable { to, reason: "it is not in the directory of servers".to_owned() };
    channel.map(PeerClient::new).ok_or_else(unknown)
}

fn of(to: NodeId, status: &Status) -> FollowError {
    let reason = describe(status);
    match status.code() {
        tonic::Code::FailedPrecondition | tonic::Code::PermissionDenied => FollowError::Refused { to, reason },
        _ => FollowError::Unreachable { to, reason },
    }
}
