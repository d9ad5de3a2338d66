//! Clients that write as fast as they are answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Keys that are written, over and over.
pub const KEYS: u32 = 10_000;
/// Bytes of one write: of a value, or of a whole command.
pub const BYTES: usize = 256;
/// How long clients write before anything counts.
const WARM_UP: Duration = Duration::from_millis(500);

/// Somebody who writes, one write at a time.
pub trait Writer: Send + 'static {
    /// Returns once the write is durable on a quorum and applied.
    fn write(&mut self, key: u32) -> impl Future<Output = Result<(), String>> + Send;
}

/// What one phase has measured.
#[derive(Clone, Debug)]
pub struct Sample {
    pub per_second: f64,
    pub p50: Duration,
    pub p99: Duration,
}

/// Lets them all write for so long; also how many writes there were, those of the warm-up included.
pub async fn run<W: Writer>(writers: Vec<W>, duration: Duration) -> (Sample, u32) {
    let next = Arc::new(AtomicU32::new(0));
    let begin = Instant::now() + WARM_UP;
    let end = begin + duration;
    let clients = writers.into_iter().map(|mut writer| {
        let next = next.clone();
        tokio::spawn(async move {
            let mut latencies = Vec::new();
            loop {
                let asked = Instant::now();
                let key = next.fetch_add(1, Ordering::Relaxed) % KEYS;
                writer.write(key).await.unwrap_or_else(|error| panic!("a write failed: {error}"));
                let answered = Instant::now();
                if answered > end {
                    return latencies;
                }
                if asked >= begin {
                    latencies.push(answered - asked);
                }
            }
        })
    });
    let mut latencies = Vec::new();
    for client in clients.collect::<Vec<_>>() {
        latencies.extend(client.await.expect("a client doesn't panic"));
    }
    latencies.sort_unstable();
    let sample = Sample {
        per_second: latencies.len() as f64 / duration.as_secs_f64(),
        p50: percentile(&latencies, 50),
        p99: percentile(&latencies, 99),
    };
    (sample, next.load(Ordering::Relaxed))
}

/// Of a sorted list that isn't empty.
pub fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() - 1) * percent / 100]
}
