//! Servers as processes of their own, which have everything but units; a program that starts them runs itself.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use blixard::agent::Traits;
use blixard::api::proto::{StatusReply, StatusRequest};
use blixard::cli;
use blixard::identity::{Expected, NodeIdentity, member_client};
use blixard::seat::Seat;
use blixard::store::Store;
use blixard::units::{Units, UnitsError};
use blixard_core::command::{Answer, Command as Change, Entry, Request};
use blixard_core::reconcile::UnitChange;
use blixard_core::types::Timestamp;
use blixard_core::unit::{Observed, VmUnit};
use rustls::ClientConfig;
use tokio::sync::watch;
use tonic::transport::Channel;

use crate::address::free_address;
use crate::channel::call;
use crate::process::Process;

pub mod proto {
    #![allow(clippy::pedantic, reason = "it is generated")]
    tonic::include_proto!("blixard.peer.v1");
}

/// Names the configuration in a process that is to be a server.
const CONFIG: &str = "BLIXARD_MEMBER_CONFIG";
/// How many ticks an election takes there to be due, and a heartbeat.
const TICKS: [&str; 2] = ["BLIXARD_MEMBER_ELECTION_TICKS", "BLIXARD_MEMBER_HEARTBEAT_TICKS"];
/// How long a server may take to show what it is to show, and how often that is looked at.
pub const MAX_WAIT: Duration = Duration::from_secs(90);
pub const POLL: Duration = Duration::from_millis(20);

/// A server: its place, which stays, and its process, if it runs.
pub struct Member {
    pub name: &'static str,
    pub address: SocketAddr,
    pub dir: PathBuf,
    pub traits: Traits,
    pub process: Option<Process>,
}

/// What servers run: nothing.
#[derive(Default)]
struct NoUnits(watch::Sender<u64>);

impl Units for NoUnits {
    async fn observe(&self) -> Result<Observed, UnitsError> {
        Ok(Observed::default())
    }

    fn is_prepared(&self, _unit: &VmUnit) -> bool {
        true
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

/// In a process that [`Member::command`] has started: an agent until it ends, and its exit status; nothing elsewhere.
pub fn be_member() -> Option<ExitCode> {
    let config = std::env::var_os(CONFIG)?;
    let [election_ticks, heartbeat_ticks] = TICKS.map(|variable| {
        let ticks = std::env::var(variable).expect("whoever starts it says so");
        ticks.parse().expect("it is a number")
    });
    let traits = Traits { election_ticks, heartbeat_ticks, ..Traits::default() };
    Some(blixard::agent::run(config.as_ref(), traits, async |_| Ok(NoUnits::default())))
}

impl Member {
    /// Servers that list each other, in this order; none runs yet.
    pub fn write<const N: usize>(dir: &Path, names: [&'static str; N]) -> [Self; N] {
        let members = names.map(|name| Self::new(dir, name));
        for member in &members {
            member.write_config(&members);
        }
        members
    }

    pub fn new(dir: &Path, name: &'static str) -> Self {
        Self { name, address: free_address(), dir: dir.join(name), traits: Traits::default(), process: None }
    }

    /// Makes its folder, with a configuration that lists these servers.
    pub fn write_config(&self, servers: &[Self]) {
        let servers: Vec<_> = servers.iter().map(|server| format!("{}@{}", server.name, server.address)).collect();
        let (Self { name, address, dir, .. }, at) = (self, self.dir.display());
        let config = format!(
            "[node]\nname = \"{name}\"\ndata_dir = \"{at}/data\"\nrun_dir = \"{at}/run\"\nlisten = \"{address}\"\n\
             role = \"server\"\n\
             [cluster]\nservers = {servers:?}\nsecret_file = \"{at}/secret\"\n"
        );
        let written = std::fs::create_dir_all(dir)
            .and_then(|()| std::fs::write(dir.join("config.toml"), config))
            .and_then(|()| std::fs::write(dir.join("secret"), "what all servers of a test know, and nobody else"));
        written.expect("the folder can be written");
    }

    /// Founds the cluster of these servers with `start`; an identity for its clients.
    pub async fn found(members: &mut [Self], start: impl Fn(&mut Self)) -> NodeIdentity {
        let servers = members.len();
        // One that still learns is no server: without it the others may be too few to lose one.
        let is_whole = |status: &StatusReply| {
            let voters = status.cluster.as_ref().map_or(0, |cluster| cluster.servers as usize);
            status.problems.is_empty() && status.nodes.len() == servers && voters == servers
        };
        members.iter_mut().for_each(&start);
        for member in &*members {
            member.sees("all servers", is_whole).await;
        }
        // Clients call as this one does: its store is read while it isn't in use.
        let last = members.last_mut().expect("a cluster has servers");
        let ended = last.process.take().expect("it was started just now").stop();
        assert!(ended.success(), "{}: {ended}", last.name);
        let identity = last.identity();
        start(last);
        for member in &*members {
            member.sees("a whole and healthy cluster", is_whole).await;
        }
        identity
    }

    /// The program that runs, as this server.
    pub fn command(&self) -> Command {
        let mut command = Command::new(std::env::current_exe().expect("a program knows its own path"));
        command.args(crate::MEMBER_ARGUMENTS).env(CONFIG, self.dir.join("config.toml"));
        let Traits { election_ticks, heartbeat_ticks, .. } = self.traits;
        command.envs(TICKS.into_iter().zip([election_ticks, heartbeat_ticks].map(|ticks| ticks.to_string())));
        // Its messages go to its own log.
        command.env_remove("JOURNAL_STREAM").env_remove("NOTIFY_SOCKET").stdin(Stdio::null());
        command
    }

    pub fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// Its status, once it shows what is wanted.
    pub async fn sees(&self, what: &str, wanted: impl Fn(&StatusReply) -> bool) -> StatusReply {
        let (begun, mut polls) = (Instant::now(), tokio::time::interval(POLL));
        loop {
            polls.tick().await;
            match self.status().await {
                Ok(status) if wanted(&status) => return status,
                seen => assert!(begun.elapsed() < MAX_WAIT, "{}: no {what}; last seen: {seen:?}", self.name),
            }
        }
    }

    /// What it answers, or why it doesn't.
    pub async fn status(&self) -> Result<StatusReply, String> {
        let client = cli::connect(&self.dir.join("run/api.sock")).await;
        let mut client = client.map_err(|error| blixard::error_chain(&error))?;
        let status = client.status(StatusRequest::default()).await;
        status.map(tonic::Response::into_inner).map_err(|status| status.message().to_owned())
    }

    fn identity(&self) -> NodeIdentity {
        let store = Store::open(&self.dir.join("data/raft/state.redb")).expect("it is a store");
        let kept = store.expect("it was made").identity().expect("it can be read").expect("it is a member");
        Seat::of(&kept).map(|seat| seat.identity).expect("it is a member")
    }
}

/// With which a client calls as a member does.
pub fn credentials(identity: &NodeIdentity) -> Arc<ClientConfig> {
    Arc::new(member_client(identity, Expected::AnyMember).expect("an identity is one"))
}

/// A command as it is forwarded.
pub fn encode(request: Request, command: Change) -> Vec<u8> {
    Entry { at: Timestamp(0), decided_in: None, request: Some(request), command }.encode()
}

/// What came of a command, or why it never took effect and never will; an error if this server doesn't lead or answer.
pub async fn forward(channel: &Channel, command: Vec<u8>) -> Result<Result<Answer, String>, String> {
    let request = proto::ForwardRequest { command, timeout_ms: 5000 };
    let reply: proto::ForwardReply = call(channel, "/blixard.peer.v1.Peer/Forward", request).await?;
    match reply.result {
        Some(proto::forward_reply::Result::Outcome(outcome)) => {
            postcard::from_bytes(&outcome).map(Ok).map_err(|error| error.to_string())
        }
        Some(proto::forward_reply::Result::Refused(why)) => Ok(Err(why)),
        other => Err(format!("{other:?}")),
    }
}
