//! The verbs that ask the agent.

use std::io::Write as _;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

use blixard_core::manifest::{MAX_BYTES, Manifest, ManifestError};
use tokio_stream::StreamExt as _;

use super::backup::BackupError;
use super::client::{ConnectError, connect};
use super::show::{self, Look};
use super::{Reading, json, table};
use crate::agent::recovery::RecoveryError;
use crate::api::proto;
use crate::config::ConfigError;
use crate::fence::{self, FenceError};

/// What a verb can fail with.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error(transparent)]
    Connect(ConnectError),
    #[error(transparent)]
    Config(ConfigError),
    #[error("cannot read the manifest {path}")]
    ReadManifest { path: PathBuf, source: std::io::Error },
    #[error("cannot read the certificate authority's {path}")]
    ReadAuthority { path: PathBuf, source: std::io::Error },
    #[error("{path}")]
    Manifest { path: PathBuf, source: ManifestError },
    #[error("{}", refusal(.0))]
    Refused(tonic::Status),
    #[error("the agent at {path} has stopped: see `journalctl -u blixard`, or start it with `systemctl start blixard`")]
    Ended { path: PathBuf },
    #[error("there is no {kind} {name:?}: see `blixard {kind} ls`")]
    Unknown { kind: &'static str, name: String },
    #[error("label {key} is required twice: a host has one value of it")]
    LabelTwice { key: String },
    #[error(transparent)]
    Backup(BackupError),
    #[error(transparent)]
    Recovery(RecoveryError),
    #[error(transparent)]
    Fence(FenceError),
    #[error(transparent)]
    EndFence(fence::AskError),
    #[error("cannot read what was typed")]
    Confirm(#[source] std::io::Error),
    #[error("nothing was changed: it is done only where the cluster is named, by {cluster}")]
    NotConfirmed { cluster: String },
    #[error(
        "{name} is not empty after {seconds} s, and goes on being drained: wait on with `blixard node drain {name}`, or let it \
         be used again with `blixard node uncordon {name}`"
    )]
    NotDrained { name: String, seconds: u64 },
    #[error("cannot ask systemd whether this host is going down: is systemctl in the PATH?")]
    Systemctl(#[source] std::io::Error),
    #[error("{0}")]
    Overtaken(String),
    #[error("cannot write to standard output")]
    Print(#[source] std::io::Error),
}

pub type Asked = Result<ExitCode, AskError>;

impl AskError {
    /// 2 where no agent answers, or none that is a member, 1 otherwise.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(if self.is_unreachable() { 2 } else { 1 })
    }

    /// Whether no agent answers, or none that is a member.
    pub fn is_unreachable(&self) -> bool {
        match self {
            Self::Connect(_) | Self::Ended { .. } => true,
            Self::Refused(status) => has_ended(status) || status.code() == tonic::Code::Unavailable,
            _ => false,
        }
    }
}

/// Whether the agent says nothing any more: what comes from it has no cause on this side.
fn has_ended(status: &tonic::Status) -> bool {
    std::error::Error::source(status).is_some()
}

fn refusal(status: &tonic::Status) -> &str {
    if has_ended(status) {
        return "the agent ended before it answered: whether anything was changed is unknown, so look before you try again";
    }
    status.message()
}

/// The file's bytes, and what they mean.
pub fn read_manifest(path: &Path) -> Result<(Vec<u8>, Manifest), AskError> {
    let failed = |source| AskError::ReadManifest { path: path.to_owned(), source };
    let wrong = |source| AskError::Manifest { path: path.to_owned(), source };
    let size = std::fs::metadata(path).map_err(failed)?.len();
    let bytes = usize::try_from(size).unwrap_or(usize::MAX);
    if bytes > MAX_BYTES {
        return Err(wrong(ManifestError::TooLarge { bytes }));
    }
    let json = std::fs::read(path).map_err(failed)?;
    let manifest = Manifest::parse(&json).map_err(wrong)?;
    Ok((json, manifest))
}

pub async fn status(reading: &Reading, as_json: bool, watch: bool) -> Asked {
    let mut client = connect(reading.path()).await.map_err(AskError::Connect)?;
    let request = proto::StatusRequest { freshness: reading.freshness().into() };
    if !watch {
        let reply = client.status(request).await.map_err(AskError::Refused)?.into_inner();
        let code = exit_code(&reply);
        print(&status_text(reply, as_json))?;
        return Ok(code);
    }
    let mut replies = client.watch_status(request).await.map_err(AskError::Refused)?.into_inner();
    while let Some(reply) = replies.next().await {
        let reply = reply.map_err(AskError::Refused)?;
        let code = exit_code(&reply);
        let clear = if !as_json && table::wants_colour() { "\u{1b}[2J\u{1b}[H" } else { "" };
        if write_out(&format!("{clear}{}", status_text(reply, as_json)))?.is_break() {
            return Ok(code);
        }
    }
    Err(AskError::Ended { path: reading.path().to_owned() })
}

fn status_text(reply: proto::StatusReply, as_json: bool) -> String {
    if as_json {
        let json = serde_json::to_string(&json::Status::from(reply)).expect("a status has only text and numbers");
        json + "\n"
    } else {
        show::status(&reply, look())
    }
}

fn exit_code(reply: &proto::StatusReply) -> ExitCode {
    if reply.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) }
}

pub async fn get_status(reading: &Reading) -> Result<proto::StatusReply, AskError> {
    let mut client = connect(reading.path()).await.map_err(AskError::Connect)?;
    let request = proto::StatusRequest { freshness: reading.freshness().into() };
    let reply = client.status(request).await.map_err(AskError::Refused)?;
    Ok(reply.into_inner())
}

pub async fn apply(socket: &Path, file: &Path) -> Asked {
    let (json, _) = read_manifest(file)?;
    let mut client = connect(socket).await.map_err(AskError::Connect)?;
    let request = proto::ManifestRequest { json, from: who() };
    let reply = client.apply(request).await.map_err(AskError::Refused)?.into_inner();
    print(&applied(&reply))
}

pub async fn plan(socket: &Path, file: &Path) -> Asked {
    let (json, _) = read_manifest(file)?;
    let mut client = connect(socket).await.map_err(AskError::Connect)?;
    let request = proto::ManifestRequest { json, from: who() };
    let reply = client.plan(request).await.map_err(AskError::Refused)?.into_inner();
    print(&show::plan(&reply, look()))
}

pub async fn explain(reading: &Reading, vm: &str) -> Asked {
    let mut client = connect(reading.path()).await.map_err(AskError::Connect)?;
    let request = proto::ExplainRequest { vm: vm.to_owned(), freshness: reading.freshness().into() };
    let reply = client.explain(request).await.map_err(AskError::Refused)?.into_inner();
    print(&show::explained(&reply, look()))
}

pub async fn list_manifests(reading: &Reading) -> Asked {
    let mut client = connect(reading.path()).await.map_err(AskError::Connect)?;
    let request = proto::ListManifestsRequest { freshness: reading.freshness().into() };
    let reply = client.list_manifests(request).await.map_err(AskError::Refused)?;
    print(&show::manifests(&reply.into_inner(), look()))
}

pub async fn accept_manifest(socket: &Path, node: String) -> Asked {
    let mut client = connect(socket).await.map_err(AskError::Connect)?;
    let request = proto::AcceptManifestRequest { node };
    let reply = client.accept_manifest(request).await.map_err(AskError::Refused)?.into_inner();
    print(&applied(&reply))
}

pub async fn roll_back_manifest(socket: &Path) -> Asked {
    let mut client = connect(socket).await.map_err(AskError::Connect)?;
    let request = proto::RollBackManifestRequest { from: who() };
    let reply = client.roll_back_manifest(request).await.map_err(AskError::Refused)?.into_inner();
    print(&applied(&reply))
}

pub async fn run_task(socket: &Path, command: Vec<String>, cpus: u32, memory_mib: u64) -> Asked {
    let mut client = connect(socket).await.map_err(AskError::Connect)?;
    let request = proto::RunTaskRequest { command, cpus, memory_mib };
    let reply = client.run_task(request).await.map_err(AskError::Refused)?.into_inner();
    print(&format!("{}\n", reply.task))
}

pub async fn list_tasks(reading: &Reading) -> Asked {
    let mut client = connect(reading.path()).await.map_err(AskError::Connect)?;
    let request = proto::ListTasksRequest { freshness: reading.freshness().into() };
    let reply = client.list_tasks(request).await.map_err(AskError::Refused)?.into_inner();
    print(&show::tasks(&reply, look()))
}

fn applied(reply: &proto::ApplyReply) -> String {
    let short = reply.hash.get(..12).unwrap_or(&reply.hash);
    match reply.result.as_str() {
        "equal" => format!("manifest {short} was the head already\n"),
        _ => format!("manifest {short} is the head now\n"),
    }
}

/// Who asks, for the history: `USER at HOST`.
fn who() -> String {
    let user = std::env::var("SUDO_USER").or_else(|_| std::env::var("USER")).unwrap_or_else(|_| "root".to_owned());
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("{user} at {host}")
}

pub fn look() -> Look {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Look { now: u64::try_from(now.as_millis()).unwrap_or(u64::MAX), coloured: table::wants_colour() }
}

pub fn print(text: &str) -> Asked {
    write_out(text).map(|_| ExitCode::SUCCESS)
}

/// Breaks when the reader has seen enough, as `head` does.
pub fn write_out(text: &str) -> Result<ControlFlow<()>, AskError> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(ControlFlow::Break(())),
        Err(error) => Err(AskError::Print(error)),
        Ok(()) => Ok(ControlFlow::Continue(())),
    }
}
