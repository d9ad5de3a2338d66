//! Clients of the leader that write as fast as they are answered.

use std::time::Duration;

use crate::Part;
use crate::beside::Row;
use crate::cluster::{Cluster, Setup};
use crate::load;
use crate::probe::cpu_of;
use crate::report::{Samples, micros};

/// Clients, and the connections that they share.
pub const LOADS: [(usize, usize); 4] = [(1, 1), (16, 4), (64, 8), (256, 16)];

pub struct Writes {
    pub clients: Vec<usize>,
    pub duration: Duration,
    pub slow: Option<Duration>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Measure {
    PerSecond,
    P50,
    P99,
    Cpu,
}

impl Measure {
    const ALL: [Self; 4] = [Self::PerSecond, Self::P50, Self::P99, Self::Cpu];

    fn of(self, clients: usize) -> String {
        let name = match self {
            Self::PerSecond => "writes",
            Self::P50 => "p50",
            Self::P99 => "p99",
            Self::Cpu => "processor time of all members",
        };
        format!("{clients} clients: {name}")
    }

    fn unit(self) -> &'static str {
        match self {
            Self::PerSecond => "a second",
            Self::P50 | Self::P99 => "µs",
            Self::Cpu => "µs a write",
        }
    }
}

impl Part for Writes {
    fn title(&self) -> String {
        match self.slow {
            None => "writes, the disk as it is".to_owned(),
            Some(delay) => format!("writes, every fsync {delay:?} slower"),
        }
    }

    fn rows(&self) -> Vec<Row> {
        let all = LOADS.iter().flat_map(|(clients, _)| Measure::ALL.map(|measure| (*clients, measure)));
        let row = |(clients, measure): (usize, Measure)| {
            let row = Row::beside_etcd(measure.of(clients), measure.unit());
            match (self.slow.is_some(), clients, measure) {
                (false, 1, Measure::P50) => row.at_most(0.80, 0.50),
                (false, 1, Measure::P99) => row.at_most(0.80, 0.45),
                (false, 64 | 256, Measure::PerSecond) => row.at_least(1.7, 2.5),
                (false, 64, Measure::P99) => row.at_most(0.5, 0.25),
                (false, 64, Measure::Cpu) => row.at_most(0.5, 0.28),
                (true, 64, Measure::P50) => row.at_most(0.75, 0.60),
                (true, 64, Measure::PerSecond) => row.at_least(1.4, 1.8),
                (true, 256, Measure::PerSecond) => row.at_least(1.7, 2.2),
                _ => row,
            }
        };
        all.map(row).collect()
    }

    fn setup(&self) -> Setup {
        Setup { slow: self.slow, ..Setup::default() }
    }

    async fn run<C: Cluster>(&self, cluster: &mut C) -> Samples {
        let mut samples = Samples::default();
        for (clients, connections) in LOADS.into_iter().filter(|(clients, _)| self.clients.contains(clients)) {
            let writers = cluster.writers(clients, connections).await;
            let cpu =
                |cluster: &mut C| cluster.processes().flatten().map(|process| cpu_of(process.pid())).sum::<Duration>();
            let before = cpu(cluster);
            let (sample, count) = load::run(writers, self.duration).await;
            let cpu = cpu(cluster).saturating_sub(before);
            samples.add(Measure::PerSecond.of(clients), sample.per_second);
            samples.add(Measure::P50.of(clients), micros(sample.p50));
            samples.add(Measure::P99.of(clients), micros(sample.p99));
            samples.add(Measure::Cpu.of(clients), micros(cpu) / count as f64);
        }
        samples
    }
}
