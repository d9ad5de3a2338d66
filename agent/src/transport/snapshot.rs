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
    let mut due = Instant::now();
    background::spawn("snapshot", move || {
        loop {
            let chunk = rows.chunk(&after).map_err(Status::internal);
            let (bytes, next) = match &chunk {
                Ok((rows, next)) => (u32::try_from(rows.len()).unwrap_or(u32::MAX), next.clone()),
                Err(_) => (0, None),
            };
            // Whoever called may have gone.
            let taken = out.blocking_send(chunk.map(|(rows, _)| SnapshotChunk { rows }));
            let (Ok(()), Some(next)) = (taken, next) else { return };
            after = next;
            due = due.max(Instant::now()) + Duration::from_secs(1) * bytes / BYTES_PER_SECOND;
            if due > Instant::now() + BURST {
                std::thread::sleep(due - Instant::now());
            }
        }
    })
}
