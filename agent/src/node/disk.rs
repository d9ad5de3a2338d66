//! The log and the store while the loop goes on: each is here, or with its thread and comes back by the inbox.
//!
//! ```text
//!  writes ──▶ waiting ──▶ the log: on the loop's thread where the disk is fast, on its own where it isn't
//!  applied rows ──▶ pending ── checkpoint due ──▶ commit index into the log ──▶ the store, on its own thread
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use blixard_core::driver::{Checkpoint, CommitOnDisk, Durable, Write};
use blixard_core::state::{Change, Table};

use super::{Input, NodeError};
use crate::log::{Log, LogError};
use crate::store::{Reader, Store, StoreError};
use crate::{background, memory};

/// The inbox of the loop that has them.
type Inbox = tokio::sync::mpsc::Sender<Input>;

/// A disk that syncs faster than this is waited for: a handover to another thread and back takes about as long.
const FAST_SYNC: Duration = Duration::from_micros(250);
/// The same where the loop would have nothing to do meanwhile.
const SHORT_SYNC: Duration = Duration::from_millis(1);

/// The log, and what is to be written to it.
pub(super) struct Writer {
    log: Option<Log>,
    waiting: Vec<Write>,
    /// The log needs nothing before this index any more.
    release_before: u64,
    /// How long a write takes, over the last few.
    pace: Duration,
    thread: Sender<LogJob>,
}

struct LogJob {
    log: Log,
    writes: Vec<Write>,
    release_before: u64,
}

/// What the log's thread has done.
pub(super) struct Written {
    log: Log,
    took: Duration,
    result: Result<Option<Durable>, LogError>,
}

impl Writer {
    pub(super) fn new(log: Log, inbox: Inbox) -> Self {
        let (thread, jobs) = channel::<LogJob>();
        let work = move || {
            for LogJob { mut log, writes, release_before } in jobs {
                let begun = Instant::now();
                let result = log.release_before(release_before).and_then(|()| Write::write_all(writes, &mut log));
                let written = Written { log, took: begun.elapsed(), result };
                if inbox.blocking_send(Input::Written(Box::new(written))).is_err() {
                    return;
                }
            }
        };
        std::thread::Builder::new().name("log".to_owned()).spawn(work).expect(SPARE);
        Self { log: Some(log), waiting: Vec::new(), release_before: 0, pace: Duration::ZERO, thread }
    }

    pub(super) fn add(&mut self, write: Write) {
        self.waiting.push(write);
    }

    /// The log's segments before this index may go.
    pub(super) fn release_before(&mut self, index: u64) {
        self.release_before = index;
    }

    pub(super) fn is_idle(&self) -> bool {
        self.log.is_some() && self.waiting.is_empty()
    }

    /// Whether [`Self::write`] would keep the loop from other work.
    pub(super) fn will_block(&self, is_busy: bool) -> bool {
        self.log.is_some() && !self.waiting.is_empty() && self.is_short(is_busy)
    }

    /// Whether what waits is written faster than it is handed over.
    fn is_short(&self, is_busy: bool) -> bool {
        self.release_before == 0 && self.pace <= if is_busy { FAST_SYNC } else { SHORT_SYNC }
    }

    /// Writes what waits, or hands it over where that takes long; what is on disk by now.
    ///
    /// `is_busy`: there is something to go on with meanwhile.
    pub(super) fn write(&mut self, is_busy: bool) -> Result<Option<Durable>, NodeError> {
        if self.waiting.is_empty() {
            return Ok(None);
        }
        let Some(mut log) = self.log.take() else { return Ok(None) };
        let is_short = self.is_short(is_busy);
        let (writes, release_before) = (std::mem::take(&mut self.waiting), std::mem::take(&mut self.release_before));
        if !is_short {
            self.thread.send(LogJob { log, writes, release_before }).expect("the log's thread waits for jobs");
            return Ok(None);
        }
        let begun = Instant::now();
        let result = Write::write_all(writes, &mut log);
        self.back(Written { log, took: begun.elapsed(), result })
    }

    /// Takes the log back.
    pub(super) fn back(&mut self, Written { log, took, result }: Written) -> Result<Option<Durable>, NodeError> {
        self.pace = (self.pace * 7 + took) / 8;
        self.log = Some(log);
        result.map_err(NodeError::WriteLog)
    }
}

/// Values by their keys; nothing where a row is to be removed.
type Rows = BTreeMap<(Table, Vec<u8>), Option<Arc<[u8]>>>;

/// The store, and the rows that it lacks.
pub(super) struct Keeper {
    store: Option<Store>,
    pending: Rows,
    /// What was pending when a checkpoint was made of it, until the store is here to take it.
    cut: Option<(Checkpoint, Rows)>,
    /// What the next checkpoint holds, once the log holds its commit index.
    next: Option<(Checkpoint, Rows)>,
    thread: Sender<StoreJob>,
}

struct StoreJob {
    store: Store,
    rows: Rows,
    checkpoint: Checkpoint,
    commit: CommitOnDisk,
}

/// What the store's thread has done.
pub(super) struct Kept {
    store: Store,
    /// What was written.
    changes: Vec<Change>,
    result: Result<Option<Reader>, StoreError>,
}

impl Keeper {
    pub(super) fn new(store: Store, inbox: Inbox) -> Self {
        let (thread, jobs) = channel::<StoreJob>();
        let work = move || {
            for StoreJob { mut store, rows, checkpoint, commit } in jobs {
                let changes: Vec<Change> =
                    rows.into_iter().map(|((table, key), value)| Change { table, key, value }).collect();
                let result = store.commit(&changes, &checkpoint, commit).and_then(|()| store.reader());
                if inbox.blocking_send(Input::Kept(Box::new(Kept { store, changes, result }))).is_err() {
                    return;
                }
            }
        };
        background::spawn("store", work).expect(SPARE);
        Self { store: Some(store), pending: Rows::new(), cut: None, next: None, thread }
    }

    /// Rows that an entry has written; a later one replaces an earlier one of the same key.
    pub(super) fn add(&mut self, changes: Vec<Change>) {
        self.pending.extend(changes.into_iter().map(|Change { table, key, value }| ((table, key), value)));
    }

    pub(super) fn is_idle(&self) -> bool {
        self.store.is_some() && self.next.is_none() && self.cut.is_none()
    }

    /// Makes a checkpoint of everything added so far; [`Self::begin`] begins to write it.
    pub(super) fn cut(&mut self, checkpoint: Checkpoint) {
        assert!(self.cut.is_none(), "one cut at a time");
        self.cut = Some((checkpoint, std::mem::take(&mut self.pending)));
    }

    pub(super) fn has_cut(&self) -> bool {
        self.cut.is_some()
    }

    /// Begins with the checkpoint that was cut, where the one before is done; [`Self::recorded`] goes on with it.
    pub(super) fn begin(&mut self) -> bool {
        if self.store.is_none() || self.next.is_some() {
            return false;
        }
        self.next = self.cut.take();
        self.next.is_some()
    }

    /// Hears which commit index the log holds: the checkpoint that waited for it goes to the store.
    pub(super) fn recorded(&mut self, commit: CommitOnDisk) {
        let is_held = |(checkpoint, _): &mut (Checkpoint, _)| checkpoint.position.index <= commit.index();
        if let Some((checkpoint, rows)) = self.next.take_if(is_held) {
            let store = self.store.take().expect("one checkpoint at a time");
            let job = StoreJob { store, rows, checkpoint, commit };
            self.thread.send(job).expect("the store's thread waits for jobs");
        }
    }

    /// Takes the store back, with what it holds now.
    pub(super) fn back(&mut self, Kept { store, changes, result }: Kept) -> Result<Reader, NodeError> {
        self.store = Some(store);
        // It takes a moment: that is no work for the loop.
        tokio::task::spawn_blocking(move || {
            drop(changes);
            memory::trim();
        });
        result
            .map(|reader| reader.expect("a commit takes in what has overtaken the store"))
            .map_err(NodeError::WriteStore)
    }

    /// The store, while it is here; what is pending is not in it.
    pub(super) fn store(&mut self) -> Option<&mut Store> {
        self.store.as_mut()
    }

    /// Forgets the rows that a snapshot replaces.
    pub(super) fn forget_pending(&mut self) {
        self.pending.clear();
        self.cut = None;
    }
}

const SPARE: &str = "the system has a thread to spare at start";
