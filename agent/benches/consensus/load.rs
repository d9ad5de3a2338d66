//! Clients that ask as fast as they are answered, and such as try again until they are.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::cluster::{Client, Cluster};
use crate::member::MAX_WAIT;
use crate::probe::{pause, percentile};

/// Keys that are written, over and over.
pub const KEYS: u32 = 10_000;
/// Bytes of one write: of a value, or of a whole command.
pub const BYTES: usize = 256;
/// How long clients write before anything counts.
pub const WARM_UP: Duration = Duration::from_millis(500);
/// How long a client waits for an answer while members come and go, and how long until it tries again.
pub const PATIENCE: Duration = Duration::from_millis(50);
pub const RETRY: Duration = Duration::from_millis(2);

/// A request that was answered.
#[derive(Clone, Copy, Debug)]
pub struct Answered {
    pub asked: Instant,
    pub at: Instant,
}

/// How requests fared.
#[derive(Clone, Debug)]
pub struct Sample {
    pub per_second: f64,
    pub p50: Duration,
    pub p99: Duration,
}

impl Sample {
    /// Of the requests that were asked and answered between two moments.
    pub fn between(answered: &[Answered], begin: Instant, end: Instant) -> Self {
        let counts = answered.iter().filter(|one| one.asked >= begin && one.at <= end);
        let mut latencies: Vec<_> = counts.map(|one| one.at - one.asked).collect();
        assert!(!latencies.is_empty(), "nothing was answered within {:?}", end - begin);
        latencies.sort_unstable();
        Self {
            per_second: latencies.len() as f64 / (end - begin).as_secs_f64(),
            p50: percentile(&latencies, 50),
            p99: percentile(&latencies, 99),
        }
    }
}

/// Clients that write one key after the other, and must not fail.
pub struct Load {
    clients: JoinSet<Vec<Answered>>,
    ends: Arc<AtomicBool>,
}

impl Load {
    pub fn start<C: Client>(clients: Vec<C>) -> Self {
        let (next, ends) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicBool::new(false)));
        let clients = clients.into_iter().map(|mut client| {
            let (next, ends) = (next.clone(), ends.clone());
            async move {
                let mut answered = Vec::new();
                while !ends.load(Ordering::Relaxed) {
                    let asked = Instant::now();
                    let key = next.fetch_add(1, Ordering::Relaxed) % KEYS;
                    client.write(key).await.unwrap_or_else(|error| panic!("a write failed: {error}"));
                    answered.push(Answered { asked, at: Instant::now() });
                }
                answered
            }
        });
        Self { clients: clients.collect(), ends }
    }

    /// Everything that was answered.
    pub async fn end(self) -> Vec<Answered> {
        self.ends.store(true, Ordering::Relaxed);
        self.clients.join_all().await.concat()
    }
}

/// Lets them all write for so long; also how many writes there were, those of the warm-up included.
pub async fn run<C: Client>(clients: Vec<C>, duration: Duration) -> (Sample, usize) {
    let load = Load::start(clients);
    let begin = Instant::now() + WARM_UP;
    pause(WARM_UP + duration).await;
    let answered = load.end().await;
    (Sample::between(&answered, begin, begin + duration), answered.len())
}

/// Writes all of these keys once, or until a write fails; all below the number that is returned are written.
pub async fn fill<C: Client>(clients: Vec<C>, keys: Range<u32>) -> u32 {
    let (next, unwritten) = (Arc::new(AtomicU32::new(keys.start)), Arc::new(AtomicU32::new(keys.end)));
    let clients = clients.into_iter().map(|mut client| {
        let (next, unwritten) = (next.clone(), unwritten.clone());
        async move {
            loop {
                let key = next.fetch_add(1, Ordering::Relaxed);
                if key >= unwritten.load(Ordering::Relaxed) {
                    return;
                }
                if client.write(key).await.is_err() {
                    unwritten.fetch_min(key, Ordering::Relaxed);
                }
            }
        }
    });
    clients.collect::<JoinSet<()>>().join_all().await;
    unwritten.load(Ordering::Relaxed)
}

/// One client reads one key after the other for so long.
pub async fn read<C: Client>(mut client: C, keys: Range<u32>, duration: Duration) -> Sample {
    let begin = Instant::now() + WARM_UP;
    let mut answered = Vec::new();
    for key in keys.cycle() {
        let asked = Instant::now();
        if asked > begin + duration {
            break;
        }
        assert_eq!(client.read(key).await, Ok(true), "VM {key} was written");
        answered.push(Answered { asked, at: Instant::now() });
    }
    Sample::between(&answered, begin, begin + duration)
}

/// A client of each member that writes all the time, and tries again whatever happens.
pub struct Persistent {
    answers: mpsc::UnboundedReceiver<Answered>,
    _clients: JoinSet<()>,
}

impl Persistent {
    /// Each waits for an answer for so long at most.
    pub fn start<C: Cluster>(cluster: &mut C, patience: Duration) -> Self {
        let (tell, answers) = mpsc::unbounded_channel();
        let clients = (0..cluster.processes().count()).zip(0..).map(|(member, key)| {
            let (tell, mut client) = (tell.clone(), cluster.client(member));
            async move {
                loop {
                    let asked = Instant::now();
                    match tokio::time::timeout(patience, client.write(key)).await {
                        Ok(Ok(())) => _ = tell.send(Answered { asked, at: Instant::now() }),
                        Ok(Err(_)) | Err(_) => pause(RETRY).await,
                    }
                }
            }
        });
        Self { _clients: clients.collect(), answers }
    }

    /// When the first write was answered that was asked for after this.
    pub async fn first_after(&mut self, event: Instant) -> Instant {
        loop {
            let Answered { asked, at } = self.next().await;
            if asked >= event {
                return at;
            }
        }
    }

    /// The longest time without an answer, from an event until so long from now.
    pub async fn longest_gap(&mut self, event: Instant, longer: Duration) -> Duration {
        let (end, mut last, mut longest) = (Instant::now() + longer, event, Duration::ZERO);
        while last < end {
            let Answered { at, .. } = self.next().await;
            (longest, last) = (longest.max(at.saturating_duration_since(last)), last.max(at));
        }
        longest
    }

    async fn next(&mut self) -> Answered {
        let answered = tokio::time::timeout(MAX_WAIT, self.answers.recv()).await;
        answered.expect("a write is answered again").expect("the clients go on")
    }

    /// How many writes were answered since this was last asked.
    pub fn count(&mut self) -> usize {
        std::iter::from_fn(|| self.answers.try_recv().ok()).count()
    }
}
