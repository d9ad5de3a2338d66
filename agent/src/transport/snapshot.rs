//! The rows of a snapshot on the wire: one stream, in chunks, no faster than its reader and than a limit.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use blixard_core::driver::Position;
use blixard_core::types::NodeId;
use tokio::sync::mpsc;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use super::link::describe;
use super::proto::peer_client::PeerClient;
use super::proto::{SnapshotChunk, SnapshotRequest};
use super::{MAX_FRAME, SnapshotError, SnapshotRows};
use crate::background;

/// Bytes a second that one snapshot takes of a leader at most: what it has to do beside comes first.
const BYTES_PER_SECOND: u32 = 256 << 20;
/// How far it may be ahead of that: timers are too coarse for single chunks.
const BURST: Duration = Duration::from_millis(5);
/// Chunks that are read and not sent yet.
pub const CHUNKS_AHEAD: usize = 2;

/// The rows as they come in.
pub struct Chunks {
    from: NodeId,
    stream: Streaming<SnapshotChunk>,
}

impl Chunks {
    /// The next chunk. Only its content tells which one is the last.
    ///
    /// # Errors
    /// `Broken` when the stream ends.
    pub async fn next(&mut self) -> Result<Vec<u8>, SnapshotError> {
        let from = self.from;
        match self.stream.message().await {
            Ok(Some(chunk)) => Ok(chunk.rows),
            Ok(None) => Err(SnapshotError::Broken { from, reason: "it ended before its last chunk".to_owned() }),
            Err(status) => Err(refused(from, &status)),
        }
    }
}

/// The client side.
pub async fn call(channel: Channel, from: NodeId, at: Position, after: Vec<u8>) -> Result<Chunks, SnapshotError> {
    let mut client = PeerClient::new(channel).max_decoding_message_size(MAX_FRAME);
    let request = SnapshotRequest { index: at.index, term: at.term, after };
    match client.snapshot(request).await {
        Ok(reply) => Ok(Chunks { from, stream: reply.into_inner() }),
        Err(status) => Err(refused(from, &status)),
    }
}

fn refused(from: NodeId, status: &Status) -> SnapshotError {
    match status.code() {
        Code::NotFound => SnapshotError::Gone { from },
        _ => SnapshotError::Broken { from, reason: describe(status) },
    }
}

/// The server side: reads chunk after chunk in the background, as fast as they are taken.
///
/// # Errors
/// When the system has no thread to spare.
pub fn serve(
    rows: Arc<dyn SnapshotRows>,
    mut after: Vec<u8>,
    out: mpsc::Sender<Result<SnapshotChunk, Status>>,
) -> io::Result<()> {
    let mut throttle = Throttle { due: Instant::now() };
    background::spawn("snapshot", move || {
        loop {
            let chunk = rows.chunk(&after).map_err(Status::internal);
            let (bytes, next) = match &chunk {
                Ok((rows, next)) => (rows.len(), next.clone()),
                Err(_) => (0, None),
            };
            // Whoever called may have gone.
            let taken = out.blocking_send(chunk.map(|(rows, _)| SnapshotChunk { rows }));
            let (Ok(()), Some(next)) = (taken, next) else { return };
            after = next;
            if let Some(pause) = throttle.pause(Instant::now(), bytes) {
                std::thread::sleep(pause);
            }
        }
    })
}

/// Keeps a stream to [`BYTES_PER_SECOND`].
struct Throttle {
    /// When all that was sent would have gone at that rate.
    due: Instant,
}

impl Throttle {
    /// How long to wait now that so many bytes more were sent. What a slow reader has left of its rate isn't made up for.
    fn pause(&mut self, now: Instant, bytes: usize) -> Option<Duration> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.due = self.due.max(now) + Duration::from_secs(1) * bytes / BYTES_PER_SECOND;
        Some(self.due - now).filter(|ahead| *ahead > BURST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: usize = 256 << 10;
    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_snapshot_takes_no_more_of_a_leader_than_its_rate() {
        let begun = Instant::now();
        let (mut now, mut throttle) = (begun, Throttle { due: begun });
        let rate = usize::try_from(BYTES_PER_SECOND).unwrap();
        let (mut sent, mut pauses) = (0, 0);
        while now < begun + SECOND && sent < 2 * rate {
            sent += CHUNK;
            let pause = throttle.pause(now, CHUNK);
            pauses += u32::from(pause.is_some());
            now += pause.unwrap_or_default();
        }
        let ahead = rate / usize::try_from(SECOND.as_millis() / BURST.as_millis()).unwrap() + CHUNK;
        assert!((rate - CHUNK..=rate + ahead).contains(&sent), "{sent} bytes in a second");
        assert!(pauses <= u32::try_from(SECOND.as_millis() / BURST.as_millis()).unwrap(), "{pauses} pauses");
    }

    #[test]
    fn a_slow_reader_is_not_slowed_and_gets_no_burst_for_it() {
        let begun = Instant::now();
        let mut throttle = Throttle { due: begun };
        let slow = (0..100).map(|number| begun + BURST * number);
        assert!(slow.into_iter().all(|now| throttle.pause(now, CHUNK).is_none()));
        let now = begun + BURST * 100;
        let at_once = (0..100).take_while(|_| throttle.pause(now, CHUNK).is_none()).count();
        assert!(at_once <= 5, "{at_once} chunks at once");
    }
}
