//! Snapshots: served from the store's last checkpoint, fetched by a follower that lacks what the log has dropped.
//!
//! ```text
//!  leader   raft wants one sent ─▶ announce (MsgSnapshot) ─▶ serve the rows to whom it was announced ─▶ report to raft
//!  follower announced ─▶ fetch, again from where it broke off ─▶ step ─▶ install: store, state, log
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use blixard_core::driver::{Checkpoint, Install, Message, Position, announced};
use blixard_core::state::{Loading, RowError, State};
use blixard_core::types::{NodeId, RaftId};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use super::{Attempt, Input, Node, NodeError};
use crate::memory;
use crate::store::{ChunkError, Incoming, Reader, rows_of};
use crate::transport::{SnapshotError, SnapshotRows, Transport};

/// Bytes of rows in one chunk.
const CHUNK_BYTES: usize = 256 << 10;
/// A follower that asks for no chunk for this long doesn't want the snapshot any more, or can't be reached.
const IDLE_TICKS: u64 = 300;
/// Chunks that are in the file and not in the state yet.
const CHUNKS_AHEAD: usize = 2;
/// How often a fetch that broke off is gone on with.
const FETCH_ATTEMPTS: u32 = 10;
const FETCH_PAUSE: Duration = Duration::from_millis(100);

/// Snapshots on their way.
#[derive(Default)]
pub(super) struct Snapshots {
    /// The store's last checkpoint since the start.
    pub latest: Option<Arc<Reader>>,
    offers: BTreeMap<RaftId, Offer>,
    /// What is being fetched, and by whom.
    fetching: Option<(Position, AbortHandle)>,
    /// What was fetched, until raft says what to do with it.
    fetched: Option<(Position, Fetched)>,
}

/// A whole snapshot, and the state that its rows are.
pub(super) struct Fetched {
    incoming: Incoming,
    state: State,
}

/// A snapshot that was announced to a follower.
struct Offer {
    source: Arc<Source>,
    /// Chunks that it had asked for when that was last looked at, and when that was.
    seen: (u64, u64),
}

/// The rows of one snapshot for one follower.
pub(super) struct Source {
    reader: Arc<Reader>,
    chunks: AtomicU64,
}

impl SnapshotRows for Source {
    fn chunk(&self, after: &[u8]) -> Result<(Vec<u8>, Option<Vec<u8>>), String> {
        self.chunks.fetch_add(1, Ordering::Relaxed);
        self.reader.chunk(after, CHUNK_BYTES).map_err(|error| crate::error_chain(&error))
    }
}

impl Node {
    /// Notes what raft announces to followers: they will ask for it.
    pub(super) fn offer_snapshots(&mut self, messages: &[Message]) {
        for message in messages {
            let Some(Checkpoint { position, .. }) = announced(message) else { continue };
            let peer = RaftId(message.to);
            let latest = self.snapshots.latest.clone().filter(|reader| reader.checkpoint().position == position);
            // Raft announces what the store's last checkpoint holds, and that is kept here.
            let Some(reader) = latest else { continue };
            tracing::info!(%peer, index = position.index, "a snapshot is offered");
            let source = Arc::new(Source { reader, chunks: AtomicU64::new(0) });
            self.snapshots.offers.insert(peer, Offer { source, seen: (0, self.ticks) });
        }
    }

    pub(super) fn serve_snapshot(&self, peer: RaftId, position: Position) -> Option<Arc<dyn SnapshotRows>> {
        let offer = self.snapshots.offers.get(&peer)?;
        let source = Some(&offer.source).filter(|source| source.reader.checkpoint().position == position)?;
        Some(source.clone())
    }

    /// Forgets those who have what they were offered, and gives up on followers that ask for nothing any more; raft would
    /// wait for them for ever.
    pub(super) fn expire_offers(&mut self) {
        let driver = &self.driver;
        self.snapshots.offers.retain(|peer, _| driver.awaits_snapshot(*peer));
        let mut given_up = Vec::new();
        for (peer, offer) in &mut self.snapshots.offers {
            let chunks = offer.source.chunks.load(Ordering::Relaxed);
            if chunks != offer.seen.0 {
                offer.seen = (chunks, self.ticks);
            }
            if self.ticks - offer.seen.1 >= IDLE_TICKS {
                given_up.push(*peer);
            }
        }
        for peer in given_up {
            tracing::warn!(%peer, "a snapshot was not fetched");
            self.snapshots.offers.remove(&peer);
            self.driver.snapshot_failed(peer);
        }
    }

    /// Begins to fetch what the leader has announced; raft hears of it once it is here and whole.
    ///
    /// # Errors
    /// As [`Self::fetched_snapshot`].
    pub(super) fn fetch_snapshot(&mut self, message: Message) -> Result<(), NodeError> {
        let Some(checkpoint) = announced(&message) else { return Ok(()) };
        if let Err(error) = self.driver.check_snapshot(&message) {
            tracing::warn!(error = crate::error_chain(&error), "a snapshot was refused");
            return Ok(());
        }
        let position = checkpoint.position;
        let fetching = self.snapshots.fetching.as_ref();
        let is_fetching = fetching.is_some_and(|(at, _)| *at == position);
        // One after the other: the leader announces what is still lacked then.
        if is_fetching || self.installing.is_some() || position.index <= self.applied {
            return Ok(());
        }
        let directory = self.directory.borrow().clone();
        let from = directory.node_of(RaftId(message.from));
        let Some(from) = from else { return Ok(()) };
        if let Some((_, earlier)) = self.snapshots.fetching.take() {
            earlier.abort();
        }
        self.snapshots.fetched = None;
        // Here and now: one that was given up on must not take the file of its successor for its own.
        let incoming = Incoming::begin(self.home.clone(), checkpoint).map_err(NodeError::KeepSnapshot)?;
        let (transport, inbox) = (self.transport.clone(), self.inbox.clone());
        let fetch = tokio::spawn(async move {
            let incoming = fetch(incoming, &transport, from, position).await;
            // The node may have ended.
            let _ = inbox.send(Input::Fetched(Box::new((message, incoming)))).await;
        });
        self.snapshots.fetching = Some((position, fetch.abort_handle()));
        Ok(())
    }

    /// # Errors
    /// When this disk can't take it: raft would only announce it again, and meanwhile this node would seem well.
    pub(super) fn fetched_snapshot(
        &mut self,
        message: Message,
        fetched: Result<Fetched, FetchError>,
    ) -> Result<(), NodeError> {
        let Some(Checkpoint { position, .. }) = announced(&message) else { return Ok(()) };
        if self.snapshots.fetching.take_if(|(at, _)| *at == position).is_none() {
            return Ok(());
        }
        match fetched {
            Ok(_) if self.installing.is_some() => {}
            Ok(fetched) => match self.driver.step_snapshot(message) {
                Ok(true) => self.snapshots.fetched = Some((position, fetched)),
                Ok(false) => tracing::debug!(index = position.index, "a snapshot is not needed any more"),
                // What raft was told of before stays.
                Err(error) => tracing::warn!(error = crate::error_chain(&error), "a snapshot was refused"),
            },
            Err(FetchError::Put(ChunkError::Write(error))) => return Err(NodeError::KeepSnapshot(error)),
            Err(FetchError::Rows(error)) => return Err(NodeError::Rows(error)),
            Err(error) => tracing::warn!(error = crate::error_chain(&error), "a snapshot could not be fetched"),
        }
        Ok(())
    }

    /// Puts the fetched snapshot in the place of store, state and log; both files have to be here.
    pub(super) fn install(&mut self, install: Install) -> Result<(), NodeError> {
        let position = install.checkpoint.position;
        let fetched = self.snapshots.fetched.take().filter(|(at, _)| *at == position);
        let (_, Fetched { incoming, state }) = fetched.expect("raft was told of it");
        let store = self.keeper.store().expect("no checkpoint is under way");
        store.install(incoming).map_err(NodeError::WriteStore)?;
        let checkpoint = store.checkpoint().clone();
        // Its rows can be read once they are in their tables: the next checkpoint puts them there, which is due now.
        self.snapshots.latest = None;
        self.checkpointed_at = None;
        let before = {
            let known = &mut *self.known.change();
            known.standing.applied = position.index;
            known.standing.set_servers(checkpoint.membership.clone());
            std::mem::replace(&mut known.state, state)
        };
        // It may have been large: that is no work for the loop.
        tokio::task::spawn_blocking(move || {
            drop(before);
            memory::trim();
        });
        self.keeper.forget_pending();
        self.set_applied(position);
        for waiting in self.proposals.pass_over(position.index) {
            waiting.fail(Attempt::Unknown);
        }
        self.writer.add(install.installed(&checkpoint));
        let known = self.known.clone();
        self.publish_directory(&known.look().state);
        tracing::info!(index = position.index, "a snapshot is installed");
        self.news.assignment.send_modify(|revision| *revision += 1);
        self.changed();
        self.judge(&self.known.look().state)
    }
}

/// Why a snapshot isn't here.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("the leader's stream broke off too often")]
    Stream(#[source] SnapshotError),
    #[error("cannot keep a part of it")]
    Put(#[source] ChunkError),
    #[error("cannot make a state of it")]
    Rows(#[source] RowError),
}

/// All rows of a snapshot, in a file beside the store and as a state.
async fn fetch(
    mut incoming: Incoming,
    transport: &Transport,
    from: NodeId,
    position: Position,
) -> Result<Fetched, FetchError> {
    let (passed, passing) = sync_channel(CHUNKS_AHEAD);
    let state = tokio::task::spawn_blocking(move || load(&passing));
    let mut attempts = 0;
    loop {
        let error = match transport.snapshot(from, position, incoming.resume()).await {
            Ok(mut chunks) => loop {
                match chunks.next().await {
                    Ok(chunk) => {
                        attempts = 0;
                        let pass = passed.clone();
                        let put = blocking(move || {
                            let is_last = incoming.put(&chunk)?;
                            // Whoever can't read it has ended, and says why.
                            let _ = pass.send(chunk);
                            Ok((incoming, is_last))
                        });
                        let (back, is_last) = put.await.map_err(FetchError::Put)?;
                        incoming = back;
                        if is_last {
                            drop(passed);
                            return Ok(Fetched { incoming, state: state.await.expect(ENDS)? });
                        }
                    }
                    Err(error) => break error,
                }
            },
            Err(error) => error,
        };
        attempts += 1;
        if attempts >= FETCH_ATTEMPTS || matches!(error, SnapshotError::Gone { .. }) {
            return Err(FetchError::Stream(error));
        }
        tokio::time::sleep(FETCH_PAUSE).await;
    }
}

/// The state that chunks are which pass by.
fn load(chunks: &Receiver<Vec<u8>>) -> Result<State, FetchError> {
    let mut loading = Loading::default();
    for chunk in chunks {
        loading.extend(rows_of(&chunk).map_err(FetchError::Put)?);
    }
    loading.finish().map_err(FetchError::Rows)
}

const ENDS: &str = "it doesn't panic, and nobody ends it";

pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect(ENDS)
}

/// Serves the rows of a snapshot that this node has announced.
pub(super) struct Serve {
    pub peer: RaftId,
    pub position: Position,
    pub answer: oneshot::Sender<Option<Arc<dyn SnapshotRows>>>,
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use blixard_core::command::{Command, Entry, NewNode};
    use blixard_core::driver::{Membership, Recovered};
    use blixard_core::types::{ClusterId, Hash, Level, Term, Timestamp};
    use raft::eraftpb::HardState;

    use super::*;
    use crate::store::Store;
    use crate::transport::tests::rig::{Cluster, node};

    /// Rows one by one; when it is asked for the third time, they can't be read.
    struct Stumbling {
        reader: Reader,
        asked: Mutex<Vec<Vec<u8>>>,
    }

    impl SnapshotRows for Stumbling {
        fn chunk(&self, after: &[u8]) -> Result<(Vec<u8>, Option<Vec<u8>>), String> {
            let mut asked = self.asked.lock().unwrap();
            asked.push(after.to_vec());
            if asked.len() == 3 {
                return Err("the disk is slow".to_owned());
            }
            self.reader.chunk(after, 1).map_err(|error| crate::error_chain(&error))
        }
    }

    #[tokio::test]
    async fn a_fetch_whose_stream_breaks_off_goes_on_behind_the_last_chunk() {
        let first = NewNode {
            name: "alpha".parse().unwrap(),
            address: "127.0.0.1:1".parse().unwrap(),
            key: Hash::of(b"its key"),
            understands: Level::NEWEST,
            role: blixard_core::types::NodeRole::Auto,
        };
        let command = Command::Found {
            cluster: ClusterId::from_bytes([7; 16]),
            ca_certificate: vec![1],
            sealed_ca_key: vec![2],
            first,
            listed_servers: 1,
        };
        let entry = Entry { at: Timestamp(0), decided_in: Some(Term(1)), request: None, command };
        let mut state = State::default();
        let changes = state.apply(1, Term(1), &entry).changes;

        let directory = tempfile::tempdir().unwrap();
        let create = |name| Store::create(&directory.path().join(name)).unwrap();
        let (mut source, target) = (create("source"), create("target"));
        let position = Position { index: 1, term: 1 };
        let checkpoint = Checkpoint { position, membership: Membership::founded_by(RaftId(1)) };
        let hard_state = HardState { term: 1, vote: 1, commit: 1 };
        let commit = Recovered { hard_state, ..Recovered::default() }.commit();
        source.commit(&changes, &checkpoint, commit).unwrap();

        let reader = source.reader().unwrap().unwrap();
        let rows = Arc::new(Stumbling { reader, asked: Mutex::default() });
        let cluster = Cluster::pair().await;
        *cluster.nodes[0].recorder.rows.lock().unwrap() = Some(rows.clone());
        let incoming = Incoming::begin(target.home().clone(), checkpoint).unwrap();
        let fetched = fetch(incoming, &cluster.nodes[1].transport, node(0), position).await.unwrap();
        assert_eq!(fetched.state, state);
        let asked = rows.asked.lock().unwrap();
        assert_eq!(asked[3], asked[2], "it goes on where it broke off");
        assert_eq!(asked.len(), changes.len() + 1, "nothing else comes twice");
    }
}
