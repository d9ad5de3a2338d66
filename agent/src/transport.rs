//! What nodes say to each other: Raft's messages, forwarded commands, and the questions of a host that wants to join.
//!
//! ```text
//!  event loop  ── send ──▶ link (a bounded queue a peer) ── mTLS, one stream ──▶ listener ──▶ gate ──▶ Inbound::step
//!  follower    ── snapshot ────────────────────────────── mTLS ────────────────▶ listener ──────────▶ Inbound::snapshot
//!  api         ── forward ─────────────────────────────── mTLS ────────────────▶ listener ──────────▶ Inbound::forward
//!  worker      ── follow ──────────────────────────────── mTLS ────────────────▶ listener ──────────▶ Inbound::follow
//!              ── beat, renew_lease ───────────────────── mTLS ────────────────▶ listener ──────────▶ Inbound::heartbeat
//!  server      ── pass_heartbeats ─────────────────────── mTLS ────────────────▶ listener ──────────▶ Inbound::heartbeats
//!  new host    ── ask_all, join ── TLS + proofs of the cluster secret ─────────▶ listener ──▶ door ──▶ Inbound::admit
//!              ── redeem ───────── TLS, the authority known by a token ────────▶ listener ──▶ door ──▶ Inbound::admit
//!              ── join_declared ── TLS, the same by configuration + signature ─▶ listener ──▶ door ──▶ Inbound::admit
//! ```

mod bootstrap;
mod connect;
mod directory;
mod door;
mod follow;
mod gate;
mod heartbeat;
mod incarnations;
mod join;
mod link;
mod listener;
mod passing;
mod peer;
mod redeem;
mod renew;
mod snapshot;
mod strangers;
mod tasks;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use blixard_core::driver::Position;
use blixard_core::types::{
    Address, ClusterEpoch, ClusterId, Hash, Level, NodeId, NodeName, NodeRole, PublicKey, RaftId, SecretId, Server,
    Timestamp, TokenId,
};
use raft::eraftpb::Message;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::identity::{
    Clock, IdentityError, Issued, NodeIdentity, Secrets, ServerSide, TlsError, member_server, stranger_server,
};

pub use bootstrap::{Decision, TwoClusters, decide};
pub use connect::ConnectError;
pub use directory::{Directory, Member};
pub use follow::{Assignments, Beat, FollowError, Told};
pub use gate::Refused;
pub use heartbeat::{Denials, Heartbeat, LeaseError};
pub use join::{Answer, AskError, Asking, JoinError, Joined, ask_all, join, join_declared};
pub use passing::{ApiRequest, ApiResponse, NOT_HERE, PassError, WholeRequest};
pub use redeem::redeem;
pub use renew::Certificate;
pub use renew::RenewError;
pub use snapshot::Chunks;
use tasks::Tasks;

/// Largest encoded command that is forwarded: 5 MiB.
pub const MAX_COMMAND: usize = 5 << 20;
/// Largest encoded Raft message that is sent: room for one command and what Raft adds.
pub const MAX_MESSAGE: usize = 6 << 20;
/// Largest frame of messages, or forwarded command with its envelope, that is decoded.
const MAX_FRAME: usize = 8 << 20;
/// How long a connection may say nothing before it is asked whether it lives: by its client, which may need it at any time,
/// and by the server, which waits for nothing on it.
const KEEPALIVE: Duration = Duration::from_secs(2);
const IDLE_KEEPALIVE: Duration = Duration::from_secs(10);
/// How long an answer to that may take.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(3);

/// The protocol, as compiled from `proto/peer.proto`.
#[allow(clippy::all, clippy::pedantic, reason = "generated code")]
mod proto {
    tonic::include_proto!("blixard.peer.v1");
}

/// What this node does about what others ask of it; the node room implements it.
#[tonic::async_trait]
pub trait Inbound: Send + Sync + 'static {
    /// Raft messages of one frame, in order, all of them from whom they say; must not block: a full queue drops them.
    ///
    /// What else they say may be anything: the driver judges it.
    fn step(&self, messages: Vec<Message>);
    /// Messages to `peer` were lost: its connection failed, or its queue is full. Must not block.
    fn unreachable(&self, peer: RaftId);
    /// A member has opened its stream to this one, and can be called. Must not block.
    fn called(&self);
    /// A member that this node hasn't heard of yet says who it is; returns once the directory has it.
    ///
    /// Its certificate says that it is one, and no raft id that this node has heard of is claimed by it.
    async fn introduce(&self, node: NodeId, member: Member);
    /// A member says that this node was removed from the cluster. Must not block.
    fn removed(&self, by: NodeId);
    /// A member says that this node is no server any more. Must not block.
    fn dismissed(&self, by: NodeId);
    /// A member says that another process speaks for this node, and that both run. Must not block.
    fn superseded(&self, by: NodeId);
    /// What `from` has to do, encoded; as of no earlier than this call, and again whenever it changes.
    ///
    /// A refusal's text is for the journal of `from`.
    async fn follow(&self, from: NodeId) -> Result<Told, Refusal>;
    /// A member that is no server says that it is there; the leader hears of it.
    fn beat(&self, from: NodeId) -> Beat;
    /// A member says that it is there, and has its lease renewed; the node that leads. Only a server answers.
    async fn heartbeat(&self, heartbeat: Heartbeat) -> Result<NodeId, LeaseError>;
    /// Takes what others have said to another server, if this one leads.
    async fn heartbeats(&self, heartbeats: Vec<Heartbeat>) -> Result<Denials, LeaseError>;
    /// What this node's own API answers; asked by another member on behalf of whoever asks there.
    async fn api(&self, question: ApiRequest) -> ApiResponse;
    /// Whether this node is in a cluster; it is told to whoever asks, secret or not.
    fn standing(&self) -> Standing;
    /// Proposes `command` if this node leads, and answers what applying it returned, by `deadline`.
    async fn forward(&self, from: NodeId, command: Vec<u8>, deadline: Instant) -> Result<Vec<u8>, ForwardError>;
    /// The rows of the snapshot at this position, if this node has announced it to `from`.
    async fn snapshot(&self, from: NodeId, at: Position) -> Option<Arc<dyn SnapshotRows>>;
    /// Makes a member of a host by what it has shown; on a follower, by way of the leader.
    ///
    /// A refusal's text is shown to the host's operator.
    async fn admit(&self, candidate: Candidate) -> Result<Admission, Refusal>;
    /// A certificate (DER) for the member whose key this request is about, by the authority whose certificate has this
    /// hash where it is known, else by the one that issues; what this node knows has to do, since a cluster whose
    /// certificates have all expired has no leader.
    ///
    /// # Errors
    /// There is none such, or this node can't sign.
    fn renew(&self, request: &[u8], issuer: Hash) -> Result<Vec<u8>, Refusal>;
}

/// The rows of one snapshot, in chunks.
pub trait SnapshotRows: Send + Sync + 'static {
    /// The chunk behind a token, empty for the first; and the next token, or nothing where it is the last. Blocks.
    ///
    /// # Errors
    /// A line that says why it can't be read.
    fn chunk(&self, after: &[u8]) -> Result<(Vec<u8>, Option<Vec<u8>>), String>;
}

/// Why the rows of a snapshot don't come.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    #[error("node {from} does not offer this snapshot (any more)")]
    Gone { from: NodeId },
    #[error("the snapshot of node {from} broke off: {reason}")]
    Broken { from: NodeId, reason: String },
}

/// Whether a node is in a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    Blank,
    Member(ClusterId),
}

/// A host that asks to become a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    pub name: NodeName,
    pub address: Address,
    /// Its public key, as `Authority::issue` takes it.
    pub request: Vec<u8>,
    /// The newest level that its agent understands.
    pub understands: Level,
    pub role: NodeRole,
    /// The epoch in which it was a member, if it was one.
    pub was_in: Option<ClusterEpoch>,
    pub credential: Credential,
}

/// By what a host is to be let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Credential {
    /// It has proved this cluster secret.
    Secret(SecretId),
    /// It has proved that it has this key, which the cluster is to have declared for its name.
    Key(PublicKey),
    /// It has shown a token, which the cluster is to check.
    Token {
        id: TokenId,
        /// SHA-256 of its secret.
        secret: Hash,
        /// As it says itself.
        expires: Timestamp,
    },
}

/// What a new member is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admission {
    pub cluster: ClusterId,
    pub epoch: ClusterEpoch,
    pub issued: Issued,
    pub node: NodeId,
    /// Nothing if it is to be no server for now.
    pub raft: Option<RaftId>,
    /// The servers, and the new one.
    pub members: Directory,
}

/// Why a host was not admitted, for its operator to read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(pub String);

/// Why a command that was handed to another node has no outcome.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ForwardError {
    #[error("node {to} is not the leader{}", leader.map_or(String::new(), |leader| format!(", node {leader} is")))]
    NotLeader { to: NodeId, leader: Option<NodeId> },
    #[error("no answer of node {to} before the deadline: whether the command was applied is unknown")]
    OutcomeUnknown { to: NodeId },
    #[error("node {to} refused the command: {reason}")]
    Refused { to: NodeId, reason: String },
    #[error("cannot reach node {to}, so the command was not sent: {reason}")]
    Unreachable { to: NodeId, reason: String },
}

/// What a transport is started with.
#[derive(Debug, Clone)]
pub struct Settings {
    pub listen: SocketAddr,
    /// This node's name, and where the others reach it.
    pub own: Server,
    /// `cluster.servers`, in its order.
    pub servers: Vec<Server>,
    /// Without any, this node can't vouch for itself to hosts that go by it.
    pub secrets: Option<Secrets>,
    pub clock: Clock,
}

/// Why the transport could not be started, or take its identity.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    #[error("cannot listen on {address}: check node.listen, and whether another program has the port")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("cannot set up TLS")]
    Tls(#[source] TlsError),
}

/// The listener, and the links to all members. Dropping it ends all of its tasks.
pub struct Transport {
    shared: Arc<Shared>,
    renewals: heartbeat::Renewals,
    address: SocketAddr,
}

/// What the tasks of one transport have in common.
struct Shared {
    own: Server,
    servers: Vec<Server>,
    secrets: Option<Secrets>,
    clock: Clock,
    inbound: Arc<dyn Inbound>,
    directory: watch::Receiver<Arc<Directory>>,
    identity: watch::Sender<Option<Arc<NodeIdentity>>>,
    /// Why its certificate is not as it is to be, if it isn't.
    certificate_fault: watch::Sender<Option<String>>,
    /// By which this member is a server, if it is one; known before its identity is.
    raft: OnceLock<Option<RaftId>>,
    /// Of this process, and of those of the other members.
    incarnation: u64,
    incarnations: incarnations::Incarnations,
    side: watch::Sender<Side>,
    links: link::Links,
    noise: listener::Noise,
    strangers: Arc<strangers::Strangers>,
    tasks: Tasks,
}

impl Shared {
    /// Returns once this node isn't a member any more.
    async fn removal(&self, node: NodeId) {
        self.directory_says(|directory| directory.is_removed(node)).await;
    }

    /// Returns once this node doesn't trust the authority any more that has issued this certificate.
    async fn distrust(&self, certificate: &[u8]) {
        let mut identity = self.identity.subscribe();
        let trusts = |own: &NodeIdentity| own.vouches_for(certificate);
        // The sender is this one's.
        let _ = identity.wait_for(|own| own.as_ref().is_some_and(|own| !trusts(own))).await;
    }

    /// Returns once this node is no server by this raft id any more.
    async fn dismissal(&self, node: NodeId, raft: RaftId) {
        self.directory_says(|directory| directory.is_dismissed(node, raft)).await;
    }

    async fn directory_says(&self, what: impl Fn(&Directory) -> bool) {
        let mut directory = self.directory.clone();
        if directory.wait_for(|directory| what(directory)).await.is_err() {
            // Who ends says nothing of others: its directory goes with it.
            std::future::pending::<()>().await;
        }
    }

    /// What this node's API answers to a member.
    async fn api(&self, peer: NodeId, question: ApiRequest) -> ApiResponse {
        let known = self.directory.borrow().member(peer).map(|_| ());
        match known {
            Ok(()) => self.inbound.api(question).await,
            Err(refused) => peer::status_of(&refused).into_http(),
        }
    }

    fn raft(&self) -> Option<RaftId> {
        self.raft.get().copied().flatten()
    }
}

/// What the listener shows, and the cluster, in which epoch, whose members it accepts.
#[derive(Clone)]
struct Side {
    tls: ServerSide,
    cluster: Option<(ClusterId, ClusterEpoch)>,
}

impl Transport {
    /// Listens; as a blank node until [`Self::become_member`] is called. Needs a tokio runtime.
    ///
    /// # Errors
    /// `Listen` if the port can't be had, `Tls`.
    pub async fn start(
        settings: Settings,
        inbound: Arc<dyn Inbound>,
        directory: watch::Receiver<Arc<Directory>>,
    ) -> Result<Self, TransportError> {
        let failed = |source| TransportError::Listen { address: settings.listen, source };
        let listener = TcpListener::bind(settings.listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let tls = stranger_server().map_err(TransportError::Tls)?;
        let shared = Arc::new(Shared {
            own: settings.own,
            servers: settings.servers,
            secrets: settings.secrets,
            clock: settings.clock,
            inbound,
            directory,
            identity: watch::Sender::new(None),
            certificate_fault: watch::Sender::new(None),
            raft: OnceLock::new(),
            incarnation: incarnations::draw(),
            incarnations: incarnations::Incarnations::default(),
            side: watch::Sender::new(Side { tls, cluster: None }),
            links: link::Links::default(),
            noise: listener::Noise::default(),
            strangers: Arc::default(),
            tasks: Tasks::default(),
        });
        shared.tasks.spawn(listener::run(listener, shared.clone()));
        shared.tasks.spawn(link::follow_directory(shared.clone()));
        Ok(Self { shared, renewals: heartbeat::Renewals::default(), address })
    }

    /// Where it listens; tells the port if port 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on this node shows its certificate, accepts the members of its cluster, and calls the servers: as one of
    /// them where it has a `raft` id.
    ///
    /// # Errors
    /// `Tls` if the identity is damaged; then nothing changed.
    pub fn become_member(&self, identity: &NodeIdentity, raft: Option<RaftId>) -> Result<(), TransportError> {
        self.shared.raft.set(raft).expect("a transport becomes a member once");
        self.present(identity)
    }

    /// From now on this node shows this certificate; connections that are there stay, but those whose other side has shown
    /// a certificate of an authority that isn't trusted any more.
    ///
    /// # Errors
    /// `Tls` if the identity is damaged; then nothing changed.
    pub fn present(&self, identity: &NodeIdentity) -> Result<(), TransportError> {
        let tls = member_server(identity).map_err(TransportError::Tls)?.at(self.shared.clock);
        self.shared.side.send_replace(Side { tls, cluster: Some((identity.cluster, identity.epoch)) });
        self.shared.identity.send_replace(Some(Arc::new(identity.clone())));
        Ok(())
    }

    /// The next certificate (DER) for `identity`, by whichever member can sign and has the authority with this hash;
    /// `accept` says which are of use.
    ///
    /// # Errors
    /// Why there is none of each of them.
    pub async fn renew<T>(
        &self,
        identity: &NodeIdentity,
        issuer: Hash,
        accept: impl Fn(Vec<u8>) -> Result<T, IdentityError>,
    ) -> Result<T, String> {
        let members = self.shared.directory.borrow().clone();
        let members = members.members().map(|(_, member)| (&member.name, &member.address));
        let listed = self.shared.servers.iter().map(|server| (&server.name, &server.address));
        let others = members.chain(listed).filter(|(name, _)| **name != self.shared.own.name);
        let mut failures = Vec::new();
        for address in others.map(|(_, address)| address.clone()).collect::<BTreeSet<_>>() {
            let renewed = renew::renew(&address, identity, issuer, self.shared.clock).await.and_then(|certificate| {
                accept(certificate).map_err(|source| RenewError::Issued { address: address.clone(), source })
            });
            match renewed {
                Ok(renewed) => return Ok(renewed),
                Err(error) => failures.push(crate::error_chain(&error)),
            }
        }
        Err(failures.join("; "))
    }

    /// Hands `messages` to the links of their receivers; never blocks, and may be called from any thread.
    ///
    /// What finds its link's queue full is dropped, and reported once a call and peer by [`Inbound::unreachable`];
    /// what is for nobody in the directory is dropped.
    pub fn send(&self, messages: Vec<Message>) {
        for peer in self.shared.links.offer(messages) {
            self.shared.inbound.unreachable(peer);
        }
    }

    /// Why a member can't be reached, for each that can't.
    pub fn faults(&self) -> BTreeMap<NodeId, String> {
        self.shared.links.faults()
    }

    /// The outcome of `command`, proposed by node `to`, which is thought to lead.
    ///
    /// # Errors
    /// After `OutcomeUnknown` the command may be applied or not, even later; after any other it was not and won't be.
    pub async fn forward(&self, to: NodeId, command: Vec<u8>, deadline: Instant) -> Result<Vec<u8>, ForwardError> {
        let Some(channel) = self.shared.links.channel(to) else {
            return Err(ForwardError::Unreachable { to, reason: "it is not in the directory of members".to_owned() });
        };
        peer::call_forward(channel, to, command, deadline).await
    }

    /// What the API of server `to` answers.
    ///
    /// # Errors
    /// After `NotAsked` another server may be asked.
    pub async fn pass_on(&self, to: NodeId, question: WholeRequest) -> Result<ApiResponse, PassError> {
        passing::pass_on(self.shared.links.side_channel(to), to, question).await
    }

    /// The rows of a snapshot that node `from` has announced, from a token on.
    ///
    /// # Errors
    /// `Gone` where another try won't help.
    pub async fn snapshot(&self, from: NodeId, at: Position, after: Vec<u8>) -> Result<Chunks, SnapshotError> {
        let Some(channel) = self.shared.links.channel(from) else {
            return Err(SnapshotError::Broken { from, reason: "it is not in the directory of members".to_owned() });
        };
        snapshot::call(channel, from, at, after).await
    }

    /// Ends all tasks and connections, and returns once they are gone.
    pub async fn shutdown(&self) {
        self.shared.tasks.close().await;
    }
}

impl Drop for Transport {
    fn drop(&mut self) {
        self.shared.tasks.begin_close();
    }
}
