//! Members of Blixard, and clients that call them as members call each other, or by their local sockets.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use blixard::agent::{Told, Traits};
use blixard::api::proto::api_client::ApiClient;
use blixard::api::proto::{ExplainRequest, Freshness, ManifestRequest, StatusReply, StatusRequest};
use blixard::config::Config;
use blixard::identity::{Expected, NodeIdentity, member_client};
use blixard::seat::Seat;
use blixard::store::Store;
use blixard::telemetry;
use blixard::units::{Units, UnitsError};
use blixard_core::command::{Answer, Command as Change, Entry, Reply, Request};
use blixard_core::manifest::{Manifest, VmSpec};
use blixard_core::reconcile::UnitChange;
use blixard_core::state::WINDOW;
use blixard_core::types::{ClientId, Hypervisor, Labels, RestartPolicy, Timestamp, VmName};
use blixard_core::unit::{Observed, VmUnit};
use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tonic::transport::Channel;

use crate::channel::{call, over_tls, to_socket};
use crate::cluster::{self, Client as _, Cluster};
use crate::load::BYTES;
use crate::process::Process;
use crate::{MAX_WAIT, POLL, free_address};

mod proto {
    #![allow(clippy::pedantic, reason = "it is generated")]
    tonic::include_proto!("blixard.peer.v1");
}

/// The verb under which the bench starts itself as a member.
pub const VERB: &str = "member";
const NAMES: [&str; 5] = ["alpha", "beta", "gamma", "delta", "epsilon"];
/// How long a member may take over a write, in milliseconds.
const WRITE_TIMEOUT_MS: u64 = 5000;

pub struct Blixard {
    dir: PathBuf,
    slow: Option<Duration>,
    hosts: Vec<Host>,
    processes: Vec<Process>,
    identity: NodeIdentity,
}

struct Host {
    name: &'static str,
    address: SocketAddr,
    dir: PathBuf,
}

/// What the bench's members run: nothing.
#[derive(Default)]
struct NoUnits(watch::Sender<u64>);

impl Units for NoUnits {
    async fn observe(&self) -> Result<Observed, UnitsError> {
        Ok(Observed::default())
    }

    async fn prepare(&self, _unit: &VmUnit) -> Result<(), UnitsError> {
        Ok(())
    }

    async fn perform(&self, _change: &UnitChange) -> Result<(), UnitsError> {
        Ok(())
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.0.subscribe()
    }
}

/// In a started process: an agent with everything but units, until it is told to end.
pub fn be_member(config: &str) {
    telemetry::start();
    let config = Config::load(Path::new(config)).expect("the bench has written it");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("the system has threads to spare").block_on(async {
        let mut terminate = signal(SignalKind::terminate()).expect("signals can be listened for");
        let (tell, mut told) = mpsc::channel(1);
        tokio::spawn(async move {
            terminate.recv().await;
            let _ = tell.send(Told::Stop).await;
        });
        let served =
            blixard::agent::serve(config, Traits::default(), async |_| Ok(NoUnits::default()), &mut told).await;
        served.unwrap_or_else(|error| panic!("the agent ends: {}", blixard::error_chain(&error)));
    });
}

impl Cluster for Blixard {
    type Client = Client;

    async fn start(dir: &Path, slow: Option<Duration>) -> Self {
        let hosts = [0, 1, 2].map(|number| Host::new(dir, number));
        for host in &hosts {
            host.write_config(&hosts.each_ref());
        }
        let mut processes = hosts.each_ref().map(|host| host.start(slow));
        let is_whole = |status: &StatusReply| {
            status.problems.is_empty() && status.cluster.as_ref().is_some_and(|cluster| cluster.servers == 3)
        };
        for host in &hosts {
            host.sees("three servers", is_whole).await;
        }
        // Clients call as this one does: its store is read while it isn't in use.
        let [.., last] = &mut processes;
        last.end(Signal::TERM);
        let identity = hosts[2].identity();
        last.start_again();
        for host in &hosts {
            host.sees("three servers again", is_whole).await;
        }
        Self { dir: dir.to_owned(), slow, hosts: hosts.into(), processes: processes.into(), identity }
    }

    fn members(&mut self) -> &mut [Process] {
        &mut self.processes
    }

    /// The one that takes a write: its status tells of all VMs, which may be many.
    async fn leader(&self) -> usize {
        let mut clients: Vec<_> = (0..self.hosts.len()).map(|member| self.client(member)).collect();
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
        let status = self.hosts[0].sees("a leader", |status| !leader_of(status).is_empty()).await;
        status.cluster.map_or(0, |cluster| cluster.term)
    }

    fn clients(&self, member: usize, clients: usize, connections: usize) -> Vec<Client> {
        let host = &self.hosts[member];
        let tls = Arc::new(member_client(&self.identity, Expected::AnyMember).expect("an identity is one"));
        let channels: Vec<_> = (0..connections).map(|_| over_tls(host.address, tls.clone())).collect();
        let client = |number: usize| Client {
            channel: channels[number % connections].clone(),
            local: host.api(),
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
        let vms: BTreeMap<_, _> = (0..count).map(|key| (declared_name(key), spec(key, revision))).collect();
        let json = serde_json::to_vec(&Manifest::new(vms).expect("it is valid")).expect("it is plain data");
        let begun = Instant::now();
        let request = ManifestRequest { json, from: "the bench".to_owned() };
        let applied = clients[0].local.apply(request).await.expect("a manifest can be applied").into_inner();
        assert_eq!(applied.result, "applied", "it is another one each time");
        begun.elapsed()
    }

    /// One more server, which lists the others and itself: it learns first, and votes once it has caught up.
    async fn join(&mut self) -> (usize, Instant) {
        let number = self.hosts.len();
        self.hosts.push(Host::new(&self.dir, number));
        let host = &self.hosts[number];
        host.write_config(&self.hosts.iter().collect::<Vec<_>>());
        let begun = Instant::now();
        self.processes.push(host.start(self.slow));
        (number, begun)
    }
}

impl Host {
    fn new(dir: &Path, number: usize) -> Self {
        let name = NAMES[number];
        Self { name, address: free_address(), dir: dir.join(name) }
    }

    fn write_config(&self, servers: &[&Self]) {
        let servers: Vec<_> = servers.iter().map(|server| format!("{}@{}", server.name, server.address)).collect();
        let (name, address, at) = (self.name, self.address, self.dir.display());
        let config = format!(
            "[node]\nname = \"{name}\"\ndata_dir = \"{at}/data\"\nrun_dir = \"{at}/run\"\nlisten = \"{address}\"\n\
             [cluster]\nservers = {servers:?}\nsecret_file = \"{at}/secret\"\n"
        );
        let written = std::fs::create_dir_all(&self.dir)
            .and_then(|()| std::fs::write(self.dir.join("config.toml"), config))
            .and_then(|()| std::fs::write(self.dir.join("secret"), "what all members of the bench know"));
        written.expect("the bench's folder can be written");
    }

    fn start(&self, slow: Option<Duration>) -> Process {
        let mut command = Command::new(std::env::current_exe().expect("the bench knows its own path"));
        command.arg(VERB).arg(self.dir.join("config.toml"));
        Process::start(&command, self.dir.join("log"), slow)
    }

    fn api(&self) -> ApiClient<Channel> {
        ApiClient::new(to_socket(self.dir.join("run/api.sock"))).max_decoding_message_size(64 << 20)
    }

    /// Its status, once it shows what is wanted.
    async fn sees(&self, what: &str, wanted: impl Fn(&StatusReply) -> bool) -> StatusReply {
        let (begun, mut polls, mut api) = (Instant::now(), tokio::time::interval(POLL), self.api());
        loop {
            polls.tick().await;
            match api.status(StatusRequest::default()).await.map(tonic::Response::into_inner) {
                Ok(status) if wanted(&status) => return status,
                seen => assert!(begun.elapsed() < MAX_WAIT, "{}: no {what}; last seen: {seen:?}", self.name),
            }
        }
    }

    fn identity(&self) -> NodeIdentity {
        let store = Store::open(&self.dir.join("data/raft/state.redb")).expect("it is a store");
        let kept = store.expect("it was made").load().expect("it can be read").identity.expect("it is a member");
        Seat::identity_of(&kept).expect("it is a member")
    }
}

fn leader_of(status: &StatusReply) -> &str {
    status.cluster.as_ref().map_or("", |cluster| &cluster.leader)
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
        let command = Change::PutVm { name: name(key), spec: spec(key, 0), running: false, must: None };
        let command = Entry { at: Timestamp(0), decided_in: None, request: Some(self.request), command }.encode();
        assert!(command.len() >= BYTES, "{} bytes", command.len());
        let request = proto::ForwardRequest { command, timeout_ms: WRITE_TIMEOUT_MS };
        let reply: proto::ForwardReply = call(&self.channel, "/blixard.peer.v1.Peer/Forward", request).await?;
        let Some(proto::forward_reply::Result::Outcome(outcome)) = reply.result else {
            return Err(format!("{reply:?}"));
        };
        let answer: Answer = postcard::from_bytes(&outcome).map_err(|error| error.to_string())?;
        self.request.until = answer.index + WINDOW;
        if answer.reply == Reply::Done { Ok(()) } else { Err(format!("{:?}", answer.reply)) }
    }

    async fn read(&mut self, key: u32) -> Result<bool, String> {
        let request = ExplainRequest { vm: name(key).to_string(), freshness: Freshness::Stale.into() };
        match self.local.explain(request).await {
            Ok(reply) => Ok(!reply.into_inner().instances.is_empty()),
            Err(status) if status.code() == tonic::Code::NotFound => Ok(false),
            Err(status) => Err(status.message().to_owned()),
        }
    }
}

fn name(key: u32) -> VmName {
    format!("vm{key:05}").parse().expect("a label")
}

/// Of a VM that is the manifest's, which no command of a client's may touch.
fn declared_name(key: u32) -> VmName {
    format!("declared{key:05}").parse().expect("a label")
}

/// A VM that no host of the bench would run.
fn spec(key: u32, revision: u32) -> VmSpec {
    let runner = format!("/nix/store/0c6kzph7l0dcbfmjap64f0czdafn3b7x-microvm-qemu-vm{key:05}-{revision}");
    VmSpec {
        runners: vec![runner.parse().expect("a store path")],
        system: "x86_64-linux".to_owned(),
        hypervisor: Hypervisor::Qemu,
        vcpus: 1,
        memory_mib: 512,
        memory_overhead_mib: None,
        disk_mib: 0,
        kvm: true,
        requires: Labels::from([("payload".to_owned(), "x".repeat(120))]),
        restart: RestartPolicy::Always,
        notifies: false,
    }
}
