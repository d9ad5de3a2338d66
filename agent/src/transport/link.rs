//! The way to each other server: a connection, and between servers a bounded queue and a task that carries it over one
//! stream, again and again.
//!
//! ```text
//!           directory changes            stream ends: what is queued is dropped, the peer reported unreachable
//!  (none) ───────────────────▶ streaming ─────────────────────────────▶ waiting (50 ms, doubling up to 500 ms,
//!                                  ▲                                        │   or until the peer calls)
//!                                  └────────────────────────────────────────┘
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use blixard_core::driver::wire;
use blixard_core::types::{ClusterId, NodeId, RaftId, Server};
use hyper_util::rt::TokioIo;
use raft::eraftpb::Message;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tracing::{debug, error, info, warn};

use super::incarnations::Hello;
use super::proto::peer_client::PeerClient;
use super::proto::{RaftEnd, RaftFrame};
use super::{Directory, Inbound, MAX_MESSAGE, Member, Shared, Tasks, connect, proto};
use crate::error_chain;
use crate::identity::{Expected, NodeIdentity, member_client};

/// Most messages that wait for one peer.
pub const QUEUE_MESSAGES: usize = 4096;
/// Most bytes that wait for one peer.
const QUEUE_BYTES: usize = 64 << 20;
/// Most messages of one frame.
pub const BATCH_MESSAGES: usize = 256;
/// A frame that has this many bytes takes no further message, so it stays below 8 MiB.
const BATCH_BYTES: usize = 1 << 20;
/// Frames that were taken off the queue and that the connection hasn't taken yet.
const FRAMES_IN_FLIGHT: usize = 2;
pub const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const LAST_BACKOFF: Duration = Duration::from_millis(500);

/// The links of this node, one to each other server.
#[derive(Default)]
pub struct Links(RwLock<Table>);

#[derive(Default)]
struct Table {
    links: BTreeMap<NodeId, Link>,
    nodes: BTreeMap<RaftId, NodeId>,
}

struct Link {
    member: Member,
    queue: mpsc::Sender<Queued>,
    waiting_bytes: Arc<AtomicUsize>,
    channel: Channel,
    /// For streams that last, of which a connection has room for so many only.
    side_channel: Channel,
    /// The peer has called this node: it can be called, too.
    called: Arc<Notify>,
    fault: Fault,
    /// Dropped with the link, which ends its task.
    _alive: watch::Sender<()>,
}

/// Why the last stream ended, unless the peer was reached since. All clones are of one link.
#[derive(Clone)]
struct Fault(Arc<Mutex<Option<String>>>);

impl Fault {
    fn set(&self, reason: Option<String>) {
        *self.0.lock().expect("nothing panics while it holds this lock") = reason;
    }

    fn get(&self) -> Option<String> {
        self.0.lock().expect("nothing panics while it holds this lock").clone()
    }
}

struct Queued {
    message: Message,
    bytes: usize,
}

impl Links {
    /// Queues each message with the link of its receiver; the answer is whose messages were dropped for want of room.
    pub fn offer(&self, messages: Vec<Message>) -> BTreeSet<RaftId> {
        let table = self.0.read().expect("nothing panics while it holds this lock");
        let mut dropped = BTreeSet::new();
        for message in messages {
            let to = RaftId(message.to);
            let Some(link) = table.nodes.get(&to).and_then(|node| table.links.get(node)) else {
                debug!(peer = %to, "dropped a message for nobody in the directory");
                continue;
            };
            if !link.offer(message) {
                dropped.insert(to);
            }
        }
        dropped
    }

    /// The connection to a member, made when it is first used.
    pub fn channel(&self, node: NodeId) -> Option<Channel> {
        let table = self.0.read().expect("nothing panics while it holds this lock");
        table.links.get(&node).map(|link| link.channel.clone())
    }

    /// A connection of its own, made when it is first used.
    pub fn side_channel(&self, node: NodeId) -> Option<Channel> {
        let table = self.0.read().expect("nothing panics while it holds this lock");
        table.links.get(&node).map(|link| link.side_channel.clone())
    }

    /// Why a member can't be reached, for each that can't.
    pub fn faults(&self) -> BTreeMap<NodeId, String> {
        let table = self.0.read().expect("nothing panics while it holds this lock");
        table.links.iter().filter_map(|(node, link)| Some((*node, link.fault.get()?))).collect()
    }

    /// Has the link try now, if it waits until it tries its peer again.
    pub fn called_by(&self, node: NodeId) {
        let table = self.0.read().expect("nothing panics while it holds this lock");
        if let Some(link) = table.links.get(&node) {
            link.called.notify_one();
        }
    }

    fn change(&self, change: impl FnOnce(&mut Table)) {
        change(&mut self.0.write().expect("nothing panics while it holds this lock"));
    }
}

impl Link {
    fn offer(&self, message: Message) -> bool {
        let bytes = wire::encoded_message_len(&message);
        if bytes > MAX_MESSAGE {
            error!(peer = %self.member.name, bytes, limit = MAX_MESSAGE, "dropped a Raft message that is too large to send");
            return false;
        }
        let waiting = self.waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
        if waiting + bytes <= QUEUE_BYTES && self.queue.try_send(Queued { message, bytes }).is_ok() {
            return true;
        }
        self.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
        false
    }
}

/// Keeps one link to each other server of the directory, from when this node is a member itself.
pub async fn follow_directory(shared: Arc<Shared>) {
    let mut directory = shared.directory.clone();
    let mut identity = shared.identity.subscribe();
    let mut trusted = Vec::new();
    loop {
        let members = directory.borrow_and_update().clone();
        let own = identity.borrow_and_update().clone();
        if let Some(own) = own {
            let trusts_less = trusted.iter().any(|authority| !own.issued.authorities.contains(authority));
            trusted.clone_from(&own.issued.authorities);
            shared.links.change(|table| {
                if trusts_less {
                    // Who has answered the calls may have been vouched for by the one that is no authority any more.
                    table.links.clear();
                }
                table.match_members(&members, &own, &shared);
            });
        }
        // Both senders may be gone at shutdown; this task is ended by then, or soon.
        tokio::select! {
            changed = directory.changed() => if changed.is_err() { return },
            changed = identity.changed() => if changed.is_err() { return },
        }
    }
}

impl Table {
    fn match_members(&mut self, members: &Directory, own: &Arc<NodeIdentity>, shared: &Arc<Shared>) {
        self.links.retain(|node, link| members.get(*node) == Some(&link.member));
        for (node, member) in members.servers() {
            if node == own.node || self.links.contains_key(&node) {
                continue;
            }
            self.links.insert(node, open_link(node, member.clone(), own, shared));
        }
        let raft_of = |(node, link): (&NodeId, &Link)| Some((link.member.raft?, *node));
        self.nodes = self.links.iter().filter_map(raft_of).collect();
    }
}

fn open_link(node: NodeId, member: Member, own: &Arc<NodeIdentity>, shared: &Arc<Shared>) -> Link {
    let connected = Arc::new(AtomicBool::new(false));
    let fault = Fault(Arc::new(Mutex::new(Some("not reached yet".to_owned()))));
    let (alive, mut gone) = watch::channel(());
    let tasks = LinkTasks { tasks: shared.tasks.clone(), gone: gone.clone() };
    let endpoint = connect::endpoint(tasks);
    let channel = lazy_channel(node, member.clone(), (connected.clone(), fault.clone()), shared, &endpoint);
    let is_said = Arc::new(AtomicBool::new(true));
    let side_channel = lazy_channel(node, member.clone(), (is_said, fault.clone()), shared, &endpoint);
    let (queue, waiting) = mpsc::channel(QUEUE_MESSAGES);
    let waiting_bytes = Arc::new(AtomicUsize::new(0));
    let called = Arc::new(Notify::new());
    // Who is a server carries raft's messages, whatever its state says: one that replays its log may not know yet.
    if let Some(raft) = shared.raft() {
        let Server { name, address } = shared.own.clone();
        let carrier = Carrier {
            node,
            member: member.clone(),
            cluster: own.cluster,
            own: own.node,
            introduction: Member { name, address, raft: Some(raft) }.encode(own.node),
            hello: Hello { incarnation: shared.incarnation, token: 0 },
            channel: channel.clone(),
            connected,
            queue: waiting,
            waiting_bytes: waiting_bytes.clone(),
            called: called.clone(),
            fault: fault.clone(),
            inbound: shared.inbound.clone(),
        };
        shared.tasks.spawn(async move {
            tokio::select! {
                _ = gone.changed() => {}
                () = carrier.run() => {}
            }
        });
    }
    Link { member, queue, waiting_bytes, channel, side_channel, called, fault, _alive: alive }
}

/// Each connection shows the certificate that this node has by then.
fn lazy_channel(
    node: NodeId,
    member: Member,
    (connected, fault): (Arc<AtomicBool>, Fault),
    shared: &Arc<Shared>,
    endpoint: &Endpoint,
) -> Channel {
    let (own, clock) = (shared.identity.subscribe(), shared.clock);
    let connector = tower::service_fn(move |_| {
        let (address, name) = (member.address.clone(), member.name.clone());
        let (own, connected, fault) = (own.borrow().clone(), connected.clone(), fault.clone());
        async move {
            let own = own.expect("a link is opened by a member");
            let mut config = member_client(&own, Expected::Node(node)).map_err(connect::ConnectError::Own)?;
            config.time_provider = Arc::new(clock);
            let stream = connect::connect(&address, Arc::new(config)).await?;
            fault.set(None);
            if !connected.swap(true, Ordering::Relaxed) {
                info!(peer = %name, %address, "connected to peer");
            }
            Ok::<_, connect::ConnectError>(TokioIo::new(stream))
        }
    });
    endpoint.connect_with_connector_lazy(connector)
}

/// Spawns what ends when a link does: its connections.
#[derive(Clone)]
struct LinkTasks {
    tasks: Tasks,
    gone: watch::Receiver<()>,
}

impl<F: Future + Send + 'static> hyper::rt::Executor<F> for LinkTasks {
    fn execute(&self, future: F) {
        let mut gone = self.gone.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                // Nothing is ever sent.
                _ = gone.changed() => {}
                _ = future => {}
            }
        });
    }
}

/// What the task of a link works with.
struct Carrier {
    node: NodeId,
    member: Member,
    cluster: ClusterId,
    own: NodeId,
    introduction: proto::Member,
    hello: Hello,
    channel: Channel,
    connected: Arc<AtomicBool>,
    queue: mpsc::Receiver<Queued>,
    waiting_bytes: Arc<AtomicUsize>,
    called: Arc<Notify>,
    fault: Fault,
    inbound: Arc<dyn Inbound>,
}

/// How a stream has ended.
enum Ended {
    /// The peer wants to hear this first.
    Asked(u64),
    Failed(String),
}

impl Carrier {
    async fn run(mut self) {
        let mut backoff = FIRST_BACKOFF;
        let mut said = false;
        loop {
            let begun = Instant::now();
            let reason = match self.stream().await {
                Ended::Asked(token) if token != self.hello.token => {
                    self.hello.token = token;
                    continue;
                }
                Ended::Asked(_) => "the peer asks who this is again and again".to_owned(),
                Ended::Failed(reason) => reason,
            };
            self.fault.set(Some(reason.clone()));
            // A peer that ends each stream at once is said to be away only once.
            let lasted = begun.elapsed() > LAST_BACKOFF * 4;
            if !said || (lasted && self.connected.swap(false, Ordering::Relaxed)) {
                warn!(peer = %self.member.name, address = %self.member.address, reason, "peer is unreachable");
                said = true;
            } else {
                debug!(peer = %self.member.name, address = %self.member.address, reason, "peer is still unreachable");
            }
            if lasted {
                backoff = FIRST_BACKOFF;
            }
            if let Some(raft) = self.member.raft {
                self.inbound.unreachable(raft);
            }
            self.drop_queued_for(backoff, begun + backoff / 5).await;
            backoff = (backoff * 2).min(LAST_BACKOFF);
        }
    }

    /// Sends what is queued until the stream ends, and returns why it did.
    async fn stream(&mut self) -> Ended {
        let (frames, outgoing) = mpsc::channel(FRAMES_IN_FLIGHT);
        let mut client = PeerClient::new(self.channel.clone());
        let call = client.raft(ReceiverStream::new(outgoing));
        tokio::pin!(call);
        let mut introduced = false;
        loop {
            let step = async {
                // The call no longer reads, or the link is gone: both are about to end this.
                let is_ending = std::future::pending();
                // Room first: what was taken off the queue has somewhere to go.
                let Ok(room) = frames.reserve().await else { return is_ending.await };
                // Also where there is nothing to say: who is no server any more hears it.
                if !introduced {
                    introduced = true;
                    return room.send(self.hello());
                }
                let Some(first) = self.queue.recv().await else { return is_ending.await };
                room.send(batch(first, &mut self.queue, &self.waiting_bytes, self.cluster, self.own));
            };
            tokio::select! {
                ended = &mut call => return self.heed(ended.map(tonic::Response::into_inner)),
                () = step => {}
            }
        }
    }

    fn heed(&self, ended: Result<RaftEnd, tonic::Status>) -> Ended {
        let reason = match ended {
            Ok(RaftEnd { removed: true, .. }) => {
                self.inbound.removed(self.node);
                "this node was removed from the cluster".to_owned()
            }
            Ok(RaftEnd { dismissed: true, .. }) => {
                self.inbound.dismissed(self.node);
                "this node is no server any more".to_owned()
            }
            Ok(RaftEnd { superseded: true, .. }) => {
                self.inbound.superseded(self.node);
                "another process speaks for this node".to_owned()
            }
            Ok(RaftEnd { prove: 0, .. }) => "the peer ended the stream".to_owned(),
            Ok(RaftEnd { prove, .. }) => return Ended::Asked(prove),
            Err(status) => describe(&status),
        };
        Ended::Failed(reason)
    }

    fn hello(&self) -> RaftFrame {
        let Hello { incarnation, token } = self.hello;
        RaftFrame {
            cluster: self.cluster.to_string(),
            sender: self.own.0,
            messages: Vec::new(),
            introduction: Some(self.introduction.clone()),
            incarnation,
            token,
        }
    }

    /// What is queued while the peer can't be reached is stale by the time it can. A peer that calls is there, and is called
    /// back, but not before `earliest`: two that end each other's streams at once would never wait.
    async fn drop_queued_for(&mut self, backoff: Duration, earliest: Instant) {
        let called = async {
            self.called.notified().await;
            tokio::time::sleep_until(earliest).await;
        };
        let over = tokio::time::sleep(backoff);
        tokio::pin!(over, called);
        loop {
            tokio::select! {
                () = &mut over => return,
                () = &mut called => return,
                queued = self.queue.recv() => match queued {
                    Some(Queued { bytes, .. }) => self.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed),
                    None => return,
                },
            };
        }
    }
}

/// One frame of `first` and what waits behind it.
fn batch(
    first: Queued,
    queue: &mut mpsc::Receiver<Queued>,
    waiting_bytes: &AtomicUsize,
    cluster: ClusterId,
    own: NodeId,
) -> RaftFrame {
    let mut messages = Vec::new();
    let mut bytes = 0;
    let mut next = Some(first);
    while let Some(queued) = next {
        bytes += queued.bytes;
        messages.push(wire::encode_message(&queued.message));
        let full = messages.len() >= BATCH_MESSAGES || bytes >= BATCH_BYTES;
        next = if full { None } else { queue.try_recv().ok() };
    }
    waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
    RaftFrame { cluster: cluster.to_string(), sender: own.0, messages, ..RaftFrame::default() }
}

/// A status as a person reads it: the peer's own words, or what went wrong on the way.
pub fn describe(status: &tonic::Status) -> String {
    match std::error::Error::source(status) {
        Some(cause) => error_chain(cause),
        None => status.message().to_owned(),
    }
}
