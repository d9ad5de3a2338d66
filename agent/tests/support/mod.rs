//! Whole agents in one process: real log, store, TLS and API socket; only the units are made up.

use std::fs::{File, TryLockError};
use std::net::SocketAddr;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use blixard::agent::{AgentError, Told, Traits};
use blixard::api::proto;
use blixard::api::proto::api_client::ApiClient;
use blixard::config::Config;
use blixard::log::LogError;
use blixard::store::StoreError;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tonic::transport::Channel;

mod address;
mod units;

use address::free_address;
pub use units::FakeUnits;

/// Longest that anything is waited for: far more than it takes, for a machine with much else to do.
const MAX_WAIT: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(20);

/// Looks until it sees what it looks for; panics with the last thing seen when that takes too long.
pub async fn wait_for<T>(what: &str, mut look: impl AsyncFnMut() -> Result<T, String>) -> T {
    let begin = Instant::now();
    let mut polls = tokio::time::interval(POLL);
    loop {
        polls.tick().await;
        match look().await {
            Ok(found) => return found,
            Err(seen) => assert!(begin.elapsed() < MAX_WAIT, "waited {MAX_WAIT:?} for {what}; last seen: {seen}"),
        }
    }
}

/// One host: what its agent is configured with, its disk, and its units, which outlive the agent.
pub struct Host {
    pub name: &'static str,
    pub dir: tempfile::TempDir,
    pub address: SocketAddr,
    /// `cluster.servers`
    pub servers: Vec<String>,
    pub secret: &'static str,
    pub next_secret: Option<&'static str>,
    /// What it has instead of the secret.
    pub token: Option<String>,
    /// The same: a private key of its own, and by what it knows the cluster.
    pub key: Option<(String, String)>,
    pub zone: &'static str,
    pub role: &'static str,
    pub cpus: u32,
    pub authority: bool,
    pub traits: Traits,
    pub units: FakeUnits,
}

impl Host {
    /// Hosts that list each other, in this order; nothing is on their disks.
    pub fn blank<const N: usize>(names: [&'static str; N]) -> [Self; N] {
        let addresses = names.map(|_| free_address());
        let servers: Vec<String> = names.iter().zip(addresses).map(|(name, at)| format!("{name}@{at}")).collect();
        let mut addresses = addresses.into_iter();
        names.map(|name| Self {
            name,
            dir: tempfile::tempdir().unwrap(),
            address: addresses.next().unwrap(),
            servers: servers.clone(),
            secret: "a secret of thirty-two bytes, say",
            next_secret: None,
            token: None,
            key: None,
            zone: "a",
            role: "auto",
            cpus: 4,
            authority: false,
            traits: Traits::default(),
            units: FakeUnits::default(),
        })
    }

    /// The file that this host carries; one that isn't there isn't configured.
    pub fn manifest(&self) -> PathBuf {
        self.dir.path().join("manifest.json")
    }

    pub fn api(&self) -> Api {
        Api { socket: self.dir.path().join("run/api.sock") }
    }

    /// Written to its place, too.
    pub fn config(&self) -> Config {
        let dir = self.dir.path().display();
        let Self { name, address, servers, zone, role, cpus, authority, .. } = self;
        let is_listed = servers.iter().any(|server| server.starts_with(&format!("{name}@")));
        let reached = if is_listed { String::new() } else { format!("address = \"{address}\"\n") };
        let carried = if self.manifest().exists() {
            format!("[manifest]\npath = \"{dir}/manifest.json\"\nauthority = {authority}\n")
        } else {
            String::new()
        };
        let (file, content) = match (&self.token, &self.key) {
            (Some(token), _) => ("token", &**token),
            (None, Some((key, _))) => ("key", &**key),
            (None, None) => ("secret", self.secret),
        };
        let next = self.next_secret.map_or_else(String::new, |secret| {
            std::fs::write(self.dir.path().join("next-secret"), secret).unwrap();
            format!("next_secret_file = \"{dir}/next-secret\"\n")
        });
        let credential = format!("{file}_file = \"{dir}/{file}\"\n");
        let (of_node, of_cluster) = match &self.key {
            Some((_, authority)) => (credential, format!("authority = \"{authority}\"\n")),
            None => (String::new(), credential),
        };
        let text = format!(
            "[node]\nname = \"{name}\"\ndata_dir = \"{dir}/data\"\nrun_dir = \"{dir}/run\"\nlisten = \"{address}\"\n\
             role = \"{role}\"\n{reached}{of_node}labels = {{ zone = \"{zone}\" }}\n\
             [cluster]\nservers = {servers:?}\n{of_cluster}{next}\
             [resources]\ncpus = {cpus}\nmemory_mib = 4096\ndisk_mib = 2048\nhypervisors = [\"qemu\"]\n\
             reserve = {{ memory_mib = 96, disk_mib = 48 }}\n{carried}"
        );
        let path = self.dir.path().join("config.toml");
        std::fs::write(&path, text).unwrap();
        std::fs::write(self.dir.path().join(file), content).unwrap();
        Config::load(&path).unwrap()
    }

    pub fn start(&self) -> Agent {
        let (tell, mut told) = mpsc::channel(4);
        let (config, traits, units) = (self.config(), self.traits.clone(), self.units.clone());
        let connect = move |_| std::future::ready(Ok(units.clone()));
        let running = tokio::spawn(async move { blixard::agent::serve(config, traits, connect, &mut told).await });
        Agent { tell, running, api: self.api(), data: self.dir.path().join("data/raft") }
    }
}

/// An agent that runs until it is told to stop, or the test ends.
pub struct Agent {
    tell: mpsc::Sender<Told>,
    running: JoinHandle<Result<(), AgentError>>,
    api: Api,
    /// Where its log and store are.
    data: PathBuf,
}

/// What an agent is asked through.
pub struct Api {
    socket: PathBuf,
}

impl Agent {
    pub async fn tell(&self, told: Told) {
        self.tell.send(told).await.expect("the agent runs");
    }

    /// Returns once it has ended, and with what; another one can have its files by then.
    pub async fn ended(self) -> Result<(), String> {
        let Self { running, data, .. } = self;
        let ended = tokio::time::timeout(MAX_WAIT, running).await.expect("the agent ends in time");
        let ended = ended.expect("the agent doesn't panic");
        let has_files = !matches!(
            ended,
            Err(AgentError::OpenLog(LogError::Locked { .. }) | AgentError::OpenStore(StoreError::Locked { .. }))
        );
        if has_files {
            // Where it couldn't go on, a thread may still write: a process would end with it.
            let are_free = || ["log/lock", "state.redb"].iter().try_for_each(|name| is_free(&data.join(name)));
            wait_for("its files to be free", async || are_free()).await;
        }
        ended.map_err(|error| blixard::error_chain(&error))
    }

    /// Has it end, unless it has by itself, and returns how it did.
    pub async fn end(self) -> Result<(), String> {
        let _ = self.tell.send(Told::Stop).await;
        self.ended().await
    }

    pub async fn stop(self) {
        self.end().await.expect("an agent that is told to stops without an error");
    }
}

/// Whether nobody has a lock on this file, if there is one.
fn is_free(path: &Path) -> Result<(), String> {
    match File::open(path).map(|file| file.try_lock()) {
        Ok(Err(TryLockError::WouldBlock)) => Err(format!("{} is locked", path.display())),
        _ => Ok(()),
    }
}

impl Deref for Agent {
    type Target = Api;

    fn deref(&self) -> &Api {
        &self.api
    }
}

impl Api {
    /// A client of its API socket, as soon as that is there.
    pub async fn client(&self) -> ApiClient<Channel> {
        wait_for("the API socket", async || {
            blixard::cli::connect(&self.socket).await.map_err(|error| blixard::error_chain(&error))
        })
        .await
    }

    /// What its status shows, once it shows what `wanted` looks for.
    pub async fn sees(&self, what: &str, wanted: impl Fn(&proto::StatusReply) -> bool) -> proto::StatusReply {
        let mut client = self.client().await;
        wait_for(what, async || match client.status(proto::StatusRequest::default()).await {
            Ok(reply) if wanted(reply.get_ref()) => Ok(reply.into_inner()),
            Ok(reply) => Err(format!("{:#?}", reply.into_inner())),
            Err(status) => Err(status.message().to_owned()),
        })
        .await
    }

    pub async fn is_healthy(&self) -> proto::StatusReply {
        self.sees("a healthy cluster", |status| status.problems.is_empty() && !status.nodes.is_empty()).await
    }
}

/// A runner's path; nothing is there.
pub fn runner(name: &str) -> String {
    format!("/nix/store/0c6kzph7l0dcbfmjap64f0czdafn3b7x-microvm-qemu-{name}")
}

/// A manifest of VMs with one replica each that every host could run, given as name and further fields.
pub fn manifest(vms: &[(&str, &str)]) -> Vec<u8> {
    manifest_of("", vms)
}

/// The same, with what it says of the cluster.
pub fn manifest_of(cluster: &str, vms: &[(&str, &str)]) -> Vec<u8> {
    let vm = |(name, more): &(&str, &str)| {
        let (system, runner) = (blixard::probe::system(), runner(&format!("{name}-0")));
        format!(
            r#""{name}": {{ "runners": ["{runner}"], "system": "{system}", "hypervisor": "qemu", "vcpus": 1,
                "memoryMiB": 100, "kvm": false{more} }}"#
        )
    };
    let vms: Vec<String> = vms.iter().map(vm).collect();
    format!(r#"{{ "version": 1, "cluster": {{ {cluster} }}, "vms": {{ {} }} }}"#, vms.join(", ")).into_bytes()
}
