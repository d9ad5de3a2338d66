//! What a process takes, and what else the numbers depend on: how fast the disk is right now, and who else uses the
//! processor.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, getpid};

const WRITES: usize = 200;

/// What was going on while something was measured.
#[derive(Clone, Debug)]
pub struct Conditions {
    /// The faster of the probes before and after.
    pub fdatasync: Duration,
    /// Processors that something else kept busy.
    pub foreign: f64,
}

/// Looks at the conditions from its beginning to its end.
pub struct Watch {
    begun: Instant,
    fdatasync: Duration,
    foreign: Duration,
}

impl Watch {
    pub fn begin() -> Self {
        Self { fdatasync: fdatasync(&std::env::temp_dir()), begun: Instant::now(), foreign: foreign_cpu() }
    }

    /// All processes that the bench has started have ended.
    pub fn end(self) -> Conditions {
        let (foreign, took) = (foreign_cpu().saturating_sub(self.foreign), self.begun.elapsed());
        Conditions {
            fdatasync: self.fdatasync.min(fdatasync(&std::env::temp_dir())),
            foreign: foreign.as_secs_f64() / took.as_secs_f64(),
        }
    }
}

/// Median time of appending 4 KiB and syncing it.
fn fdatasync(dir: &Path) -> Duration {
    let path = dir.join(format!("probe-{}", std::process::id()));
    let mut file = File::create(&path).expect("the bench's folder can be written");
    let mut times: Vec<_> = (0..WRITES)
        .map(|_| {
            let begun = Instant::now();
            file.write_all(&[7; 4096]).and_then(|()| file.sync_data()).expect("the bench's folder can be written");
            begun.elapsed()
        })
        .collect();
    std::fs::remove_file(&path).expect("it was made just now");
    times.sort_unstable();
    percentile(&times, 50)
}

/// Processor time of the whole machine so far, without what it was idle, and without the bench and its ended children.
fn foreign_cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/stat").expect("this is Linux");
    let line = stat.lines().next().expect("the first line is about all processors");
    let ticks: Vec<u64> = line.split_whitespace().skip(1).map(|ticks| ticks.parse().expect("ticks")).collect();
    let (idle, waiting) = (3, 4);
    // Guests are counted under user, too.
    let busy: u64 = ticks
        .iter()
        .take(8)
        .enumerate()
        .filter(|(field, _)| ![idle, waiting].contains(field))
        .map(|(_, ticks)| ticks)
        .sum();
    let own = 4;
    in_time(busy.saturating_sub(ticks_of(getpid(), own)))
}

/// Processor time of a process so far, user and system.
pub fn cpu_of(process: Pid) -> Duration {
    let own = 2;
    in_time(ticks_of(process, own))
}

/// The sum of so many of the fields user, system, user of ended children, system of ended children.
fn ticks_of(process: Pid, fields: usize) -> u64 {
    let stat = read(process, "stat");
    let all: Vec<&str> = stat.rsplit_once(')').expect("its name is in brackets").1.split_whitespace().collect();
    all[11..11 + fields].iter().map(|ticks| ticks.parse::<u64>().expect("a number of ticks")).sum()
}

fn in_time(ticks: u64) -> Duration {
    Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// A file of `/proc/PID`.
pub fn read(process: Pid, file: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{process}/{file}"));
    text.unwrap_or_else(|error| panic!("process {process} has ended: {error}"))
}

/// Of a sorted list that isn't empty.
pub fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() - 1) * percent / 100]
}

/// Lets what is measured go on for so long.
pub async fn pause(duration: Duration) {
    tokio::time::sleep(duration).await;
}
