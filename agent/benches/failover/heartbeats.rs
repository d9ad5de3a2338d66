//! Hosts that are there, and nothing else: what they cost the leader.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use blixard::api::proto::StatusReply;
use blixard_core::types::LeaseTerms;

use crate::Part;
use crate::member::Member;
use crate::probe::{cpu_of, pause};
use crate::report::{Samples, micros};
use crate::row::Row;
use crate::servers::{Servers, pid};
use crate::workers::{Calls, Workers};

/// How long all is left alone before the leader is looked at.
const SETTLE: Duration = Duration::from_secs(10);

pub struct Heartbeats {
    pub hosts: u32,
    pub duration: Duration,
}

impl Heartbeats {
    const IDLE: &str = "the leader without hosts";
    const BUSY: &str = "the leader with them";
    const COST: &str = "what they cost it";
    const OTHER: &str = "what they cost each of the others";
    const CALL: &str = "what they cost all servers, a renewal";
    const GRANTED: &str = "renewals that are granted, of those that are due";
    const FAILED: &str = "renewals that are refused, or not answered";
    const ENTRIES: &str = "log entries that were added";
}

impl Part for Heartbeats {
    fn title(&self) -> String {
        format!("heartbeats of {} hosts, every {:?}", self.hosts, LeaseTerms::FAST.renew())
    }

    fn rows(&self) -> Vec<Row> {
        vec![
            Row::new(Self::IDLE, "% of a processor"),
            Row::new(Self::BUSY, "% of a processor"),
            Row::new(Self::COST, "% of a processor").median_at_most(15.0, 5.0),
            Row::new(Self::OTHER, "% of a processor"),
            Row::new(Self::CALL, "µs"),
            Row::new(Self::GRANTED, "%").each_at_least(99.0, 99.9),
            Row::new(Self::FAILED, "a round").each_at_most(0.0, 0.0),
            Row::new(Self::ENTRIES, "a round").each_at_most(0.0, 0.0),
        ]
    }

    async fn run(&self, dir: &Path) -> Samples {
        let mut samples = Samples::default();
        let servers = Servers::start(dir, r#""fast""#).await;
        pause(SETTLE).await;
        let idle = self.cpu(&servers).await;
        let workers = Workers::start(&servers, self.hosts, LeaseTerms::FAST.renew()).await;
        pause(SETTLE).await;
        // So many that come at once may have cost the one before its place.
        let leader = &servers.members[servers.leader().await];
        let Calls { granted, failed } = &*workers.calls;
        let counts = || [granted, failed].map(|count| count.load(Ordering::Relaxed));
        let (before, last) = (counts(), applied(leader).await);
        let busy = self.cpu(&servers).await;
        let [granted, failed] = [0, 1].map(|at| (counts()[at] - before[at]) as f64);
        let due = f64::from(self.hosts) * self.duration.as_secs_f64() / LeaseTerms::FAST.renew().as_secs_f64();
        let cost = busy.leader.saturating_sub(idle.leader);
        let of_others = busy.others.saturating_sub(idle.others);
        let others = servers.members.len() - 1;
        let share = |cpu: Duration| 100.0 * cpu.as_secs_f64() / self.duration.as_secs_f64();
        for (what, number) in [
            (Self::IDLE, share(idle.leader)),
            (Self::BUSY, share(busy.leader)),
            (Self::COST, share(cost)),
            (Self::OTHER, share(of_others) / others as f64),
            (Self::CALL, micros(cost + of_others) / granted),
            (Self::GRANTED, 100.0 * granted / due),
            (Self::FAILED, failed),
            (Self::ENTRIES, (applied(leader).await - last) as f64),
        ] {
            samples.add(what, number);
        }
        samples
    }
}

/// What the servers have taken of a processor.
struct Cpu {
    leader: Duration,
    others: Duration,
}

impl Heartbeats {
    /// In the time that they are looked at.
    async fn cpu(&self, servers: &Servers) -> Cpu {
        let leader = servers.leader().await;
        let now = || servers.members.iter().map(|member| cpu_of(pid(member))).collect::<Vec<_>>();
        let before = now();
        pause(self.duration).await;
        let mut taken: Vec<_> = now().iter().zip(before).map(|(now, before)| now.saturating_sub(before)).collect();
        Cpu { leader: taken.swap_remove(leader), others: taken.iter().sum() }
    }
}

/// The last entry that it has applied.
async fn applied(leader: &Member) -> u64 {
    let status: StatusReply = leader.status().await.expect("it leads");
    status.cluster.map_or(0, |cluster| cluster.applied)
}
