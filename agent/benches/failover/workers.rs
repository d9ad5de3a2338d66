//! Hosts that only say that they are there: by the calls of a worker, each over connections and a certificate of its own.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use blixard::identity::{Authority, NodeIdentity, NodeKey, random};
use blixard_core::command::{Answer, Command, NewNode, Reply, Request, Worker as Offered};
use blixard_core::state::WINDOW;
use blixard_core::types::{
    Address, ClientId, Hash, Hypervisor, Labels, Level, NodeEpoch, NodeId, NodeRole, Nonce, Resources,
};
use futures_util::{StreamExt as _, stream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;

use crate::channel::{call, connect, connect_from, ready};
use crate::member::proto::{
    FollowReply, FollowRequest, LeaseReply, LeaseRequest, RenewReply, RenewRequest, lease_reply, renew_reply,
};
use crate::member::{MAX_WAIT, Member, POLL, credentials, encode, forward};
use crate::probe::pause;
use crate::servers::Servers;

/// So many join at a time.
const JOINING: usize = 16;
/// As hosts do: how long an answer may take, and how often a server may know of no leader until another is asked.
const MAX_ANSWER: Duration = Duration::from_secs(1);
const MAX_MISSES: usize = 4;

/// A stream of renewals by one server.
type Renewals = (mpsc::Sender<LeaseRequest>, Streaming<LeaseReply>);

/// What came of the renewals so far.
#[derive(Default, Debug)]
pub struct Calls {
    pub granted: AtomicU64,
    pub failed: AtomicU64,
}

/// Hosts that go on until this is dropped.
pub struct Workers {
    pub calls: Arc<Calls>,
    _running: JoinSet<()>,
}

/// The connections of one member to the servers, each made when it is first used.
#[derive(Clone)]
struct Link {
    servers: Vec<Channel>,
    at: usize,
}

impl Link {
    fn asked(&self) -> &Channel {
        &self.servers[self.at]
    }

    /// That one was no help: perhaps the next is.
    fn pass(&mut self) {
        self.at = (self.at + 1) % self.servers.len();
    }
}

struct Worker {
    /// To the server that tells it what to do, or whichever is asked next.
    link: Link,
    epoch: NodeEpoch,
}

impl Workers {
    /// So many, armed, which have their leases renewed as often as this from when they are.
    pub async fn start(servers: &Servers, count: u32, period: Duration) -> Self {
        let tls = credentials(&servers.identity);
        let own = servers.members.iter().map(|member| connect(member.address, tls.clone())).collect();
        let own = Link { servers: own, at: servers.leader().await };
        let (calls, applied, mut running) = (Arc::new(Calls::default()), AtomicU64::new(0), JoinSet::new());
        let joining = stream::iter(0..count).map(|number| Worker::join(servers, own.clone(), &applied, number));
        let mut joining = joining.buffer_unordered(JOINING);
        let mut followed = Vec::new();
        while let Some(worker) = joining.next().await {
            followed.push(worker.link.asked().clone());
            running.spawn(worker.renew(calls.clone(), period));
        }
        let mut following = stream::iter(followed).map(follow).buffer_unordered(JOINING);
        while let Some(told) = following.next().await {
            running.spawn(hear(told));
        }
        Self { calls, _running: running }
    }
}

impl Worker {
    /// A new host that the cluster knows by way of this member, and whose fence is armed.
    async fn join(servers: &Servers, mut by: Link, applied: &AtomicU64, number: u32) -> Self {
        let mut commands = Commands { client: ClientId(u128::from_be_bytes(random())), sequence: 0, applied };
        let key = NodeKey::generate().expect("a key can be made");
        let request = key.request().expect("a key can be shown");
        let reached: Address = format!("{}:7000", address(number)).parse().expect("it is an address");
        let new = NewNode {
            name: format!("host{number:05}").parse().expect("it is a name"),
            address: reached.clone(),
            key: Authority::key_of(&request).expect("it was made just now"),
            understands: Level::NEWEST,
            role: NodeRole::Worker,
        };
        let Reply::Admitted { node, .. } = commands.forward(&mut by, Command::Admit(new)).await else {
            panic!("host {number} is not admitted");
        };
        let tls = credentials(&identity(&servers.identity, by.asked(), &key, node, request).await);
        let channel = |member: &Member| connect_from(address(number), member.address, tls.clone());
        let mut link = Link { servers: servers.members.iter().map(channel).collect(), at: by.at };
        commands.forward(&mut link, register(node, reached)).await;
        let nonce = Nonce(random());
        commands.forward(&mut link, Command::Arm { node, expected: NodeEpoch(0), nonce, machine: None }).await;
        link.at = usize::try_from(node.0).expect("it is small") % servers.members.len();
        Self { link, epoch: NodeEpoch(1) }
    }

    /// As often as that, nothing else says that it is there.
    async fn renew(mut self, calls: Arc<Calls>, period: Duration) {
        let mut due = interval(period);
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut renewals, mut misses) = (None, 0);
        loop {
            due.tick().await;
            let asked = tokio::time::timeout(MAX_ANSWER, self.ask(renewals.take())).await;
            let (count, after) = match asked {
                Ok(Ok((kept, lease_reply::Result::Granted(_)))) => {
                    renewals = Some(kept);
                    (&calls.granted, 0)
                }
                Ok(Ok((kept, _))) => {
                    renewals = Some(kept);
                    (&calls.failed, misses + 1)
                }
                Ok(Err(_)) | Err(_) => (&calls.failed, MAX_MISSES),
            };
            count.fetch_add(1, Ordering::Relaxed);
            misses = after % MAX_MISSES;
            if after == MAX_MISSES {
                self.link.pass();
            }
        }
    }

    /// Has its lease renewed once, over the stream of the last time if there is one.
    async fn ask(&self, last: Option<Renewals>) -> Result<(Renewals, lease_reply::Result), String> {
        let (requests, mut replies) = match last {
            Some(last) => last,
            None => self.begin_to_renew().await?,
        };
        let request = LeaseRequest { epoch: self.epoch.0 };
        requests.send(request).await.map_err(|error| error.to_string())?;
        let reply = replies.message().await.map_err(|status| status.to_string())?;
        let result = reply.and_then(|reply| reply.result).ok_or("no answer")?;
        Ok(((requests, replies), result))
    }

    async fn begin_to_renew(&self) -> Result<Renewals, String> {
        let mut client = ready(self.link.asked()).await?;
        let (requests, to_send) = mpsc::channel(1);
        let path = PathAndQuery::from_static("/blixard.peer.v1.Peer/Lease");
        let request = tonic::Request::new(ReceiverStream::new(to_send));
        let replies = client.streaming(request, path, tonic_prost::ProstCodec::default()).await;
        Ok((requests, replies.map_err(|status| status.to_string())?.into_inner()))
    }
}

/// What a server tells a host to do: asked for again while it has too many connections to agree on, as hosts do.
async fn follow(server: Channel) -> Streaming<FollowReply> {
    let begun = Instant::now();
    loop {
        match ask_to_follow(&server).await {
            Ok(told) => return told,
            Err(error) => assert!(begun.elapsed() < MAX_WAIT, "no server tells a host what to do: {error}"),
        }
        pause(POLL).await;
    }
}

async fn ask_to_follow(server: &Channel) -> Result<Streaming<FollowReply>, String> {
    let mut client = ready(server).await?;
    let (path, codec) = (PathAndQuery::from_static("/blixard.peer.v1.Peer/Follow"), tonic_prost::ProstCodec::default());
    let told = client.server_streaming(tonic::Request::new(FollowRequest {}), path, codec).await;
    told.map(tonic::Response::into_inner).map_err(|status| status.to_string())
}

/// It is never told anything new.
async fn hear(mut told: Streaming<FollowReply>) {
    while told.message().await.expect("a server goes on").is_some() {}
}

/// What one host has the cluster do, one thing after the other.
struct Commands<'a> {
    client: ClientId,
    sequence: u64,
    /// The last log entry that any host has heard of.
    applied: &'a AtomicU64,
}

impl Commands<'_> {
    /// Tried again while the leader doesn't take it: it may not know yet that who asks is a member.
    async fn forward(&mut self, link: &mut Link, command: Command) -> Reply {
        self.sequence += 1;
        let (client, sequence) = (self.client, self.sequence);
        let until = self.applied.load(Ordering::Relaxed) + WINDOW;
        let request = Request { client, sequence, answered: sequence, until };
        let (begun, command) = (Instant::now(), encode(request, command));
        loop {
            match forward(link.asked(), command.clone()).await {
                Ok(Ok(Answer { reply: Reply::Refused(why), .. }) | Err(why)) => panic!("a host is refused: {why}"),
                Ok(Ok(Answer { index, reply })) => {
                    self.applied.fetch_max(index, Ordering::Relaxed);
                    return reply;
                }
                Err(error) => assert!(begun.elapsed() < MAX_WAIT, "the leader takes nothing of a host: {error}"),
            }
            pause(POLL).await;
            link.pass();
        }
    }
}

/// The certificate is issued as for one that is renewed: by whoever the key is known to.
async fn identity(member: &NodeIdentity, by: &Channel, key: &NodeKey, node: NodeId, request: Vec<u8>) -> NodeIdentity {
    let request = RenewRequest { request, issuer: vec![0; 32] };
    let reply: Result<RenewReply, _> = call(by, "/blixard.peer.v1.Join/Renew", request).await;
    let Some(renew_reply::Result::Certificate(certificate)) = reply.expect("a server answers").result else {
        panic!("node {node} gets no certificate");
    };
    let issued = blixard::identity::Issued { certificate, ..member.issued.clone() };
    key.identify(member.cluster, member.epoch, node, issued).expect("it was issued for this node")
}

fn register(node: NodeId, address: Address) -> Command {
    let worker = Offered {
        resources: Resources { cpus: 16, memory_mib: 65_536, disk_mib: 0 },
        system: "x86_64-linux".to_owned(),
        kvm: true,
        hypervisors: vec![Hypervisor::Qemu],
        labels: Labels::default(),
        no_fence: None,
    };
    let boot = Hash::of(&random::<16>());
    let (role, understands) = (NodeRole::Worker, Level::NEWEST);
    Command::RegisterWorker { node, address, understands, role, worker, secrets: None, boot }
}

/// Each has its own, as one that calls too often is turned away.
fn address(number: u32) -> Ipv4Addr {
    let [_, high, middle, low] = (number + 1).to_be_bytes();
    Ipv4Addr::new(127, 128 + high, middle, low)
}
