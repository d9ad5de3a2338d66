//! What it costs to notice that a host is lost, and how soon its VMs run elsewhere; TLS on.
//!
//! ```text
//! cargo bench --bench failover                  # all parts
//! cargo bench --bench failover -- heartbeats --hosts 5000 --seconds 20
//! ```
//!
//! Every round starts a new cluster of three servers. The exit status is 1 where a gate doesn't hold.
#![allow(clippy::cast_precision_loss, reason = "what is measured is far from exact to 52 bits")]

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};

#[path = "../../tests/support/address.rs"]
mod address;
#[path = "../../tests/processes/channel.rs"]
mod channel;
mod heartbeats;
mod hosts;
#[path = "../../tests/processes/member.rs"]
mod member;
#[path = "../measure/probe.rs"]
mod probe;
#[path = "../../tests/processes/process.rs"]
mod process;
#[path = "../measure/report.rs"]
mod report;
mod row;
mod servers;
mod takeover;
mod workers;

use probe::Watch;
use report::Samples;
use row::{Round, Row};

/// What the bench starts itself with to be a member: nothing, the environment says it all.
const MEMBER_ARGUMENTS: [&str; 0] = [];

#[derive(Parser)]
struct Options {
    /// What is measured
    #[arg(value_enum, default_values_t = [PartName::Heartbeats, PartName::Takeover])]
    parts: Vec<PartName>,
    /// How often each part is measured, on new clusters
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// heartbeats: how many hosts have their leases renewed
    #[arg(long, default_value_t = 5000)]
    hosts: u32,
    /// heartbeats: for how long the leader is looked at, with the hosts and without
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// takeover: how often a round a host is lost that has one VM
    #[arg(long, default_value_t = 10)]
    losses: usize,
    /// Cargo says so
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PartName {
    /// What hosts cost the leader that are there, and nothing else
    Heartbeats,
    /// Hosts are lost: when their VMs are started elsewhere
    Takeover,
}

/// Something that is measured on a new cluster.
trait Part {
    /// What is printed above its numbers.
    fn title(&self) -> String;

    fn rows(&self) -> Vec<Row>;

    async fn run(&self, dir: &std::path::Path) -> Samples;
}

fn main() -> ExitCode {
    if let Some(ended) = member::be_member().or_else(hosts::be_host) {
        return ended;
    }
    let options = Options::parse();
    println!("3 servers on loopback, with TLS; {} rounds; medians, and [least to most]", options.rounds);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("the system has threads to spare");
    let mut holds = true;
    for part in &options.parts {
        holds &= runtime.block_on(options.measure(*part));
    }
    if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

impl Options {
    /// Whether each gate of the part holds.
    async fn measure(&self, part: PartName) -> bool {
        let Self { rounds, hosts, losses, .. } = *self;
        match part {
            PartName::Heartbeats => {
                let duration = Duration::from_secs(self.seconds);
                repeat(&heartbeats::Heartbeats { hosts, duration }, rounds).await
            }
            PartName::Takeover => repeat(&takeover::Takeover { losses }, rounds).await,
        }
    }
}

/// Measures it on one cluster after the other, and prints what came of it; whether each gate holds.
async fn repeat<P: Part>(part: &P, rounds: usize) -> bool {
    let mut measured = Vec::new();
    for round in 1..=rounds {
        eprintln!("{}: round {round} of {rounds}", part.title());
        let watch = Watch::begin();
        let dir = tempfile::tempdir().expect("a temporary folder can be made");
        let samples = part.run(dir.path()).await;
        measured.push(Round { samples, conditions: watch.end() });
    }
    row::print(&part.title(), &part.rows(), &measured)
}
