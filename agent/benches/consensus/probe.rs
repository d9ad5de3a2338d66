//! What else the numbers depend on: how fast the disk is right now, and who else uses the processor.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Pid;

use crate::load::percentile;

const WRITES: usize = 200;

/// Median time of appending 4 KiB and syncing it.
pub fn fdatasync(dir: &Path) -> Duration {
    let path = dir.join("probe");
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

/// Processor time of the whole machine so far, without what it was idle.
pub fn machine_cpu() -> Duration {
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
    in_time(busy)
}

/// Processor time of a process so far, user and system.
pub fn cpu_of(process: Pid) -> Duration {
    let process = process.as_raw_nonzero();
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"));
    let stat = stat.unwrap_or_else(|error| panic!("process {process} has ended: {error}"));
    let fields: Vec<&str> = stat.rsplit_once(')').expect("its name is in brackets").1.split_whitespace().collect();
    in_time(fields[11..13].iter().map(|ticks| ticks.parse::<u64>().expect("a number of ticks")).sum())
}

fn in_time(ticks: u64) -> Duration {
    Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}
