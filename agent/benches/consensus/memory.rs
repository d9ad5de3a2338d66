//! What members take of the machine's memory.

use std::time::Duration;

use rustix::process::Pid;

use crate::Part;
use crate::beside::{Row, System};
use crate::cluster::Cluster;
use crate::load::BYTES;
use crate::probe::{pause, read};
use crate::report::Samples;

/// How long members have nothing to do before they are looked at: what they do every few seconds has been done.
const SETTLE: Duration = Duration::from_secs(10);

pub struct Memory {
    pub vms: u32,
}

impl Memory {
    const IDLE: &str = "a member that has nothing to do";
    const PEAK: &str = "the leader with all VMs, at its peak";
    const FULL: &str = "the leader with all VMs, settled";
    const AGAIN: &str = "the same after a restart";
    const PER_VM: &str = "of the leader, a VM";
    const RECORD: &str = "of a record";
}

impl Part for Memory {
    fn title(&self) -> String {
        format!("memory, {} VMs", self.vms)
    }

    fn rows(&self) -> Vec<Row> {
        vec![
            Row::beside_etcd(Self::IDLE, "MB").at_most(0.8, 0.45),
            Row::beside_etcd(Self::PEAK, "MB").at_most(0.6, 0.30),
            Row::beside_etcd(Self::FULL, "MB"),
            Row::beside_etcd(Self::AGAIN, "MB").at_most(0.6, 0.40),
            Row::within("more than idle", "bytes", System::Blixard, [("a VM", Self::PER_VM), ("record", Self::RECORD)])
                .at_most(3.0, 1.5),
            Row::within("more than idle", "bytes", System::Etcd, [("a key", Self::PER_VM), ("record", Self::RECORD)]),
        ]
    }

    async fn run<C: Cluster>(&self, cluster: &mut C) -> Samples {
        let mut samples = Samples::default();
        pause(SETTLE).await;
        let idle: Vec<_> = cluster.processes().flatten().map(|process| memory_of(process.pid()).now).collect();
        for idle in &idle {
            samples.add(Self::IDLE, *idle);
        }
        cluster.fill(0..self.vms).await;
        let leader = cluster.leader().await;
        pause(SETTLE).await;
        let full = memory_of(cluster.pid(leader));
        samples.add(Self::PEAK, full.peak);
        samples.add(Self::FULL, full.now);
        samples.add(Self::PER_VM, (full.now - idle[leader]) * 1e6 / f64::from(self.vms));
        samples.add(Self::RECORD, BYTES as f64);
        cluster.stop(leader);
        cluster.start_member(leader);
        cluster.holds(leader, self.vms - 1).await;
        pause(SETTLE).await;
        samples.add(Self::AGAIN, memory_of(cluster.pid(leader)).now);
        samples
    }
}

/// Memory of a process that is in RAM, in MB.
#[derive(Clone, Copy, Debug)]
pub struct Resident {
    pub now: f64,
    /// Most so far.
    pub peak: f64,
}

pub fn memory_of(process: Pid) -> Resident {
    let status = read(process, "status");
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("the kernel says so");
        let kib = line.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<f64>();
        kib.expect("a number") * 1024.0 / 1e6
    };
    Resident { now: field("VmRSS"), peak: field("VmHWM") }
}

/// Has the peak begin with what it takes now.
pub fn forget_peak_of(process: Pid) {
    std::fs::write(format!("/proc/{process}/clear_refs"), "5").expect("a child's peak can be forgotten");
}
