//! What members take of the machine's memory.

use std::time::Duration;

use crate::Part;
use crate::cluster::Cluster;
use crate::load::{BYTES, pause};
use crate::probe::memory_of;
use crate::report::{Row, Samples, System};

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
