//! Nodes whose inbound side records what reaches it.

use std::fmt::Debug;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use blixard_core::types::{ClusterEpoch, NodeEpoch, NodeId, RaftId, Server};
use futures_util::StreamExt as _;
use hyper_util::rt::TokioIo;
use raft::eraftpb::{Message, MessageType};
use rustls::ClientConfig;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tonic::body::Body;
use tonic::transport::Channel;

use super::super::*;
use crate::error_chain;
use crate::identity::{
    Authority, Clock, Expected, HostKey, NodeIdentity, NodeKey, Secrets, draw_cluster_id, member_client,
};

/// Longest that anything is waited for.
pub const MAX_WAIT: Duration = Duration::from_secs(20);

pub const NAMES: [&str; 3] = ["alpha", "beta", "gamma"];

/// A joiner's own.
pub fn key() -> NodeKey {
    NodeKey::generate().unwrap()
}

/// A new host with this name and address.
pub fn asking(own: Server) -> Asking {
    Asking { own, key: key(), was_in: None, understands: Level::NEWEST, role: NodeRole::Auto }
}

/// A host's, as openssl would make it.
pub fn host_key() -> HostKey {
    let dir = tempfile::tempdir().unwrap();
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    std::fs::write(dir.path().join("key"), key.serialize_pem()).unwrap();
    HostKey::read(&dir.path().join("key")).unwrap()
}

pub fn secret(byte: u8) -> Secrets {
    secrets(byte, byte)
}

/// The current one, and the next one if that is another.
pub fn secrets(current: u8, next: u8) -> Secrets {
    let dir = tempfile::tempdir().unwrap();
    let [current, next] = [("current", current), ("next", next)].map(|(name, byte)| {
        let path = dir.path().join(name);
        std::fs::write(&path, [byte; 32]).unwrap();
        path
    });
    Secrets::read(&current, Some(&next)).unwrap()
}

pub fn server(at: usize, address: SocketAddr) -> Server {
    format!("{}@{address}", NAMES[at]).parse().unwrap()
}

/// A list whose addresses aren't looked at.
pub fn list() -> Vec<Server> {
    (0..3).map(|at| server(at, "127.0.0.1:1".parse().unwrap())).collect()
}

/// Waits for `wanted` to come out of `channel`.
pub async fn next<T: Debug>(what: &str, channel: &mut mpsc::UnboundedReceiver<T>, wanted: impl Fn(&T) -> bool) -> T {
    let mut last = None;
    let found = async {
        while let Some(item) = channel.recv().await {
            if wanted(&item) {
                return item;
            }
            last = Some(item);
        }
        panic!("nobody can send {what} any more");
    };
    let found = tokio::time::timeout(MAX_WAIT, found).await.ok();
    found.unwrap_or_else(|| panic!("no {what} within {MAX_WAIT:?}; last seen: {last:?}"))
}

/// Polls `condition`, calling `nudge` before each look, until it holds.
pub async fn wait_for(what: &str, mut nudge: impl FnMut(), mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + MAX_WAIT;
    let mut tick = tokio::time::interval(Duration::from_millis(5));
    loop {
        nudge();
        if condition() {
            return;
        }
        assert!(Instant::now() < until, "no {what} within {MAX_WAIT:?}");
        tick.tick().await;
    }
}

/// What a [`Recorder`] does with a forwarded command.
#[derive(Clone)]
pub enum Answering {
    Echo,
    Fail(ForwardError),
    Never,
}

pub struct Recorder {
    pub standing: Mutex<Standing>,
    pub answering: Mutex<Answering>,
    pub authority: Option<Arc<Authority>>,
    pub admits: AtomicUsize,
    /// By what the last one was to be let in.
    pub credential: Mutex<Option<Credential>>,
    pub forwards: AtomicUsize,
    pub heartbeats: AtomicUsize,
    pub calls: AtomicUsize,
    /// Who has said who it is.
    pub introduced: Mutex<Vec<(NodeId, Member)>>,
    /// How often it was told that it is no member.
    pub removals: AtomicUsize,
    /// How often it was told that it is no server.
    pub dismissals: AtomicUsize,
    /// How often it was told that another process speaks for it.
    pub supersessions: AtomicUsize,
    /// What whoever follows is told.
    pub assignments: Mutex<Option<Vec<Vec<u8>>>>,
    /// What whoever beats is told.
    pub servers: Mutex<Directory>,
    /// How often its API was asked.
    pub questions: AtomicUsize,
    /// What whoever asks for a snapshot is given.
    pub rows: Mutex<Option<Arc<dyn SnapshotRows>>>,
    steps: mpsc::UnboundedSender<Message>,
    unreachable: mpsc::UnboundedSender<RaftId>,
}

/// To a renewal for this epoch there is no answer.
pub const UNANSWERED: NodeEpoch = NodeEpoch(99);

#[tonic::async_trait]
impl Inbound for Recorder {
    fn step(&self, messages: Vec<Message>) {
        for message in messages {
            let _ = self.steps.send(message);
        }
    }
    fn unreachable(&self, peer: RaftId) {
        let _ = self.unreachable.send(peer);
    }
    fn called(&self) {
        self.calls.fetch_add(1, Ordering::Relaxed);
    }
    async fn introduce(&self, node: NodeId, member: Member) {
        self.introduced.lock().unwrap().push((node, member));
    }
    fn removed(&self, _by: NodeId) {
        self.removals.fetch_add(1, Ordering::Relaxed);
    }
    fn dismissed(&self, _by: NodeId) {
        self.dismissals.fetch_add(1, Ordering::Relaxed);
    }
    fn superseded(&self, _by: NodeId) {
        self.supersessions.fetch_add(1, Ordering::Relaxed);
    }
    async fn follow(&self, from: NodeId) -> Result<Told, Refusal> {
        let assignments = self.assignments.lock().unwrap().clone();
        let assignments = assignments.ok_or_else(|| Refusal(format!("nothing for node {from}")))?;
        Ok(tokio_stream::iter(assignments).chain(tokio_stream::pending()).boxed())
    }
    fn beat(&self, from: NodeId) -> Beat {
        Beat { leader: Some(from), servers: self.servers.lock().unwrap().clone(), applied: 7 }
    }
    async fn heartbeat(&self, Heartbeat { node, epoch }: Heartbeat) -> Result<NodeId, LeaseError> {
        match epoch.expect("a lease is to be renewed") {
            UNANSWERED => std::future::pending().await,
            NodeEpoch(0) => Err(LeaseError::Denied(format!("node {node} has no lease"))),
            NodeEpoch(1) => Err(LeaseError::NoLeader),
            _ => Ok(NodeId(9)),
        }
    }
    async fn heartbeats(&self, heartbeats: Vec<Heartbeat>) -> Result<Denials, LeaseError> {
        self.heartbeats.fetch_add(1, Ordering::Relaxed);
        if heartbeats.iter().any(|heartbeat| heartbeat.epoch == Some(UNANSWERED)) {
            std::future::pending::<()>().await;
        }
        let denial = |Heartbeat { node, epoch }: Heartbeat| epoch.map(|epoch| format!("{node} at {epoch}"));
        if heartbeats.is_empty() { Err(LeaseError::NoLeader) } else { Ok(heartbeats.into_iter().map(denial).collect()) }
    }
    async fn api(&self, question: ApiRequest) -> ApiResponse {
        self.questions.fetch_add(1, Ordering::Relaxed);
        match question.uri().path() {
            path if path.ends_with("Elsewhere") => {
                http::Response::builder().header(NOT_HERE, "1").header("grpc-status", "14").body(Body::empty()).unwrap()
            }
            _ => http::Response::new(question.into_body()),
        }
    }
    fn standing(&self) -> Standing {
        *self.standing.lock().unwrap()
    }
    async fn forward(&self, _: NodeId, command: Vec<u8>, _: Instant) -> Result<Vec<u8>, ForwardError> {
        self.forwards.fetch_add(1, Ordering::Relaxed);
        let answering = self.answering.lock().unwrap().clone();
        match answering {
            Answering::Echo => Ok(command),
            Answering::Fail(error) => Err(error),
            Answering::Never => std::future::pending().await,
        }
    }
    async fn snapshot(&self, _: NodeId, _: Position) -> Option<Arc<dyn SnapshotRows>> {
        self.rows.lock().unwrap().clone()
    }
    async fn admit(&self, candidate: Candidate) -> Result<Admission, Refusal> {
        self.admits.fetch_add(1, Ordering::Relaxed);
        *self.credential.lock().unwrap() = Some(candidate.credential);
        let authority = self.authority.as_ref().ok_or_else(|| Refusal("no authority".to_owned()))?;
        let (epoch, node) = (ClusterEpoch::FIRST, NodeId(9));
        let issued = authority.issue_alone(&candidate.request, epoch, node);
        let issued = issued.map_err(|error| Refusal(error.to_string()))?;
        let member = Member { name: candidate.name, address: candidate.address, raft: Some(RaftId(19)) };
        Ok(Admission {
            cluster: authority.cluster(),
            epoch,
            issued,
            node,
            raft: Some(RaftId(19)),
            members: Directory::of([(node, member)]),
        })
    }
    fn renew(&self, _: &[u8], _: Hash) -> Result<Vec<u8>, Refusal> {
        Err(Refusal("no authority".to_owned()))
    }
}

pub struct Node {
    pub transport: Arc<Transport>,
    pub recorder: Arc<Recorder>,
    pub steps: mpsc::UnboundedReceiver<Message>,
    pub unreachable: mpsc::UnboundedReceiver<RaftId>,
    pub directory: watch::Sender<Arc<Directory>>,
}

impl Node {
    pub async fn blank(at: usize, secrets: Secrets) -> Self {
        Self::listen(at, "127.0.0.1:0".parse().unwrap(), secrets, None, Standing::Blank).await
    }

    pub async fn listen(
        at: usize,
        listen: SocketAddr,
        secrets: Secrets,
        authority: Option<Arc<Authority>>,
        standing: Standing,
    ) -> Self {
        Self::listen_at(Clock::default(), at, listen, secrets, authority, standing).await
    }

    /// One whose clock is this.
    pub async fn listen_at(
        clock: Clock,
        at: usize,
        listen: SocketAddr,
        secrets: Secrets,
        authority: Option<Arc<Authority>>,
        standing: Standing,
    ) -> Self {
        let (steps_sender, steps) = mpsc::unbounded_channel();
        let (unreachable_sender, unreachable) = mpsc::unbounded_channel();
        let recorder = Arc::new(Recorder {
            standing: Mutex::new(standing),
            answering: Mutex::new(Answering::Echo),
            authority,
            admits: AtomicUsize::new(0),
            heartbeats: AtomicUsize::new(0),
            credential: Mutex::default(),
            forwards: AtomicUsize::new(0),
            calls: AtomicUsize::new(0),
            introduced: Mutex::default(),
            removals: AtomicUsize::new(0),
            dismissals: AtomicUsize::new(0),
            supersessions: AtomicUsize::new(0),
            assignments: Mutex::default(),
            servers: Mutex::default(),
            questions: AtomicUsize::new(0),
            rows: Mutex::new(None),
            steps: steps_sender,
            unreachable: unreachable_sender,
        });
        let directory = watch::Sender::new(Arc::new(Directory::default()));
        let settings = Settings { listen, own: list()[at].clone(), servers: list(), secrets: Some(secrets), clock };
        let transport = Transport::start(settings, recorder.clone(), directory.subscribe()).await.unwrap();
        Self { transport: Arc::new(transport), recorder, steps, unreachable, directory }
    }

    pub fn address(&self) -> SocketAddr {
        self.transport.address()
    }
}

/// Members 1, 2 … of one cluster, with the Raft ids 11, 12 …, who all know each other.
pub struct Cluster {
    pub authority: Arc<Authority>,
    pub identities: Vec<NodeIdentity>,
    pub nodes: Vec<Node>,
}

impl Cluster {
    pub async fn start(count: usize) -> Self {
        let authority = Arc::new(Authority::create(draw_cluster_id()).unwrap());
        let identities: Vec<_> = (0..count).map(|at| authority.identify(node(at)).unwrap()).collect();
        let mut cluster = Self { authority, identities, nodes: Vec::new() };
        for at in 0..count {
            let started = cluster.start_node(at, "127.0.0.1:0".parse().unwrap()).await;
            cluster.nodes.push(started);
        }
        cluster.publish();
        cluster
    }

    /// Two members, of whom the second has its link to the first.
    pub async fn pair() -> Self {
        let cluster = Self::start(2).await;
        wait_for("a link", || {}, || cluster.nodes[1].transport.shared.links.channel(node(0)).is_some()).await;
        cluster
    }

    pub async fn start_node(&self, at: usize, listen: SocketAddr) -> Node {
        let standing = Standing::Member(self.authority.cluster());
        let started = Node::listen(at, listen, secret(1), Some(self.authority.clone()), standing).await;
        started.transport.become_member(&self.identities[at], Some(raft(at))).unwrap();
        started
    }

    pub fn directory(&self) -> Directory {
        let member = |(at, started): (usize, &Node)| {
            let Server { name, address } = server(at, started.address());
            (node(at), Member { name, address, raft: Some(raft(at)) })
        };
        let newest = NodeId(self.nodes.len() as u64);
        let mut directory = Directory::of(self.nodes.iter().enumerate().map(member));
        directory.newest = newest;
        directory
    }

    pub fn publish(&self) {
        let directory = Arc::new(self.directory());
        for node in &self.nodes {
            node.directory.send_replace(directory.clone());
        }
    }

    /// A client with the certificate of one member, to the listener of another.
    pub async fn call(&self, from: usize, to: usize) -> Channel {
        let config = member_client(&self.identities[from], Expected::Node(node(to))).unwrap();
        channel(self.nodes[to].address(), config).await.unwrap()
    }
}

pub fn node(at: usize) -> NodeId {
    NodeId(at as u64 + 1)
}

pub fn raft(at: usize) -> RaftId {
    RaftId(at as u64 + 11)
}

pub fn heartbeat(from: usize, to: usize, term: u64) -> Message {
    Message {
        msg_type: MessageType::MsgHeartbeat as i32,
        from: raft(from).0,
        to: raft(to).0,
        term,
        ..Message::default()
    }
}

/// A connection made by hand, which sends whatever a test wants.
pub async fn channel(address: SocketAddr, config: ClientConfig) -> Result<Channel, String> {
    let address: Address = address.to_string().parse().unwrap();
    let stream = connect::connect(&address, Arc::new(config)).await.map_err(|error| error_chain(&error))?;
    let mut once = Some(TokioIo::new(stream));
    let connector = tower::service_fn(move |_| {
        let stream = once.take().ok_or_else(|| std::io::Error::other("used up"));
        async { stream }
    });
    connect::endpoint(Tasks::default()).connect_with_connector(connector).await.map_err(|error| error_chain(&error))
}
