//! Three members of Blixard, and clients that call them as members call each other.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use blixard::agent::{Told, Traits};
use blixard::api::proto::{StatusReply, StatusRequest};
use blixard::cli;
use blixard::config::Config;
use blixard::identity::{Expected, NodeIdentity, member_client};
use blixard::seat::Seat;
use blixard::store::Store;
use blixard::units::{Units, UnitsError};
use blixard_core::command::{Answer, Command as Change, Entry, Reply, Request};
use blixard_core::manifest::VmSpec;
use blixard_core::reconcile::UnitChange;
use blixard_core::state::WINDOW;
use blixard_core::types::{ClientId, Hypervisor, Labels, RestartPolicy, Timestamp};
use blixard_core::unit::{Observed, VmUnit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tonic::transport::Channel;

use crate::channel::{call, connect};
use crate::load::{BYTES, Writer};
use crate::process::Process;
use crate::{MAX_WAIT, POLL, free_address};

mod proto {
    #![allow(clippy::pedantic, reason = "it is generated")]
    tonic::include_proto!("blixard.peer.v1");
}

/// The verb under which the bench starts itself as a member.
pub const VERB: &str = "member";

pub struct Blixard {
    members: Vec<Member>,
    identity: NodeIdentity,
}

struct Member {
    name: &'static str,
    address: SocketAddr,
    dir: PathBuf,
    process: Option<Process>,
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
    let config = Config::load(Path::new(config)).expect("the bench has written it");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("the system has threads to spare").block_on(async {
        let mut terminate = signal(SignalKind::terminate()).expect("signals can be listened for");
        let (tell, told) = mpsc::channel(1);
        tokio::spawn(async move {
            terminate.recv().await;
            let _ = tell.send(Told::Stop).await;
        });
        let served = blixard::agent::serve(config, Traits::default(), async |_| Ok(NoUnits::default()), told).await;
        served.unwrap_or_else(|error| panic!("the agent ends: {}", blixard::error_chain(&error)));
    });
}

impl Blixard {
    /// A new cluster that has a leader.
    pub async fn start(dir: &Path, slow: Option<Duration>) -> Self {
        let addresses = ["alpha", "beta", "gamma"].map(|name| (name, free_address()));
        let servers: Vec<_> = addresses.iter().map(|(name, address)| format!("{name}@{address}")).collect();
        let mut members: Vec<_> = addresses.iter().map(|own| Member::write(dir, *own, &servers)).collect();
        for member in &mut members {
            member.start(slow);
        }
        for member in &members {
            member.sees("three servers", |status| status.problems.is_empty() && status.nodes.len() == 3).await;
        }
        // Clients call as this one does: its store is read while it isn't in use.
        let last = members.last_mut().expect("there are three");
        last.process.take().expect("it was started just now").stop();
        let identity = last.identity();
        last.start(slow);
        for member in &members {
            member.sees("a healthy cluster", |status| status.problems.is_empty()).await;
        }
        Self { members, identity }
    }

    pub fn processes(&self) -> impl Iterator<Item = &Process> {
        self.members.iter().filter_map(|member| member.process.as_ref())
    }

    /// Clients of the leader, over so many connections.
    pub async fn writers(&self, clients: usize, connections: usize) -> Vec<Client> {
        let leader = |status: &StatusReply| status.cluster.as_ref().map(|cluster| cluster.leader.clone());
        let status =
            self.members[0].sees("a leader", |status| leader(status).is_some_and(|name| !name.is_empty())).await;
        let of_leader = self.members.iter().find(|member| leader(&status).is_some_and(|name| name == member.name));
        let address = of_leader.expect("a member leads").address;
        let tls = Arc::new(member_client(&self.identity, Expected::AnyMember).expect("an identity is one"));
        let mut channels = Vec::new();
        for _ in 0..connections {
            channels.push(connect(address, tls.clone()).await);
        }
        let client = |number: usize| Client {
            channel: channels[number % connections].clone(),
            request: Request {
                client: ClientId(u128::from_be_bytes(blixard::identity::random())),
                sequence: 0,
                answered: 0,
                until: WINDOW,
            },
        };
        (0..clients).map(client).collect()
    }

    pub fn stop(self) {
        self.members.into_iter().filter_map(|member| member.process).for_each(Process::stop);
    }
}

impl Member {
    fn write(dir: &Path, (name, address): (&'static str, SocketAddr), servers: &[String]) -> Self {
        let dir = dir.join(name);
        let at = dir.display();
        let config = format!(
            "[node]\nname = \"{name}\"\ndata_dir = \"{at}/data\"\nrun_dir = \"{at}/run\"\nlisten = \"{address}\"\n\
             [cluster]\nservers = {servers:?}\nsecret_file = \"{at}/secret\"\n"
        );
        let written = std::fs::create_dir_all(&dir)
            .and_then(|()| std::fs::write(dir.join("config.toml"), config))
            .and_then(|()| std::fs::write(dir.join("secret"), "what all members of the bench know"));
        written.expect("the bench's folder can be written");
        Self { name, address, dir, process: None }
    }

    fn start(&mut self, slow: Option<Duration>) {
        let mut command = Command::new(std::env::current_exe().expect("the bench knows its own path"));
        command.arg(VERB).arg(self.dir.join("config.toml"));
        self.process = Some(Process::start(command, &self.dir.join("log"), slow));
    }

    /// Its status, once it shows what is wanted.
    async fn sees(&self, what: &str, wanted: impl Fn(&StatusReply) -> bool) -> StatusReply {
        let (begun, mut polls) = (Instant::now(), tokio::time::interval(POLL));
        loop {
            polls.tick().await;
            match self.status().await {
                Ok(status) if wanted(&status) => return status,
                seen => assert!(begun.elapsed() < MAX_WAIT, "{}: no {what}; last seen: {seen:?}", self.name),
            }
        }
    }

    async fn status(&self) -> Result<StatusReply, String> {
        let client = cli::connect(&self.dir.join("run/api.sock")).await;
        let mut client = client.map_err(|error| blixard::error_chain(&error))?;
        let status = client.status(StatusRequest::default()).await;
        status.map(tonic::Response::into_inner).map_err(|status| status.message().to_owned())
    }

    fn identity(&self) -> NodeIdentity {
        let store = Store::open(&self.dir.join("data/raft/state.redb")).expect("it is a store");
        let kept = store.expect("it was made").load().expect("it can be read").identity.expect("it is a member");
        Seat::identity_of(&kept).expect("it is a member")
    }
}

/// A client of Blixard.
pub struct Client {
    channel: Channel,
    request: Request,
}

impl Writer for Client {
    async fn write(&mut self, key: u32) -> Result<(), String> {
        self.request.sequence += 1;
        self.request.answered = self.request.sequence;
        let entry = Entry { at: Timestamp(0), decided_in: None, request: Some(self.request), command: put(key) };
        let command = entry.encode();
        assert!(command.len() >= BYTES, "{} bytes", command.len());
        let request = proto::ForwardRequest { command, timeout_ms: 5000 };
        let reply: proto::ForwardReply = call(&self.channel, "/blixard.peer.v1.Peer/Forward", request).await?;
        let Some(proto::forward_reply::Result::Outcome(outcome)) = reply.result else {
            return Err(format!("{reply:?}"));
        };
        let answer: Answer = postcard::from_bytes(&outcome).map_err(|error| error.to_string())?;
        self.request.until = answer.index + WINDOW;
        if answer.reply == Reply::Done { Ok(()) } else { Err(format!("{:?}", answer.reply)) }
    }
}

/// A VM that is written, and not run.
fn put(key: u32) -> Change {
    let runner = format!("/nix/store/0c6kzph7l0dcbfmjap64f0czdafn3b7x-microvm-qemu-vm{key:05}-0");
    let spec = VmSpec {
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
    };
    let name = format!("vm{key:05}").parse().expect("a label");
    Change::PutVm { name, spec, running: false, must: None }
}
