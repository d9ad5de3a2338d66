//! What people ask for: all VMs of a flake at once, and what is known of one.

use std::time::Duration;

use crate::Part;
use crate::beside::Row;
use crate::cluster::{Client as _, Cluster};
use crate::load;
use crate::report::{Samples, micros, millis};

const DECLARED: u32 = 1000;

pub struct OneManifest {
    pub times: usize,
}

impl OneManifest {
    const TOOK: &str = "1,000 VMs, one manifest beside 1,000 puts of 64 clients";
}

impl Part for OneManifest {
    fn title(&self) -> String {
        "a manifest".to_owned()
    }

    fn rows(&self) -> Vec<Row> {
        vec![Row::beside_etcd(Self::TOOK, "ms").at_most(0.5, 0.1)]
    }

    async fn run<C: Cluster>(&self, cluster: &mut C) -> Samples {
        let mut samples = Samples::default();
        for revision in (1..).take(self.times) {
            let mut clients = cluster.writers(64, 8).await;
            for client in &mut clients {
                // So that it is connected.
                client.read(0).await.expect("a member answers");
            }
            samples.add(Self::TOOK, millis(cluster.declare(clients, DECLARED, revision).await));
        }
        samples
    }
}

pub struct Reads {
    pub vms: u32,
    pub duration: Duration,
}

impl Reads {
    const P50: &str = "one VM, as the member that is asked knows it: p50";
    const P99: &str = "the same: p99";
}

impl Part for Reads {
    fn title(&self) -> String {
        format!("reads that may be stale, of {} VMs", self.vms)
    }

    fn rows(&self) -> Vec<Row> {
        vec![Row::beside_etcd(Self::P50, "µs").at_most(0.7, 0.45), Row::beside_etcd(Self::P99, "µs")]
    }

    async fn run<C: Cluster>(&self, cluster: &mut C) -> Samples {
        cluster.fill(0..self.vms).await;
        let member = 0;
        cluster.holds(member, self.vms - 1).await;
        let sample = load::read(cluster.client(member), 0..self.vms, self.duration).await;
        let mut samples = Samples::default();
        samples.add(Self::P50, micros(sample.p50));
        samples.add(Self::P99, micros(sample.p99));
        samples
    }
}
