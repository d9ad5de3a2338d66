//! The verbs about the cluster as a whole.

use std::fmt::Write as _;
use std::io::BufRead as _;
use std::path::{Path, PathBuf};

use blixard_core::state::{Node, State};
use blixard_core::types::{ClusterId, Level, NodeId, NodeName};
use clap::{Args, Subcommand};
use tonic::Status;

use super::ask::{AskError, Asked, get_status, print};
use super::client::connect;
use super::{Reading, Socket};
use crate::agent::recovery::{self, Survivor};
use crate::api::proto;
use crate::config::Config;

/// By so many characters of its id a cluster is named, as status shows it.
const SHORT: usize = 8;

#[derive(Subcommand, Debug)]
pub enum ClusterVerb {
    /// Make a cluster of this host alone, where a majority of the servers is lost for good
    ///
    /// The agent has to be stopped. What this host has of the cluster begins anew, with this host as its only server; what
    /// the others have acknowledged, and this host hasn't heard of, is lost. What runs on this host runs on.
    Recover(RecoverArgs),
    /// Let this host into its cluster again, which was recovered or restored without it
    ///
    /// The agent has to be stopped. What this host has of the cluster as it was is put aside; when the agent starts, it
    /// joins as the node that it was. What runs on this host runs on, but for what the cluster has elsewhere by now.
    Rejoin(Offline),
    /// Print by what a host with a key of its own knows this cluster, for its cluster.authority
    Authority {
        #[command(flatten)]
        reading: Reading,
    },
    /// Let the next cluster secret take the place of the current one
    ///
    /// Every server that has the secret must have both (`cluster.next_secret_file`). From then on nobody joins or signs by
    /// the old one.
    RotateSecret(Socket),
    /// Let instances of nodes that do not answer start elsewhere, though many fell silent at once
    ///
    /// Only those that their nodes have stopped by then, if these aren't down: nothing runs twice by it. It holds until fewer
    /// are silent.
    Resume(Socket),
    /// Let another server lead, and wait until it does
    TransferLeader {
        /// Which one; without a name the one that lacks least
        name: Option<NodeName>,
        #[command(flatten)]
        socket: Socket,
    },
    /// Let another certificate authority take the place of the cluster's
    ///
    /// First all nodes trust both, then all get a certificate of the new one, then the old one is trusted no more: nothing
    /// is interrupted. It waits for nodes that are away, and status says for which; those that won't return are to be
    /// removed. Join tokens and cluster.authority name the authority: make them anew afterwards.
    RotateCa {
        /// The new authority's certificate, PEM, where it is to be one of yours; all certificates are issued with it
        #[arg(long, value_name = "FILE", requires = "key")]
        certificate: Option<PathBuf>,
        /// Its private key, PEM; the cluster keeps it sealed with the cluster secret
        #[arg(long, value_name = "FILE", requires = "certificate")]
        key: Option<PathBuf>,
        #[command(flatten)]
        socket: Socket,
    },
}

#[derive(Args, Debug)]
pub struct RecoverArgs {
    #[command(flatten)]
    offline: Offline,
    /// The first characters of the cluster's id, as status shows them: what is typed where this isn't given
    #[arg(long, value_name = "CLUSTER")]
    confirm: Option<String>,
}

/// What is done while no agent runs.
#[derive(Args, Debug)]
pub struct Offline {
    /// This host's configuration
    #[arg(long, value_name = "FILE", default_value = "/etc/blixard/config.toml")]
    config: PathBuf,
    /// The cluster secret, where the configured file is there only while the agent runs
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
}

impl Offline {
    pub fn config(&self) -> Result<Config, AskError> {
        let mut config = Config::load(&self.config).map_err(AskError::Config)?;
        if let Some(file) = &self.secret_file {
            (config.cluster.secret_file, config.cluster.next_secret_file) = (Some(file.clone()), None);
        }
        Ok(config)
    }
}

pub async fn ask(verb: &ClusterVerb) -> Asked {
    match verb {
        ClusterVerb::Authority { reading } => {
            let authority = get_status(reading).await?.cluster.unwrap_or_default().authority;
            if authority.is_empty() {
                return Err(AskError::Refused(Status::unavailable("the cluster is being founded: try again")));
            }
            print(&format!("{authority}\n"))
        }
        ClusterVerb::Resume(Socket { socket }) => {
            let mut client = connect(socket).await.map_err(AskError::Connect)?;
            client.resume_takeover(proto::ResumeTakeoverRequest {}).await.map_err(AskError::Refused)?;
            print("takeover goes on\n")
        }
        ClusterVerb::TransferLeader { name, socket } => {
            let mut client = connect(&socket.socket).await.map_err(AskError::Connect)?;
            let name = name.as_ref().map(ToString::to_string).unwrap_or_default();
            let request = proto::TransferLeaderRequest { name };
            let leader = client.transfer_leader(request).await.map_err(AskError::Refused)?.into_inner().leader;
            print(&format!("{leader} leads now\n"))
        }
        ClusterVerb::RotateCa { certificate, key, socket } => {
            let given = certificate.as_ref().zip(key.as_ref()).map(|(certificate, key)| {
                Ok(proto::GivenAuthority { certificate: read(certificate)?, key: read(key)? })
            });
            let given = given.transpose()?;
            let mut client = connect(&socket.socket).await.map_err(AskError::Connect)?;
            client.rotate_authority(proto::RotateAuthorityRequest { given }).await.map_err(AskError::Refused)?;
            print("the certificate authority is being rotated: `blixard status` says for whom that waits\n")
        }
        ClusterVerb::RotateSecret(Socket { socket }) => {
            let mut client = connect(socket).await.map_err(AskError::Connect)?;
            client.rotate_secret(proto::RotateSecretRequest {}).await.map_err(AskError::Refused)?;
            print(
                "only the next secret lets hosts in and signs from now on: make it the current one (cluster.secret_file) on \
                 every host, and leave cluster.next_secret_file out; `blixard status` says who is left\n",
            )
        }
        ClusterVerb::Recover(args) => recover(args),
        ClusterVerb::Rejoin(offline) => rejoin(offline),
    }
}

fn read(path: &Path) -> Result<String, AskError> {
    std::fs::read_to_string(path).map_err(|source| AskError::ReadAuthority { path: path.to_owned(), source })
}

fn recover(args: &RecoverArgs) -> Asked {
    let survivor = recovery::examine(args.offline.config()?, Level::NEWEST).map_err(AskError::Recovery)?;
    let cluster = survivor.cluster();
    print(&warning(&survivor))?;
    confirm(cluster, args.confirm.as_deref())?;
    let epoch = survivor.recover().map_err(AskError::Recovery)?;
    print(&format!(
        "cluster {} is in epoch {}: start the agent, with `systemctl start blixard`\n",
        short(cluster),
        epoch.number
    ))
}

fn rejoin(offline: &Offline) -> Asked {
    let kept = recovery::rejoin(&offline.config()?).map_err(AskError::Recovery)?;
    print(&format!(
        "what this host had of the cluster is in {}: start the agent, with `systemctl start blixard`, and it rejoins\n",
        kept.display()
    ))
}

fn warning(survivor: &Survivor) -> String {
    let (state, node) = (survivor.state(), survivor.node());
    let name = state.nodes().get(&node).map_or_else(String::new, |member| member.name.to_string());
    let (last, uncommitted) = survivor.entries();
    let mut text = format!(
        "This makes a cluster of {name} alone, of what it has of cluster {}: all up to log entry {last}",
        short(survivor.cluster()),
    );
    if uncommitted > 0 {
        let _ = write!(text, ", of which a majority may never have had the last {uncommitted}");
    }
    text += ".\nDo it only if a majority of the servers is lost for good: what they acknowledged since is lost with them.\n";
    text += &absent(state, |id, _| id != node);
    let _ = writeln!(text, "\nWhat runs on {name} runs on. Its data as it is stays in {}.", survivor.kept().display());
    text
}

/// Who is absent then, and what that means; nothing where nobody is.
pub fn absent(state: &State, is_other: impl Fn(NodeId, &Node) -> bool) -> String {
    let mut others = state.nodes().iter().filter(|(id, member)| is_other(**id, member)).peekable();
    if others.peek().is_none() {
        return String::new();
    }
    let mut text = "\nWhat these run is not known then, and they are refused:\n".to_owned();
    for (_, member) in others {
        let _ = writeln!(text, "  {} at {}", member.name, member.address);
    }
    text += "Nothing is started anywhere, until each of them has rejoined, or is removed as dead:\n  \
             blixard cluster rejoin            on it; what it runs, and is to run, runs on\n  \
             blixard node remove NAME --dead   here, once nothing runs on it any more\n";
    text
}

/// Whoever goes on has named the cluster.
pub fn confirm(cluster: ClusterId, given: Option<&str>) -> Result<(), AskError> {
    let short = short(cluster);
    let mut named = given.unwrap_or_default().to_owned();
    if given.is_none() {
        print(&format!("\nType {short}, the cluster's name, to go on: "))?;
        std::io::stdin().lock().read_line(&mut named).map_err(AskError::Confirm)?;
    }
    if named.trim().len() >= SHORT && cluster.to_string().starts_with(named.trim()) {
        return Ok(());
    }
    Err(AskError::NotConfirmed { cluster: short })
}

pub fn short(cluster: ClusterId) -> String {
    cluster.to_string().chars().take(SHORT).collect()
}
