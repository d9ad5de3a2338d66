//! How fast three members agree, beside three of etcd: the same clients, disk, machine and minute, TLS on.
//!
//! ```text
//! cargo bench --bench consensus                  # all of it; needs `etcd` in the PATH
//! cargo bench --bench consensus -- --clients 64 --rounds 5 --seconds 5
//! ```
//!
//! A write is durable on a quorum and applied when it is answered. Every round starts a new cluster of each, one after
//! the other. The exit status is 1 where a gate doesn't hold.
#![allow(clippy::cast_precision_loss, reason = "what is measured is far from exact to 52 bits")]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

#[path = "../../tests/support/address.rs"]
mod address;
mod blixard_cluster;
#[path = "../../tests/processes/channel.rs"]
mod channel;
mod etcd;
mod load;
#[path = "../../tests/processes/member.rs"]
mod member;
mod probe;
#[path = "../../tests/processes/process.rs"]
mod process;
mod report;
mod slow;

use blixard_cluster::Blixard;
use etcd::Etcd;
use load::Writer;
use process::Process;
use report::{Pair, Phase, Results};

/// Clients, and the connections that they share.
const LOADS: [(usize, usize); 4] = [(1, 1), (16, 4), (64, 8), (256, 16)];
/// What the bench starts itself with to be a member: nothing, the environment says it all.
const MEMBER_ARGUMENTS: [&str; 0] = [];

#[derive(Parser)]
struct Options {
    /// How often each phase is measured
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// How long each phase is measured
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Only these numbers of clients
    #[arg(long, value_delimiter = ',', default_values_t = LOADS.map(|(clients, _)| clients))]
    clients: Vec<usize>,
    /// By how much every fsync is slowed in the second half, in microseconds; 0 leaves that half out
    #[arg(long, default_value_t = 2000)]
    slow: u64,
    /// Leave out the half in which the disk is as it is
    #[arg(long)]
    only_slow: bool,
    /// Cargo says so
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [slow::VERB, program, ..] = arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        slow::become_slow(program, &arguments[2..]);
    }
    if let Some(status) = member::be_member() {
        return status;
    }
    let options = Options::parse();
    let Some(version) = Etcd::version() else {
        eprintln!("error: there is no etcd in the PATH to compare with: install etcd-server");
        return ExitCode::from(2);
    };
    println!("3 members each, on loopback, with TLS; writes of {} bytes; etcd {version}", load::BYTES);
    println!("{} rounds of {} s; medians", options.rounds, options.seconds);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let results = runtime.expect("the system has threads to spare").block_on(measure(&options));
    let holds = report::print(&results, Duration::from_micros(options.slow));
    if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn measure(options: &Options) -> Results {
    let mut results = Results::new();
    let slow = Some(Duration::from_micros(options.slow)).filter(|delay| !delay.is_zero());
    let disks = [None].into_iter().filter(|_| !options.only_slow).chain(slow.map(Some));
    let loads = LOADS.iter().filter(|(clients, _)| options.clients.contains(clients));
    let duration = Duration::from_secs(options.seconds);
    for disk in disks {
        for round in 1..=options.rounds {
            eprintln!("round {round} of {}{}", options.rounds, if disk.is_some() { ", slowed" } else { "" });
            let mut blixard = Vec::new();
            let dir = tempfile::tempdir().expect("a temporary folder can be made");
            let cluster = Blixard::start(dir.path(), disk).await;
            for (clients, connections) in loads.clone() {
                let writers = cluster.writers(*clients, *connections).await;
                blixard.push(phase(writers, duration, || cluster.processes()).await);
            }
            cluster.stop();
            let dir = tempfile::tempdir().expect("a temporary folder can be made");
            let cluster = Etcd::start(dir.path(), disk).await;
            for ((clients, connections), blixard) in loads.clone().zip(blixard) {
                let writers = cluster.writers(*clients, *connections).await;
                let etcd = phase(writers, duration, || cluster.processes()).await;
                results.entry((disk.is_some(), *clients)).or_default().push(Pair { blixard, etcd });
            }
            cluster.stop();
        }
    }
    results
}

async fn phase<'a, W: Writer, P: Iterator<Item = &'a Process>>(
    writers: Vec<W>,
    duration: Duration,
    members: impl Fn() -> P,
) -> Phase {
    let dir: PathBuf = std::env::temp_dir();
    let before = probe::fdatasync(&dir);
    let members_cpu = || members().map(|member| probe::cpu_of(member.pid())).sum::<Duration>();
    let foreign_cpu = || probe::machine_cpu().saturating_sub(members_cpu() + probe::cpu_of(rustix::process::getpid()));
    let (busy, foreign, begun) = (members_cpu(), foreign_cpu(), std::time::Instant::now());
    let (sample, count) = load::run(writers, duration).await;
    let (busy, foreign, took) =
        (members_cpu().saturating_sub(busy), foreign_cpu().saturating_sub(foreign), begun.elapsed());
    Phase {
        sample,
        cpu: busy.div_f64(f64::from(count)),
        fdatasync: before.min(probe::fdatasync(&dir)),
        foreign: foreign.as_secs_f64() / took.as_secs_f64(),
    }
}
