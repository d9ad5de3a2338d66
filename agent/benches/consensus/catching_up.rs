//! Members that lack something: blank ones, and such as were away.

use std::time::{Duration, Instant};

use crate::Part;
use crate::beside::{Row, System};
use crate::cluster::Cluster;
use crate::failover::MARKS;
use crate::load::{Load, Sample, WARM_UP};
use crate::memory::{forget_peak_of, memory_of};
use crate::probe::pause;
use crate::report::{Samples, micros, millis};

pub struct Joins {
    pub vms: u32,
    /// How long the leader is under load before a member joins.
    pub duration: Duration,
}

impl Joins {
    const IDLE: &str = "a blank fourth member: from its start until it has the last VM";
    const LOADED: &str = "a blank fifth one, while 16 clients write";
    /// Median and 99th percentile, before it starts and while it catches up.
    const BEFORE: [&str; 2] = ["p50 before it starts", "p99 before it starts"];
    const MEANWHILE: [&str; 2] = ["p50 while it catches up", "p99 while it catches up"];
    const MEMORY: &str = "the leader's memory meanwhile, more than before";
}

impl Part for Joins {
    fn title(&self) -> String {
        format!("blank members of a cluster of {} VMs", self.vms)
    }

    fn rows(&self) -> Vec<Row> {
        let [p50, p99] = [0, 1].map(|at| [("meanwhile", Self::MEANWHILE[at]), ("before", Self::BEFORE[at])]);
        vec![
            Row::beside_etcd(Self::IDLE, "ms").at_most(0.8, 0.40).worst(500.0),
            Row::beside_etcd(Self::LOADED, "ms"),
            Row::within("the leader's write p50 while a member catches up", "µs", System::Blixard, p50)
                .at_most(2.0, 1.5),
            Row::within("the leader's write p50 while a member catches up", "µs", System::Etcd, p50),
            Row::within("the leader's write p99 while a member catches up", "µs", System::Blixard, p99)
                .at_most(3.0, 1.5),
            Row::within("the leader's write p99 while a member catches up", "µs", System::Etcd, p99),
            Row::beside_etcd(Self::MEMORY, "MB").worst(8.0),
        ]
    }

    async fn run<C: Cluster>(&self, cluster: &mut C) -> Samples {
        let mut samples = Samples::default();
        cluster.fill(0..self.vms).await;
        let (blank, begun) = cluster.join().await;
        cluster.holds(blank, self.vms - 1).await;
        samples.add(Self::IDLE, millis(begun.elapsed()));

        let leader = cluster.leader().await;
        let load = Load::start(cluster.clients(leader, 16, 4));
        let quiet = Instant::now() + WARM_UP;
        pause(WARM_UP + self.duration).await;
        forget_peak_of(cluster.pid(leader));
        let before = memory_of(cluster.pid(leader)).now;
        let (blank, begun) = cluster.join().await;
        cluster.holds(blank, self.vms - 1).await;
        let end = Instant::now();
        samples.add(Self::LOADED, millis(end - begun));
        samples.add(Self::MEMORY, memory_of(cluster.pid(leader)).peak - before);
        let answered = load.end().await;
        for (names, from, to) in [(Self::BEFORE, quiet, begun), (Self::MEANWHILE, begun, end)] {
            let Sample { p50, p99, .. } = Sample::between(&answered, from, to);
            names.into_iter().zip([p50, p99]).for_each(|(name, latency)| samples.add(name, micros(latency)));
        }
        samples
    }
}

pub struct Restarts {
    pub vms: u32,
    pub kills: usize,
}

impl Restarts {
    const TOOK: &str = "a killed follower: from its start until it has what was written meanwhile";
}

impl Part for Restarts {
    fn title(&self) -> String {
        format!("{} kills of a follower a round, with {} VMs", self.kills, self.vms)
    }

    fn rows(&self) -> Vec<Row> {
        vec![Row::beside_etcd(Self::TOOK, "ms").at_most(0.7, 0.25)]
    }

    async fn run<C: Cluster>(&self, cluster: &mut C) -> Samples {
        let mut samples = Samples::default();
        cluster.fill(0..self.vms).await;
        for took in restarts(cluster, self.kills, MARKS).await {
            samples.add(Self::TOOK, took);
        }
        samples
    }
}

pub struct Growth {
    /// Measured with two fifths of that, and with twice that: the state takes 200,000 at most.
    pub vms: u32,
    pub kills: usize,
}

impl Growth {
    const FEW: &str = "few VMs";
    const MANY: &str = "five times as many";

    fn numbers(&self) -> (u32, u32) {
        (self.vms * 2 / 5, self.vms * 2 - MARGIN)
    }
}

/// VMs that are written beside those that are counted.
const MARGIN: u32 = 100;

impl Part for Growth {
    fn title(&self) -> String {
        let (few, many) = self.numbers();
        format!("{} kills of a follower a round, with {few} and with {many} VMs", self.kills)
    }

    fn rows(&self) -> Vec<Row> {
        let sides = [("many", Self::MANY), ("few", Self::FEW)];
        vec![
            Row::within("until a killed follower has caught up", "ms", System::Blixard, sides).at_most(5.0, 2.0),
            Row::within("until a killed follower has caught up", "ms", System::Etcd, sides),
        ]
    }

    async fn run<C: Cluster>(&self, cluster: &mut C) -> Samples {
        let (mut samples, (few, many)) = (Samples::default(), self.numbers());
        for (what, vms, marks) in [(Self::FEW, 0..few, MARKS), (Self::MANY, few..many, 2 * MARKS)] {
            cluster.fill(vms).await;
            for took in restarts(cluster, self.kills, marks).await {
                samples.add(what, took);
            }
        }
        samples
    }
}

/// Kills a follower so many times: how many milliseconds it takes, once started, to have what it has missed.
async fn restarts<C: Cluster>(cluster: &mut C, kills: usize, marks: u32) -> Vec<f64> {
    let mut took = Vec::new();
    for mark in (marks..).take(kills) {
        let leader = cluster.leader().await;
        let follower = (leader + 1) % cluster.processes().count();
        cluster.kill(follower);
        cluster.fill(mark..mark + 1).await;
        let begun = Instant::now();
        cluster.start_member(follower);
        cluster.holds(follower, mark).await;
        took.push(millis(begun.elapsed()));
    }
    took
}
