//! How three members fare beside three of etcd: the same clients, disk, machine and minute, TLS on.
//!
//! ```text
//! cargo bench --bench consensus                  # the writes; needs `etcd` in the PATH
//! cargo bench --bench consensus -- writes --clients 64 --rounds 5 --seconds 5
//! cargo bench --bench consensus -- kills stops crashes --kills 10
//! ```
//!
//! A write is durable on a quorum and applied when it is answered. Every round starts a new cluster of each, one after
//! the other. What is compared is the median over the rounds of the ratios of their medians. The exit status is 1 where a
//! gate doesn't hold.
#![allow(clippy::cast_precision_loss, reason = "what is measured is far from exact to 52 bits")]

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};

#[path = "../../tests/support/address.rs"]
mod address;
mod beside;
mod blixard_cluster;
mod catching_up;
#[path = "../../tests/processes/channel.rs"]
mod channel;
mod cluster;
mod elections;
mod etcd;
mod failover;
mod load;
#[path = "../../tests/processes/member.rs"]
mod member;
mod memory;
#[path = "../measure/probe.rs"]
mod probe;
#[path = "../../tests/processes/process.rs"]
mod process;
#[path = "../measure/report.rs"]
mod report;
mod requests;
mod slow;
#[path = "../../tests/processes/vm.rs"]
mod vm;
#[path = "../../tests/processes/wrapper.rs"]
mod wrapper;
mod writes;

use beside::{Round, Row};
use blixard_cluster::Blixard;
use cluster::{Cluster, Setup};
use etcd::Etcd;
use probe::{Conditions, Watch};
use report::Samples;

/// What the bench starts itself with to be a member: nothing, the environment says it all.
const MEMBER_ARGUMENTS: [&str; 0] = [];

#[derive(Parser)]
struct Options {
    /// What is measured
    #[arg(value_enum, default_values_t = [PartName::Writes])]
    parts: Vec<PartName>,
    /// How often each part is measured, on new clusters
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// How long writes and reads are measured, each number of clients
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// writes: only these numbers of clients
    #[arg(long, value_delimiter = ',', default_values_t = writes::LOADS.map(|(clients, _)| clients))]
    clients: Vec<usize>,
    /// writes: by how much every fsync is slowed in the second half, in microseconds; 0 leaves that half out
    #[arg(long, default_value_t = 2000)]
    slow: u64,
    /// writes: leave out the half in which the disk is as it is
    #[arg(long)]
    only_slow: bool,
    /// VMs, or keys, that the cluster has
    #[arg(long, default_value_t = 100_000)]
    vms: u32,
    /// How often a round does what takes a moment: ends members, applies a manifest
    #[arg(long, default_value_t = 10)]
    kills: usize,
    /// elections: how long the machine is overloaded, each system
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Cargo says so
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PartName {
    /// Clients write as fast as they are answered
    Writes,
    /// 1,000 VMs in one manifest, beside 1,000 puts
    Manifest,
    /// What one member knows of one VM, asked without a quorum
    Reads,
    /// The leader is killed: first write after that
    Kills,
    /// The same with the timers that etcd has by default, on both sides
    Timers,
    /// The leader is stopped: longest time without a write
    Stops,
    /// All members are killed and started: first write after that
    Crashes,
    /// Changes of the leader while the machine is overloaded
    Elections,
    /// Memory: idle, full, and after a restart
    Memory,
    /// A blank member joins, with and without load
    Joins,
    /// A follower is killed and started: until it has caught up
    Restarts,
    /// The same with five times as many VMs
    Growth,
}

/// Something that both systems do in turn.
trait Part {
    /// What is printed above its numbers.
    fn title(&self) -> String;

    fn rows(&self) -> Vec<Row>;

    /// What members are started with.
    fn setup(&self) -> Setup {
        Setup::default()
    }

    async fn run<C: Cluster>(&self, cluster: &mut C) -> Samples;
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [verb, program, arguments @ ..] = &arguments[..]
        && verb == slow::VERB
    {
        slow::become_slow(program, arguments);
    }
    if let Some(ended) = member::be_member() {
        return ended;
    }
    let options = Options::parse();
    let Some(version) = Etcd::version() else {
        eprintln!("error: there is no etcd in the PATH to compare with: install etcd-server");
        return ExitCode::from(2);
    };
    println!("3 members each, on loopback, with TLS; writes of {} bytes; etcd {version}", load::BYTES);
    println!("{} rounds; medians, and [least to most]", options.rounds);
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
        let duration = Duration::from_secs(self.seconds);
        let Self { rounds, vms, kills, .. } = *self;
        match part {
            PartName::Writes => {
                let delay = Some(Duration::from_micros(self.slow)).filter(|delay| !delay.is_zero());
                let mut holds = true;
                for slow in [None].into_iter().filter(|_| !self.only_slow).chain(delay.map(Some)) {
                    let clients = self.clients.clone();
                    holds &= alternate(&writes::Writes { clients, duration, slow }, rounds).await;
                }
                holds
            }
            PartName::Manifest => alternate(&requests::OneManifest { times: kills }, rounds).await,
            PartName::Reads => alternate(&requests::Reads { vms, duration }, rounds).await,
            PartName::Kills => alternate(&failover::Kills { kills, timers: None }, rounds).await,
            PartName::Timers => {
                let timers = Some(failover::TIMERS_OF_ETCD);
                alternate(&failover::Kills { kills, timers }, rounds).await
            }
            PartName::Stops => alternate(&failover::Stops { stops: kills }, rounds).await,
            PartName::Crashes => alternate(&failover::Crashes { vms, kills }, rounds).await,
            PartName::Elections => {
                let duration = Duration::from_secs_f64(self.minutes * 60.0);
                alternate(&elections::Elections { duration }, rounds).await
            }
            PartName::Memory => alternate(&memory::Memory { vms }, rounds).await,
            PartName::Joins => alternate(&catching_up::Joins { vms, duration }, rounds).await,
            PartName::Restarts => alternate(&catching_up::Restarts { vms, kills }, rounds).await,
            PartName::Growth => alternate(&catching_up::Growth { vms, kills }, rounds).await,
        }
    }
}

/// Measures both systems in turn, and prints what came of it; whether each gate holds.
async fn alternate<P: Part>(part: &P, rounds: usize) -> bool {
    let mut measured = Vec::new();
    for round in 1..=rounds {
        eprintln!("{}: round {round} of {rounds}", part.title());
        measured.push(Round { blixard: run::<Blixard, P>(part).await, etcd: run::<Etcd, P>(part).await });
    }
    beside::print(&part.title(), &part.rows(), &measured)
}

async fn run<C: Cluster, P: Part>(part: &P) -> (Samples, Conditions) {
    let watch = Watch::begin();
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let mut cluster = C::start(dir.path(), part.setup()).await;
    let samples = part.run(&mut cluster).await;
    drop(cluster);
    (samples, watch.end())
}
