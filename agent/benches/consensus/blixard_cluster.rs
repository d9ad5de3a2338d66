//! Members of Blixard, and clients that call them as members call each other, or by their local sockets.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use blixard::agent::Traits;
use blixard::api::proto::api_client::ApiClient;
use blixard::api::proto::{ExplainRequest, Freshness, ManifestRequest, StatusReply};
use blixard::identity::NodeIdentity;
use blixard::node::TICK;
use blixard_core::command::{Reply, Request};
use blixard_core::manifest::Manifest;
use blixard_core::state::WINDOW;
use blixard_core::types::{ClientId, VmName};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

use crate::channel::connect;
use crate::cluster::{self, Client as _, Cluster, NAMES, Setup, Timers};
use crate::load::BYTES;
use crate::member::{MAX_WAIT, Member, POLL, credentials, encode, forward};
use crate::process::Process;
use crate::slow;
use crate::vm::{put, spec};

pub struct Blixard {
    dir: PathBuf,
    setup: Setup,
    members: Vec<Member>,
    identity: NodeIdentity,
}

impl Cluster for Blixard {
    type Client = Client;

    async fn start(dir: &Path, setup: Setup) -> Self {
        let [first, second, third, ..] = NAMES;
        let mut members = Member::write(dir, [first, second, third]);
        let identity = Member::found(&mut members, |member| start(member, setup)).await;
        Self { dir: dir.to_owned(), setup, members: members.into(), identity }
    }

    fn processes(&mut self) -> impl Iterator<Item = &mut Option<Process>> {
        self.members.iter_mut().map(|member| &mut member.process)
    }

    fn start_member(&mut self, member: usize) {
        start(&mut self.members[member], self.setup);
    }

    /// The one that takes a write: its status tells of all VMs, which may be many.
    async fn leader(&self) -> usize {
        let mut clients: Vec<_> = (0..self.members.len()).map(|member| self.client(member)).collect();
        let (begun, mut polls) = (Instant::now(), tokio::time::interval(POLL));
        loop {
            polls.tick().await;
            let mut refusals = Vec::new();
            for (member, client) in clients.iter_mut().enumerate() {
                match client.write(0).await {
                    Ok(()) => return member,
                    Err(refusal) => refusals.push(refusal),
                }
            }
            assert!(begun.elapsed() < MAX_WAIT, "nobody takes a write: {refusals:?}");
        }
    }

    async fn term(&self) -> u64 {
        let has_leader = |status: &StatusReply| status.cluster.as_ref().is_some_and(|all| !all.leader.is_empty());
        self.members[0].sees("a leader", has_leader).await.cluster.map_or(0, |cluster| cluster.term)
    }

    fn clients(&self, member: usize, clients: usize, connections: usize) -> Vec<Client> {
        let (member, tls) = (&self.members[member], credentials(&self.identity));
        let channels: Vec<_> = (0..connections).map(|_| connect(member.address, tls.clone())).collect();
        let client = |number: usize| Client {
            channel: channels[number % connections].clone(),
            local: to_socket(member.dir.join("run/api.sock")),
            request: Request {
                client: ClientId(u128::from_be_bytes(blixard::identity::random())),
                sequence: 0,
                answered: 0,
                until: WINDOW,
            },
        };
        (0..clients).map(client).collect()
    }

    /// By one manifest, which is applied by the member's socket.
    async fn declare(&self, mut clients: Vec<Client>, count: u32, revision: u32) -> Duration {
        // No command of a client's may touch a VM that is the manifest's.
        let name = |key| format!("declared{key:05}").parse::<VmName>().expect("a label");
        let vms: BTreeMap<_, _> = (0..count).map(|key| (name(key), spec(&format!("{key:05}-{revision}")))).collect();
        let json = serde_json::to_vec(&Manifest::new(vms).expect("it is valid")).expect("it is plain data");
        let begun = Instant::now();
        let request = ManifestRequest { json, from: "the bench".to_owned() };
        let applied = clients[0].local.apply(request).await.expect("a manifest can be applied").into_inner();
        assert_eq!(applied.result, "applied", "it is another one each time");
        begun.elapsed()
    }

    /// One more server, which lists the others and itself: it has the log and no vote, as a spare.
    async fn join(&mut self) -> (usize, Instant) {
        let number = self.members.len();
        self.members.push(Member::new(&self.dir, NAMES[number]));
        self.members[number].write_config(&self.members);
        let begun = Instant::now();
        self.start_member(number);
        (number, begun)
    }
}

fn start(member: &mut Member, Setup { slow, timers }: Setup) {
    if let Some(Timers { election, heartbeat }) = timers {
        let ticks = |time: Duration| u16::try_from(time.as_millis() / TICK.as_millis()).expect("a timer takes seconds");
        member.traits =
            Traits { election_ticks: ticks(election), heartbeat_ticks: ticks(heartbeat), ..Traits::default() };
    }
    member.process = Some(slow::start(member.command(), &member.log(), slow));
}

/// A client of a local agent, connected when it is first used, and again after the agent was away.
fn to_socket(path: PathBuf) -> ApiClient<Channel> {
    let connect = tower::service_fn(move |_| {
        let path = path.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
    });
    let channel = Endpoint::from_static("http://member").connect_with_connector_lazy(connect);
    ApiClient::new(channel).max_decoding_message_size(64 << 20)
}

/// Writes as the members forward what they are asked, and reads as the command line does with `--stale`.
pub struct Client {
    channel: Channel,
    local: ApiClient<Channel>,
    request: Request,
}

impl cluster::Client for Client {
    async fn write(&mut self, key: u32) -> Result<(), String> {
        self.request.sequence += 1;
        self.request.answered = self.request.sequence;
        let command = encode(self.request, put(&vm(key), None));
        assert!(command.len() >= BYTES, "{} bytes", command.len());
        let answer = forward(&self.channel, command).await??;
        self.request.until = answer.index + WINDOW;
        if answer.reply == Reply::Done { Ok(()) } else { Err(format!("{:?}", answer.reply)) }
    }

    async fn read(&mut self, key: u32) -> Result<bool, String> {
        let request = ExplainRequest { vm: vm(key), freshness: Freshness::Stale.into() };
        match self.local.explain(request).await {
            Ok(reply) => Ok(!reply.into_inner().instances.is_empty()),
            Err(status) if status.code() == tonic::Code::NotFound => Ok(false),
            Err(status) => Err(status.message().to_owned()),
        }
    }
}

fn vm(key: u32) -> String {
    format!("vm{key:05}")
}
