//! Members end, one way or another, while a client of each writes and tries again after 2 ms.

use std::time::{Duration, Instant};

use crate::Part;
use crate::beside::Row;
use crate::cluster::{Cluster, Setup, Timers};
use crate::load::{PATIENCE, Persistent};
use crate::probe::pause;
use crate::report::{Samples, millis};

/// How long members are left alone after one has come back.
const SETTLE: Duration = Duration::from_secs(1);

/// What `etcd --help` says.
pub const TIMERS_OF_ETCD: Timers = Timers { election: Duration::from_secs(1), heartbeat: Duration::from_millis(100) };

pub struct Kills {
    pub kills: usize,
    /// Those of both systems, or each its defaults.
    pub timers: Option<Timers>,
}

impl Kills {
    const TOOK: &str = "the leader is killed: first write after that";
}

impl Part for Kills {
    fn title(&self) -> String {
        let timers = match self.timers {
            None => "each system's defaults".to_owned(),
            Some(Timers { election, heartbeat }) => format!("timers of {election:?} and {heartbeat:?}"),
        };
        format!("{} kills of the leader a round, {timers}", self.kills)
    }

    fn rows(&self) -> Vec<Row> {
        let row = Row::beside_etcd(Self::TOOK, "ms");
        vec![match self.timers {
            None => row.at_most(0.35, 0.20).worst(500.0),
            Some(_) => row.at_most(1.1, 0.9),
        }]
    }

    fn setup(&self) -> Setup {
        Setup { timers: self.timers, ..Setup::default() }
    }

    async fn run<C: Cluster>(&self, cluster: &mut C) -> Samples {
        let (mut samples, mut clients) = (Samples::default(), Persistent::start(cluster, PATIENCE));
        for kill in (0..).take(self.kills) {
            pause(SETTLE).await;
            let leader = cluster.leader().await;
            let event = Instant::now();
            cluster.kill(leader);
            samples.add(Self::TOOK, millis(clients.first_after(event).await - event));
            come_back(cluster, leader, kill).await;
        }
        samples
    }
}

pub struct Stops {
    pub stops: usize,
}

impl Stops {
    const GAP: &str = "the leader is stopped: longest time without a write";
}

impl Part for Stops {
    fn title(&self) -> String {
        format!("{} stops of the leader a round", self.stops)
    }

    fn rows(&self) -> Vec<Row> {
        vec![Row::beside_etcd(Self::GAP, "ms").at_most(1.0, 1.0).worst(10.0)]
    }

    async fn run<C: Cluster>(&self, cluster: &mut C) -> Samples {
        let (mut samples, mut clients) = (Samples::default(), Persistent::start(cluster, PATIENCE));
        for stop in (0..).take(self.stops) {
            pause(SETTLE).await;
            let leader = cluster.leader().await;
            clients.first_after(Instant::now()).await;
            let event = Instant::now();
            cluster.stop(leader);
            samples.add(Self::GAP, millis(clients.longest_gap(event, SETTLE).await));
            come_back(cluster, leader, stop).await;
        }
        samples
    }
}

pub struct Crashes {
    pub vms: u32,
    pub kills: usize,
}

impl Crashes {
    const TOOK: &str = "all members were killed and are started: first write";
}

impl Part for Crashes {
    fn title(&self) -> String {
        format!("{} crashes of all members a round, with {} VMs", self.kills, self.vms)
    }

    fn rows(&self) -> Vec<Row> {
        vec![Row::beside_etcd(Self::TOOK, "ms").at_most(1.0, 0.4)]
    }

    async fn run<C: Cluster>(&self, cluster: &mut C) -> Samples {
        cluster.fill(0..self.vms).await;
        let (mut samples, mut clients) = (Samples::default(), Persistent::start(cluster, PATIENCE));
        for _ in 0..self.kills {
            clients.first_after(Instant::now()).await;
            pause(SETTLE).await;
            let members = 0..cluster.processes().count();
            members.clone().for_each(|member| cluster.kill(member));
            let event = Instant::now();
            members.for_each(|member| cluster.start_member(member));
            samples.add(Self::TOOK, millis(clients.first_after(event).await - event));
        }
        samples
    }
}

/// Keys that are written once each, to be seen elsewhere.
pub const MARKS: u32 = 1_000_000;

/// Starts an ended member, and waits until it has what was written meanwhile.
async fn come_back<C: Cluster>(cluster: &mut C, member: usize, number: u32) {
    let mark = MARKS + number;
    cluster.fill(mark..mark + 1).await;
    cluster.start_member(member);
    cluster.holds(member, mark).await;
}
