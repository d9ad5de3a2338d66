//! Leaders that change although nothing has failed: the machine is only slow.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::Part;
use crate::beside::Row;
use crate::cluster::{Cluster, Setup};
use crate::load::Persistent;
use crate::probe::pause;
use crate::report::Samples;

/// Threads that do nothing but use a processor, each processor.
const HOGS: usize = 4;
/// What is slow is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
const SLOW: Duration = Duration::from_millis(20);

pub struct Elections {
    pub duration: Duration,
}

impl Elections {
    const CHANGES: &str = "changes of the term";
    const WRITES: &str = "writes meanwhile";
}

impl Part for Elections {
    fn title(&self) -> String {
        format!("{:?} with {HOGS} hogs a processor, every fsync {SLOW:?} slower, each system's defaults", self.duration)
    }

    fn rows(&self) -> Vec<Row> {
        vec![
            Row::beside_etcd(Self::CHANGES, "in all").at_most(1.0, 0.0).worst(0.0),
            Row::beside_etcd(Self::WRITES, "a second"),
        ]
    }

    fn setup(&self) -> Setup {
        Setup { slow: Some(SLOW), ..Setup::default() }
    }

    async fn run<C: Cluster>(&self, cluster: &mut C) -> Samples {
        let mut clients = Persistent::start(cluster, PATIENCE);
        let (before, hogs) = (cluster.term().await, Hogs::start());
        clients.count();
        pause(self.duration).await;
        let writes = clients.count();
        drop(hogs);
        let mut samples = Samples::default();
        samples.add(Self::CHANGES, (cluster.term().await - before) as f64);
        samples.add(Self::WRITES, writes as f64 / self.duration.as_secs_f64());
        samples
    }
}

/// They end when it is dropped.
struct Hogs(Arc<AtomicBool>);

impl Hogs {
    fn start() -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let processors = std::thread::available_parallelism().expect("the system knows its processors").get();
        for _ in 0..HOGS * processors {
            let ends = ends.clone();
            std::thread::spawn(move || while !ends.load(Ordering::Relaxed) {});
        }
        Self(ends)
    }
}

impl Drop for Hogs {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
