//! Hosts that only say that they are there: by the calls of a worker, each over connections and a certificate of its own.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use blixard::identity::{Authority, NodeIdentity, NodeKey, random};
use blixard_core::command::{Answer, Command, NewNode, Reply, Request, Worker as Offered};
use blixard_core::state::WINDOW;
use blixard_core::types::{ClientId, Hash, Hypervisor, Labels, Level, NodeEpoch, NodeId, NodeRole, Nonce, Resources};
use futures_util::{StreamExt as _, stream};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
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
const JOINING: usize = 32;

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

struct Worker {
    leader: Channel,
    /// Of the server that tells it what to do.
    followed: Channel,
    epoch: NodeEpoch,
}

impl Workers {
    /// So many, armed, which have their leases renewed as often as this.
    pub async fn start(servers: &Servers, count: u32, period: Duration) -> Self {
        let leader = servers.leader().await;
        let own = connect(leader.address, credentials(&servers.identity));
        let joining = stream::iter(0..count).map(|number| Worker::join(servers, leader, &own, number));
        let workers: Vec<_> = joining.buffer_unordered(JOINING).collect().await;
        let (calls, mut running) = (Arc::new(Calls::default()), JoinSet::new());
        let begin = Instant::now();
        let following = stream::iter(workers).map(async |worker| (worker.follow().await, worker));
        let workers: Vec<_> = following.buffer_unordered(JOINING).collect().await;
        for ((told, worker), number) in workers.into_iter().zip(0..count) {
            // All over the period.
            let begin = begin + period * number / count;
            running.spawn(hear(told));
            running.spawn(worker.renew(calls.clone(), begin, period));
        }
        Self { calls, _running: running }
    }
}

impl Worker {
    /// A new host that the cluster knows, and whose fence is armed.
    async fn join(servers: &Servers, leader: &Member, by: &Channel, number: u32) -> Self {
        let mut commands = Commands { client: ClientId(u128::from_be_bytes(random())), sequence: 0 };
        let key = NodeKey::generate().expect("a key can be made");
        let request = key.request().expect("a key can be shown");
        let address: blixard_core::types::Address =
            format!("{}:7000", address(number)).parse().expect("it is an address");
        let new = NewNode {
            name: format!("host{number:05}").parse().expect("it is a name"),
            address: address.clone(),
            key: Authority::key_of(&request).expect("it was made just now"),
            understands: Level::NEWEST,
            role: NodeRole::Worker,
        };
        let Reply::Admitted { node, .. } = commands.forward(by, Command::Admit(new)).await else {
            panic!("host {number} is not admitted");
        };
        let identity = identity(&servers.identity, by, &key, node, request).await;
        let tls = credentials(&identity);
        let followed = &servers.members[usize::try_from(node.0).expect("it is small") % servers.members.len()];
        let channel = |member: &Member| connect_from(self::address(number), member.address, tls.clone());
        let (leader, followed) = (channel(leader), channel(followed));
        commands.forward(&leader, register(node, address)).await;
        let nonce = Nonce(random());
        commands.forward(&leader, Command::Arm { node, expected: NodeEpoch(0), nonce, machine: None }).await;
        Self { leader, followed, epoch: NodeEpoch(1) }
    }

    /// What a server tells it to do.
    async fn follow(&self) -> Streaming<FollowReply> {
        let mut client = ready(&self.followed).await.expect("a server is there");
        let (path, codec) =
            (PathAndQuery::from_static("/blixard.peer.v1.Peer/Follow"), tonic_prost::ProstCodec::default());
        let told = client.server_streaming(tonic::Request::new(FollowRequest {}), path, codec).await;
        told.expect("a server tells members what to do").into_inner()
    }

    /// As often as that, nothing else tells the leader that it is there.
    async fn renew(self, calls: Arc<Calls>, begin: Instant, period: Duration) {
        let mut due = interval_at(begin, period);
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            due.tick().await;
            let request = LeaseRequest { epoch: self.epoch.0 };
            let reply: Result<LeaseReply, _> = call(&self.leader, "/blixard.peer.v1.Peer/Lease", request).await;
            let count = match reply.map(|reply| reply.result) {
                Ok(Some(lease_reply::Result::Granted(_))) => &calls.granted,
                other => {
                    eprintln!("a lease is not renewed: {other:?}");
                    &calls.failed
                }
            };
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// It is never told anything new.
async fn hear(mut told: Streaming<FollowReply>) {
    while told.message().await.expect("a server goes on").is_some() {}
}

/// What one host has the cluster do, one thing after the other.
struct Commands {
    client: ClientId,
    sequence: u64,
}

impl Commands {
    /// Tried again while the leader doesn't take it: it may not know yet that who asks is a member.
    async fn forward(&mut self, channel: &Channel, command: Command) -> Reply {
        self.sequence += 1;
        let Self { client, sequence } = *self;
        let request = Request { client, sequence, answered: sequence, until: WINDOW };
        let (begun, command) = (Instant::now(), encode(request, command));
        loop {
            match forward(channel, command.clone()).await {
                Ok(Ok(Answer { reply: Reply::Refused(why), .. }) | Err(why)) => panic!("a host is refused: {why}"),
                Ok(Ok(Answer { reply, .. })) => return reply,
                Err(error) => assert!(begun.elapsed() < MAX_WAIT, "the leader takes nothing of a host: {error}"),
            }
            pause(POLL).await;
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

fn register(node: NodeId, address: blixard_core::types::Address) -> Command {
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
