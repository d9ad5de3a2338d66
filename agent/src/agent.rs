//! One host's agent: puts the rooms together, starts them, and ends them in order.

use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use blixard_core::ANEW;
use blixard_core::driver::{ELECTION_TICKS, HEARTBEAT_TICKS, StartError};
use blixard_core::state::RowError;
use blixard_core::types::Level;
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use crate::api::{self, ApiError, Stage};
use crate::config::{Config, ConfigError};
use crate::gate::files::{Account, FileError};
use crate::identity::{Clock, SecretError, Secrets};
use crate::log::LogError;
use crate::nix::NixCommand;
use crate::node::{self, End, Handle, NodeError};
use crate::probe::{MachineId, ProbeError};
use crate::seat::SeatError;
use crate::store::StoreError;
use crate::transport::TransportError;
use crate::units::{self, Systemd, Units, UnitsError};
use crate::worker::offer::Occasion;
use crate::{probe, telemetry, worker};

mod boot;
mod data;
mod inbound;
mod machine;
mod pause;
pub mod recovery;
mod renewal;
mod role;
mod servers;
mod watchdog;

use data::Data;
use machine::{Forbidden, MachineError};
use role::Host;

/// The exit status of an agent that can't go on from its disk: `EX_IOERR` of `sysexits.h`.
const EXIT_DISK: u8 = 74;
/// Longest that a runner's download may take.
const REALISE: Duration = Duration::from_secs(1800);

/// What keeps an agent from running.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error("cannot start")]
    Config(#[source] ConfigError),
    #[error("cannot start")]
    Secret(#[source] SecretError),
    #[error(
        "cannot use the directory {path}: let root write to it, see that its disk works and has room, or set another in the configuration"
    )]
    MakeDir { path: PathBuf, source: std::io::Error },
    #[error("cannot open the log")]
    OpenLog(#[source] LogError),
    #[error("cannot open the store")]
    OpenStore(#[source] StoreError),
    #[error("cannot use this host's data")]
    Machine(#[source] MachineError),
    #[error(
        "the store {path} is missing, and the raft log beside it is not: put it back if it was moved, or {anew}", anew = ANEW
    )]
    StoreMissing { path: PathBuf },
    #[error("cannot load the state from {path}")]
    Load { path: PathBuf, source: RowError },
    #[error("cannot go on from the data in {path}")]
    Resume { path: PathBuf, source: StartError },
    #[error("cannot become a member of the cluster")]
    Seat(#[source] SeatError),
    #[error("cannot tell what this machine has")]
    Probe(#[source] ProbeError),
    #[error("cannot tell in which boot of this host it runs")]
    Boot(#[source] FileError),
    #[error("cannot use this host's systemd")]
    Units(#[source] UnitsError),
    #[error("cannot serve the other nodes")]
    Transport(#[source] TransportError),
    #[error("cannot serve the command line")]
    Api(#[source] ApiError),
    #[error(transparent)]
    Node(NodeError),
    #[error("cannot listen for signals")]
    Signals(#[source] std::io::Error),
}

impl AgentError {
    /// Starting again makes no difference before a person has seen to the disk, or to what is on it.
    fn is_of_disk(&self) -> bool {
        match self {
            // Whoever holds the lock is a whole agent, and has the socket.
            Self::OpenLog(LogError::Locked { .. }) | Self::OpenStore(StoreError::Locked { .. }) => false,
            Self::MakeDir { .. }
            | Self::OpenLog(_)
            | Self::OpenStore(_)
            | Self::Machine(_)
            | Self::StoreMissing { .. }
            | Self::Load { .. }
            | Self::Resume { .. }
            | Self::Seat(SeatError::Keep(_) | SeatError::Decode { .. })
            | Self::Node(_) => true,
            _ => false,
        }
    }
}

/// Runs until a signal or an error ends it; what it logs last says which. `connect` is called once this host is a member.
pub fn run<U: Units, C>(config: &Path, traits: Traits, connect: impl Fn(Config) -> C) -> ExitCode
where
    C: Future<Output = Result<U, UnitsError>>,
{
    telemetry::start();
    // A node with a broken invariant must not go on with half of its threads.
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tracing::error!(error = %panic, "a broken invariant stops this agent");
        print(panic);
        std::process::abort();
    }));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("the system has threads to spare at start");
    runtime.block_on(as_service(config, traits, connect))
}

/// What an agent does that is not a person's to configure; tests run others.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Traits {
    /// The newest level of `apply` that it understands.
    pub understands: Level,
    /// How often the servers compare their states, in ticks of [`node::TICK`], if anything has changed.
    pub check_ticks: u64,
    /// As [`Settings::election_ticks`].
    pub election_ticks: u16,
    pub heartbeat_ticks: u16,
    /// By which certificates are issued, judged and renewed.
    pub clock: Clock,
    /// The machine that it runs on, if that tells which one it is.
    pub machine: Option<MachineId>,
}

impl Traits {
    /// Those of this build on this machine.
    pub fn of_this_machine() -> Self {
        Self { machine: probe::machine_id(), ..Self::default() }
    }
}

impl Default for Traits {
    /// Those of this build, on a machine that doesn't tell which one it is.
    fn default() -> Self {
        Self {
            understands: Level::NEWEST,
            check_ticks: 60_000,
            election_ticks: ELECTION_TICKS,
            heartbeat_ticks: HEARTBEAT_TICKS,
            clock: Clock::default(),
            machine: None,
        }
    }
}

/// What an agent is told while it runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Told {
    /// Hand leadership over and end; units run on.
    Stop,
    /// Offer the manifest again.
    Reload,
}

async fn as_service<U: Units, C>(path: &Path, traits: Traits, connect: impl Fn(Config) -> C) -> ExitCode
where
    C: Future<Output = Result<U, UnitsError>>,
{
    let config = match Config::load(path) {
        Ok(config) => config,
        Err(error) => return failed(&AgentError::Config(error)),
    };
    let mut told = match signals() {
        Ok(told) => told,
        Err(error) => return failed(&AgentError::Signals(error)),
    };
    let (run_dir, raft_dir) = (config.node.run_dir.clone(), raft_dir(&config));
    let Err(error) = serve(config, traits, connect, &mut told).await else { return ExitCode::SUCCESS };
    let status = failed(&error);
    if error.is_of_disk() {
        pause::pause(&run_dir, &raft_dir, crate::error_chain(&error), &mut told).await;
    }
    status
}

/// Logs what ends the agent, and returns the exit status for it.
fn failed(error: &AgentError) -> ExitCode {
    // In the message itself: `journalctl` shows a person no fields, and this is what they look for.
    tracing::error!("the agent ends: {}", crate::error_chain(error));
    if error.is_of_disk() { ExitCode::from(EXIT_DISK) } else { ExitCode::FAILURE }
}

/// Those that this host is configured with; none where it joins by a token.
fn secrets(config: &Config) -> Result<Option<Secrets>, SecretError> {
    let next = config.cluster.next_secret_file.as_deref();
    config.cluster.secret_file.as_deref().map(|current| Secrets::read(current, next)).transpose()
}

/// Where log and store are.
fn raft_dir(config: &Config) -> PathBuf {
    config.node.data_dir.join("raft")
}

/// Signals as what they tell the agent; nothing is told after [`Told::Stop`].
fn signals() -> Result<mpsc::Receiver<Told>, std::io::Error> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut hang_up = signal(SignalKind::hangup())?;
    let (tell, told) = mpsc::channel(8);
    tokio::spawn(async move {
        loop {
            let news = tokio::select! {
                _ = terminate.recv() => Told::Stop,
                _ = interrupt.recv() => Told::Stop,
                _ = hang_up.recv() => Told::Reload,
            };
            if tell.send(news).await.is_err() || news == Told::Stop {
                return;
            }
        }
    });
    Ok(told)
}

/// This host's units, as `config` wants them run.
///
/// # Errors
/// When its systemd can't be reached, or lets nobody subscribe.
pub async fn systemd(config: Config) -> Result<Systemd<NixCommand>, UnitsError> {
    let account = |user: &str, group: &str| Account { user: user.to_owned(), group: group.to_owned() };
    let settings = units::Settings {
        run_dir: config.node.run_dir.clone(),
        data_dir: config.node.data_dir.clone(),
        vms: account(&config.vms.user, &config.vms.group),
        tasks: account(config.tasks.user(), &config.tasks.group),
        bridge: config.vms.bridge.clone(),
        control_dir: PathBuf::from(units::CONTROL_DIR),
    };
    Systemd::connect(settings, NixCommand::new(crate::nix::ROOTS, REALISE)).await
}

/// One agent, until it is told to stop or can't go on. `connect` is called once this host is a member.
///
/// # Errors
/// What keeps it from running, or has stopped it.
pub async fn serve<U, C>(
    config: Config,
    traits: Traits,
    connect: impl Fn(Config) -> C,
    told: &mut mpsc::Receiver<Told>,
) -> Result<(), AgentError>
where
    U: Units,
    C: Future<Output = Result<U, UnitsError>>,
{
    let secrets = secrets(&config).map_err(AgentError::Secret)?;
    let raft_dir = raft_dir(&config);
    make_dir(&config.node.data_dir, 0o755)?;
    make_dir(&config.node.run_dir, 0o755)?;
    make_dir(&raft_dir, 0o700)?;
    // Its name, too, is to be there after a power cut.
    let synced = std::fs::File::open(&config.node.data_dir).and_then(|dir| dir.sync_all());
    synced.map_err(|source| AgentError::MakeDir { path: config.node.data_dir.clone(), source })?;

    let data = Data::open(raft_dir.clone())?;
    machine::check(&data.dir, traits.machine.as_ref()).map_err(AgentError::Machine)?;
    let (stage, stages) = watch::channel(Stage::Waiting("the agent is starting".to_owned()));
    let socket = api::listen(&config.node.run_dir.join("api.sock")).map_err(AgentError::Api)?;
    let (stop_api, api_stopped) = tokio::sync::oneshot::channel::<()>();
    let service = api::Service::new(stages, secrets.clone());
    let api = tokio::spawn(api::serve(socket, service.clone(), async {
        let _ = api_stopped.await;
    }));
    let watchdog = watchdog::start();
    let mut host = Host { config, traits, secrets, stage, api: service, connect, units: None, watchdog };
    let mut result = host.run(data, told).await;
    let forbidden = match &result {
        // Started again, it would supersede the other in turn.
        Err(AgentError::Node(NodeError::Superseded { .. })) => Some(Forbidden::Copied),
        // Started again, it would vote before a leader tells it once more of what it lacks.
        Err(AgentError::Node(NodeError::LostLog(_))) => Some(Forbidden::Outdated),
        _ => None,
    };
    if let Some(why) = forbidden {
        result = machine::forbid(&raft_dir, why).map_err(AgentError::Machine).and(result);
    }
    let _ = stop_api.send(());
    drop(host);
    // Streams that people watch end with the agent.
    api.abort();
    result
}

/// Offers the manifest; one offer at a time, so that an old file is never heard after a new one.
fn offer(config: &Config, handle: &Handle, occasion: Occasion, offering: &mut tokio::task::JoinSet<()>) {
    let Some(file) = config.manifest.clone() else { return };
    let (handle, run_dir) = (handle.clone(), config.node.run_dir.clone());
    offering.abort_all();
    offering.spawn(async move { worker::offer::offer(&handle, &file, &run_dir, occasion).await });
}

async fn stop(handle: &Handle, ended: &mut node::Ended) -> Result<End, AgentError> {
    notify(&[NotifyState::Stopping]);
    tracing::info!("the agent stops; VMs run on");
    handle.stop().await;
    ended.await.expect("the loop says how it ended").map_err(AgentError::Node)
}

fn make_dir(path: &Path, mode: u32) -> Result<(), AgentError> {
    let result = std::fs::DirBuilder::new().recursive(true).mode(mode).create(path);
    result.map_err(|source| AgentError::MakeDir { path: path.to_owned(), source })
}

/// Tells systemd, if it is there.
fn notify(news: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(news) {
        tracing::warn!(%error, "systemd can't be told how the agent is");
    }
}

/// A reload before there is anything to reload is nothing: the files are read later anyway.
async fn stopped(told: &mut mpsc::Receiver<Told>) {
    while told.recv().await == Some(Told::Reload) {}
}
