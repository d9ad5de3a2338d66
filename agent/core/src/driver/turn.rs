//! From raft's `Ready` to what may be sent, written and applied.

use raft::Ready;
use raft::eraftpb::{Entry, HardState, Message, MessageType};

use super::membership::{self, Membership, MembershipChange};
use super::{Checkpoint, Driver, Position, ReadId, Recovered, Soft};

/// What raft wants done.
#[derive(Debug, Default)]
#[must_use = "it is handed out once"]
pub struct Turn {
    /// Role or leader, where one has changed.
    pub soft: Option<Soft>,
    /// They may leave at once: no promise is in them that the disk doesn't hold yet.
    pub send: Vec<Message>,
    /// A snapshot takes the place of everything that was applied; nothing else can be applied before.
    pub install: Option<Install>,
    pub write: Option<Write>,
    /// Next entries to apply, in order and without gaps; a quorum and this server's disk hold them.
    pub committed: Vec<Committed>,
    /// Reads that may be served once everything up to the index is applied.
    pub reads: Vec<(ReadId, u64)>,
}

/// What the log has to hold before anybody may hear of it. Writes are written in the order in which they were made.
#[derive(Debug, Default)]
#[must_use = "raft waits until it is written"]
pub struct Write {
    /// Counts the writes.
    sequence: u64,
    /// Raft's number of what is in it.
    ready: u64,
    /// The log drops everything and begins anew behind this entry.
    restart: Option<Position>,
    entries: Vec<Entry>,
    hard_state: Option<HardState>,
    /// What promises something that stands in this write, or in one before it.
    after: Vec<Message>,
    /// The commit index that the log holds with it.
    commit: u64,
}

/// Proof that writes have succeeded; [`Driver::persisted`] takes it.
#[derive(Debug)]
#[must_use = "raft waits until it hears of it"]
pub struct Durable {
    first: u64,
    last: u64,
    ready: u64,
    /// The log begins anew behind this index.
    restarted: Option<u64>,
    after: Vec<Message>,
    commit: u64,
}

/// A snapshot that the leader sent, which was spooled before raft heard of it.
#[derive(Debug)]
#[must_use = "raft waits until it is installed"]
pub struct Install {
    pub checkpoint: Checkpoint,
    write: Write,
}

/// What a message of the leader announces, if it announces a snapshot: the rows themselves come on their own way.
pub fn announced(message: &Message) -> Option<Checkpoint> {
    let metadata = message.snapshot.as_ref()?.metadata.as_ref()?;
    let position = Position { index: metadata.index, term: metadata.term };
    let membership = metadata.conf_state.as_ref().map(Membership::from_raft).unwrap_or_default();
    (message.msg_type == i32::from(MessageType::MsgSnapshot)).then_some(Checkpoint { position, membership })
}

impl Install {
    /// What the log has to do next, now that the store holds the snapshot durably as `held`; once that is written, raft
    /// takes the snapshot for applied.
    ///
    /// # Panics
    /// When the store holds something else.
    pub fn installed(self, held: &Checkpoint) -> Write {
        assert_eq!(*held, self.checkpoint, "the store holds another state than the snapshot's");
        self.write
    }
}

impl Write {
    /// Writes all of `writes`, in their order, with one sync; none at all when nothing of them must survive a crash.
    ///
    /// # Errors
    /// The log's. Nothing of these writes may be acknowledged then, and the driver can't be used any more.
    pub fn write_all<L: LogStore>(writes: Vec<Self>, log: &mut L) -> Result<Option<Durable>, L::Error> {
        let (Some(first), Some(last)) = (writes.first(), writes.last()) else { return Ok(None) };
        let (first, last, ready, commit) = (first.sequence, last.sequence, last.ready, last.commit);
        let (mut after, mut restarted) = (Vec::new(), None);
        let mut writes = writes.into_iter().peekable();
        while writes.peek().is_some() {
            let (mut entries, mut hard_state) = (Vec::new(), None);
            if let Some((base, own)) =
                writes.peek().and_then(|write| Some((write.restart?, write.hard_state.as_ref()?)))
            {
                // What is committed behind the snapshot is not in the log yet.
                log.restart(base, &HardState { commit: base.index, ..own.clone() })?;
                restarted = Some(base.index);
            }
            let mut is_first = true;
            while let Some(mut write) = writes.next_if(|next| next.restart.is_none() || is_first) {
                is_first = false;
                after.append(&mut write.after);
                if let Some(first) = write.entries.first() {
                    // Another leader's entries take the place of those that were to be written there.
                    entries.truncate(entries.partition_point(|entry: &Entry| entry.index < first.index));
                }
                entries.append(&mut write.entries);
                hard_state = write.hard_state.or(hard_state);
            }
            if !entries.is_empty() || hard_state.is_some() {
                log.write(&entries, hard_state.as_ref())?;
            }
        }
        Ok(Some(Durable { first, last, ready, restarted, after, commit }))
    }
}

/// A commit index that the log holds on disk; nothing applied beyond it may be made durable elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct CommitOnDisk(u64);

impl CommitOnDisk {
    pub fn index(self) -> u64 {
        self.0
    }
}

impl Durable {
    pub fn commit(&self) -> CommitOnDisk {
        CommitOnDisk(self.commit)
    }
}

impl Recovered {
    /// What a log says when it opens is on disk by then.
    pub fn commit(&self) -> CommitOnDisk {
        CommitOnDisk(self.hard_state.commit)
    }
}

impl Driver {
    /// What has to be sent, written and applied, or nothing; call until it returns `None`.
    pub fn turn(&mut self) -> Option<Turn> {
        if !self.raw.has_ready() {
            return None;
        }
        let mut ready = self.raw.ready();
        let soft = ready.ss().map(|soft| Soft::of(soft.raft_state, soft.leader_id));
        let answered = ready.take_read_states();
        let committed: Vec<_> = ready.take_committed_entries().into_iter().map(Committed::of).collect();
        let changes = committed.iter().filter(|entry| matches!(entry.content, Content::Membership { .. }));
        self.unapplied_changes.extend(changes.map(|entry| entry.position.index));
        let install = self.restore(&ready);
        let (send, write) = self.write(&mut ready, install.as_ref().map(|checkpoint| checkpoint.position));
        let number = ready.number();
        self.raw.advance_append_async(ready);
        if self.in_flight.is_none() {
            self.raw.on_persist_ready(number);
        }
        self.pin_election_timeout();
        let (install, write) = match (install, write) {
            (Some(checkpoint), Some(write)) => (Some(Install { checkpoint, write }), None),
            (_, write) => (None, write),
        };
        let own = answered.into_iter().filter_map(|read| self.own_read(&read));
        Some(Turn { soft, send, install, write, committed, reads: own.collect() })
    }

    /// Takes the proof that everything up to some write is on disk; what may be said now comes back.
    ///
    /// # Panics
    /// When a write was left out: it failed, and the node must stop.
    pub fn persisted(&mut self, durable: Durable) -> Vec<Message> {
        assert_eq!(durable.first, self.written_up_to + 1, "a write was left out: the node must stop");
        self.written_up_to = durable.last;
        self.persisted = durable.ready;
        self.commit_on_disk = self.commit_on_disk.max(durable.commit());
        if self.in_flight.is_some_and(|newest| newest <= durable.ready) {
            self.in_flight = None;
        }
        self.raw.on_persist_ready(durable.ready);
        if let Some(index) = durable.restarted {
            // Raft takes nothing for applied that it doesn't take for persisted.
            self.raw.advance_apply_to(index);
            self.installing.take_if(|newest| *newest <= index);
        }
        self.pin_election_timeout();
        durable.after
    }

    /// Up to where a start would know what is committed, whoever else is there. Who is removed from the group may be told, and
    /// go, only once its removal is: before, a crash may make this server need its vote again.
    pub fn commit_on_disk(&self) -> CommitOnDisk {
        self.commit_on_disk
    }

    /// A write that makes the log know that everything applied is committed.
    ///
    /// The store may make it durable only then: a store ahead of its log's commit index can't be started from.
    pub fn record_commit(&mut self) -> Write {
        let applied = self.raw.raft.raft_log.applied;
        let behind = applied > self.written.commit;
        self.written.commit = self.written.commit.max(applied);
        let hard_state = behind.then(|| self.written.clone());
        self.number_write(Write { ready: self.in_flight.unwrap_or(self.persisted), hard_state, ..Write::default() })
    }

    fn number_write(&mut self, write: Write) -> Write {
        self.last_write += 1;
        Write { sequence: self.last_write, commit: self.written.commit, ..write }
    }

    /// Empties the log of raft's memory where a snapshot takes its place.
    fn restore(&mut self, ready: &Ready) -> Option<Checkpoint> {
        let metadata = ready.snapshot().metadata.as_ref().filter(|metadata| metadata.index > 0)?;
        let position = Position { index: metadata.index, term: metadata.term };
        let membership = Membership::from_raft(metadata.conf_state.as_ref().expect("the gate has seen to it"));
        self.raw.mut_store().restart(position);
        self.unapplied_changes.clear();
        self.installing = Some(position.index);
        Some(Checkpoint { position, membership })
    }

    /// Parts the messages into those that may leave at once and those that the disk comes before.
    fn write(&mut self, ready: &mut Ready, restart: Option<Position>) -> (Vec<Message>, Option<Write>) {
        let number = ready.number();
        let hard_state = self.raw.raft.hard_state();
        let promises = (hard_state.term, hard_state.vote) != (self.written.term, self.written.vote);
        let (leading, held) = (ready.take_messages(), ready.take_persisted_messages());
        self.acknowledged.note(&held);
        let must_sync = ready.must_sync();
        if promises {
            assert!(must_sync, "raft syncs a new term or vote");
            self.promised = number;
        }
        // A leader's appends may race its own disk, but not the term in which it sends them: a leader alone among
        // learners has asked nobody for its vote, so nothing else would tell that term from the same one after a crash.
        let (mut send, mut after) = (leading, held);
        if self.promised > self.persisted {
            after.append(&mut send);
        } else {
            // All that an answer to a heartbeat promises is the term in which it is given. A leader takes followers that
            // leave it without for lost, and their disks may be slower than it has patience.
            send.extend(after.extract_if(.., |message| message.msg_type() == MessageType::MsgHeartbeatResponse));
        }
        if self.in_flight.is_none() && !must_sync {
            send.append(&mut after);
            return (send, None);
        }
        let entries = ready.take_entries();
        self.raw.mut_store().append(entries.clone());
        if !must_sync && after.is_empty() {
            return (send, None);
        }
        let changed = must_sync && hard_state != self.written;
        if changed {
            self.written.clone_from(&hard_state);
        }
        self.in_flight = Some(number);
        let hard_state = (changed || restart.is_some()).then_some(hard_state);
        let write = Write { ready: number, restart, entries, hard_state, after, ..Write::default() };
        (send, Some(self.number_write(write)))
    }

    /// The read that this run of this server asked for, and its index.
    fn own_read(&self, read: &raft::ReadState) -> Option<(ReadId, u64)> {
        let (server_and_run, number) = read.request_ctx.split_at_checked(16)?;
        let expected = self.read_context(0);
        let number = u64::from_be_bytes(number.try_into().ok()?);
        (server_and_run == &expected[..16]).then_some((ReadId(number), read.index))
    }
}

/// An entry that a quorum holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    pub position: Position,
    pub content: Content,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A new leader's first entry, or what raft left of a membership change that it refused.
    Nothing,
    Command(Vec<u8>),
    /// To be given to [`Driver::apply_membership`].
    Membership {
        change: MembershipChange,
        context: Vec<u8>,
    },
}

impl Committed {
    /// About how many bytes of the log it takes.
    pub fn bytes(&self) -> usize {
        match &self.content {
            Content::Command(command) => command.len() + size_of::<Self>(),
            Content::Nothing | Content::Membership { .. } => size_of::<Self>(),
        }
    }

    fn of(entry: Entry) -> Self {
        let position = Position::of(&entry);
        // By type first: a membership change may be zero bytes long.
        let content = match membership::of_entry(&entry).expect("the gate and the start checked every entry") {
            Some((change, context)) => Content::Membership { change, context },
            None if entry.data.is_empty() => Content::Nothing,
            None => Content::Command(entry.data),
        };
        Self { position, content }
    }
}

/// Where raft's entries and hard state become durable.
pub trait LogStore {
    type Error;

    /// Appends `entries` (an index that exists already drops it and all behind it first) and replaces the hard state.
    ///
    /// Returns once everything is on disk: one fdatasync for the whole batch.
    ///
    /// # Errors
    /// After any error nothing may be acknowledged any more: the caller stops the node.
    fn write(&mut self, entries: &[Entry], hard_state: Option<&HardState>) -> Result<(), Self::Error>;

    /// Drops every entry and begins anew behind `base`, with this hard state; on disk when it returns.
    ///
    /// # Errors
    /// As [`Self::write`].
    fn restart(&mut self, base: Position, hard_state: &HardState) -> Result<(), Self::Error>;
}
