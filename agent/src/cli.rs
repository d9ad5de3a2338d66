//! The command line: what each verb takes, and what it prints.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::agent::{self, Traits};
use crate::api::proto::Freshness;
use crate::config::Config;
use crate::gate::GateArgs;

mod ask;
mod backup;
mod client;
mod cluster;
mod duration;
mod events;
mod fence;
mod going_down;
mod json;
mod node;
mod show;
mod table;
mod token;
mod vm;
mod watch;

pub use client::{ConnectError, connect};

/// Runs declared microVMs on a cluster of NixOS hosts, each exactly once.
#[derive(Parser, Debug)]
#[command(name = "blixard", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Verb,
}

/// Where the agent of this host listens.
#[derive(Args, Debug, Clone)]
struct Socket {
    /// Where this host's agent listens
    #[arg(long, value_name = "PATH", default_value = "/run/blixard/api.sock")]
    socket: PathBuf,
}

/// What is read, and from where.
#[derive(Args, Debug, Clone)]
struct Reading {
    /// Show what this host's agent knows, without asking the others: it may be behind
    #[arg(long)]
    stale: bool,
    #[command(flatten)]
    socket: Socket,
}

impl Reading {
    fn freshness(&self) -> Freshness {
        if self.stale { Freshness::Stale } else { Freshness::Linearizable }
    }

    fn path(&self) -> &Path {
        &self.socket.socket
    }
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Run this host's agent (what blixard.service does)
    Agent {
        /// This host's configuration
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Check a configuration file: say what is wrong with it, and where
    CheckConfig {
        /// A configuration in TOML
        file: PathBuf,
    },
    /// Check a manifest file: say what is wrong with it, and where
    CheckManifest {
        /// A manifest in JSON, as the NixOS module writes it
        file: PathBuf,
    },
    /// Show the cluster, its nodes and its VMs, and for what isn't running, why
    ///
    /// Exit status: 0 all is well, 1 something isn't, 2 no agent answers.
    Status {
        /// Print JSON, in the shape that docs/formats.md documents
        #[arg(long)]
        json: bool,
        /// Go on, and print it again whenever it changes
        #[arg(long)]
        watch: bool,
        #[command(flatten)]
        reading: Reading,
    },
    /// List, show, remove or replace nodes
    #[command(subcommand)]
    Node(node::NodeVerb),
    /// Write all that the cluster knows to a file, while it goes on
    ///
    /// The file is read back before it gets its name. It has no secret in it that can be used without the cluster secret.
    Backup(backup::BackupArgs),
    /// Make a cluster of this host alone, of a backup
    ///
    /// The agent has to be stopped, and this host in no cluster. The cluster secret has to be the one of the backup.
    Restore(backup::RestoreArgs),
    /// What is done to the cluster as a whole
    #[command(subcommand)]
    Cluster(cluster::ClusterVerb),
    /// Make, list or revoke the tokens with which hosts join
    #[command(subcommand)]
    Token(token::TokenVerb),
    /// List or show VMs; make, start, stop and remove those that no manifest declares
    #[command(subcommand)]
    Vm(vm::VmVerb),
    /// Make a manifest the one that the cluster runs
    Apply {
        /// A manifest in JSON, as the NixOS module writes it
        file: PathBuf,
        #[command(flatten)]
        socket: Socket,
    },
    /// Show what applying a manifest would change, per instance and why
    Plan {
        /// A manifest in JSON, as the NixOS module writes it
        file: PathBuf,
        #[command(flatten)]
        socket: Socket,
    },
    /// Say why a VM is where it is, or why it isn't running
    Explain {
        /// A VM, or one instance of it, such as web-0
        vm: String,
        #[command(flatten)]
        reading: Reading,
    },
    /// Show what has happened to VMs, nodes and the cluster, and why, oldest first
    ///
    /// The newest 10,000 events are kept. With --follow none is left out, also where the agent is restarted meanwhile.
    Events(events::EventsArgs),
    /// The manifests that were applied, and those that are held
    #[command(subcommand)]
    Manifest(ManifestVerb),
    /// Run-once tasks
    #[command(subcommand)]
    Task(TaskVerb),
    /// What the units run: not for people
    #[command(hide = true)]
    Gate(GateArgs),
    /// What blixard-fence.service runs: not for people
    #[command(hide = true, subcommand)]
    Fence(fence::FenceVerb),
    /// Empty this host if its system is going down (what blixard-drain.service does at its end): not for people
    #[command(hide = true)]
    GoingDown(going_down::GoingDownArgs),
}

#[derive(Subcommand, Debug)]
enum ManifestVerb {
    /// List the manifests that were head, the newest last, and those that are held
    Ls {
        #[command(flatten)]
        reading: Reading,
    },
    /// Make the manifest that a host carries, and that is held, the head
    Accept {
        /// The host; may be left out where only one manifest is held
        node: Option<String>,
        #[command(flatten)]
        socket: Socket,
    },
    /// Make the manifest that was head before the head again
    Rollback {
        #[command(flatten)]
        socket: Socket,
    },
}

#[derive(Subcommand, Debug)]
enum TaskVerb {
    /// Submit a command to be run once on some node with room
    ///
    /// What it prints is in that node's journal: `journalctl -u blixard-task@ID`.
    Run {
        /// CPUs that it takes
        #[arg(long, value_name = "N", default_value_t = 1)]
        cpu: u32,
        /// Memory that it takes, in MiB
        #[arg(long, value_name = "MIB")]
        memory: u64,
        /// Program and arguments; no shell is involved
        #[arg(last = true, required = true)]
        command: Vec<String>,
        #[command(flatten)]
        socket: Socket,
    },
    /// List the tasks
    Ls {
        #[command(flatten)]
        reading: Reading,
    },
}

/// Carries out one command line; the exit status is part of each verb's description.
pub fn run(cli: Cli) -> ExitCode {
    match cli.command {
        Verb::Agent { config } => agent::run(&config, Traits::of_this_machine(), agent::systemd),
        Verb::Gate(args) => crate::gate::run(&args),
        Verb::Fence(verb) => finish(fence::run(&verb)),
        Verb::Restore(args) => finish(backup::restore(&args)),
        Verb::CheckConfig { file } => finish(check_config(&file)),
        Verb::CheckManifest { file } => finish(check_manifest(&file)),
        verb => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.expect("a runtime of one thread needs nothing that could be missing");
            finish(runtime.block_on(ask(verb)))
        }
    }
}

async fn ask(verb: Verb) -> Result<ExitCode, ask::AskError> {
    match verb {
        Verb::Status { json, watch, reading } => ask::status(&reading, json, watch).await,
        Verb::Backup(args) => backup::backup(&args).await,
        Verb::Node(verb) => node::ask(verb).await,
        Verb::GoingDown(args) => going_down::ask(&args).await,
        Verb::Token(verb) => token::ask(verb).await,
        Verb::Cluster(verb) => cluster::ask(&verb).await,
        Verb::Vm(verb) => vm::ask(verb).await,
        Verb::Apply { file, socket } => ask::apply(&socket.socket, &file).await,
        Verb::Plan { file, socket } => ask::plan(&socket.socket, &file).await,
        Verb::Explain { vm, reading } => ask::explain(&reading, &vm).await,
        Verb::Events(args) => events::events(&args).await,
        Verb::Manifest(ManifestVerb::Ls { reading }) => ask::list_manifests(&reading).await,
        Verb::Manifest(ManifestVerb::Accept { node, socket }) => {
            ask::accept_manifest(&socket.socket, node.unwrap_or_default()).await
        }
        Verb::Manifest(ManifestVerb::Rollback { socket }) => ask::roll_back_manifest(&socket.socket).await,
        Verb::Task(TaskVerb::Run { cpu, memory, command, socket }) => {
            ask::run_task(&socket.socket, command, cpu, memory).await
        }
        Verb::Task(TaskVerb::Ls { reading }) => ask::list_tasks(&reading).await,
        Verb::Agent { .. }
        | Verb::Gate(_)
        | Verb::Fence(_)
        | Verb::Restore(_)
        | Verb::CheckConfig { .. }
        | Verb::CheckManifest { .. } => unreachable!("these ask no agent"),
    }
}

fn check_config(file: &Path) -> Result<ExitCode, ask::AskError> {
    let config = Config::load(file).map_err(ask::AskError::Config)?;
    println!(
        "{}: configures {}, one of {}",
        file.display(),
        config.name(),
        show::count(config.servers().len(), "server")
    );
    Ok(ExitCode::SUCCESS)
}

fn check_manifest(file: &Path) -> Result<ExitCode, ask::AskError> {
    let (_, manifest) = ask::read_manifest(file)?;
    println!(
        "{}: {}, {}, {}",
        file.display(),
        show::count(manifest.vms.len(), "VM"),
        show::count(manifest.instances().count(), "instance"),
        manifest.hash().short()
    );
    Ok(ExitCode::SUCCESS)
}

/// Prints an error once, with its causes.
fn finish(result: Result<ExitCode, ask::AskError>) -> ExitCode {
    result.unwrap_or_else(|error| {
        eprintln!("error: {}", crate::error_chain(&error));
        error.exit_code()
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    /// The arguments that say nothing of what they are, each with its verb.
    fn unsaid(command: &clap::Command) -> Vec<String> {
        let own = command.get_arguments().filter(|argument| argument.get_help().is_none());
        let own = own.map(|argument| format!("{} {}", command.get_name(), argument.get_id()));
        let verbs = command.get_subcommands().filter(|verb| !verb.is_hide_set());
        own.chain(verbs.flat_map(unsaid)).collect()
    }

    #[test]
    fn every_verb_and_argument_says_what_it_is() {
        let command = Cli::command();
        assert_eq!(unsaid(&command), [""; 0]);
        let all = |command: &clap::Command| command.get_subcommands().all(|verb| verb.get_about().is_some());
        assert!(all(&command) && command.get_subcommands().all(all));
    }
}
