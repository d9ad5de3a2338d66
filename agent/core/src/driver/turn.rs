//! From raft's `Ready` to what may be sent and applied: written first, then advanced.

use raft::Ready;
use raft::eraftpb::{Entry, HardState, Message};

use super::membership::{self, MembershipChange};
use super::{Driver, Position, ReadId, Soft};

/// Work that raft wants done. Giving it up before [`Durable::advance`] leaves a driver that panics when it is used again.
#[must_use = "raft waits until it is written and advanced"]
pub struct Turn<'a> {
    pub(super) driver: &'a mut Driver,
    pub(super) ready: Ready,
    /// Role or leader, where one has changed.
    pub soft: Option<Soft>,
    /// A leader's messages, which may leave while the disk writes; no promise of this server is in them.
    pub send_now: Vec<Message>,
}

impl<'a> Turn<'a> {
    /// Writes what must survive a crash before anything else happens; a moved commit index alone needn't.
    ///
    /// # Errors
    /// The log's. The driver can't be used any more then, and nothing of this turn may be acknowledged.
    pub fn write_to<L: LogStore>(self, log: &mut L) -> Result<Durable<'a>, L::Error> {
        let Self { driver, ready, .. } = self;
        if ready.must_sync() {
            let hard_state = driver.raw.raft.hard_state();
            let changed = hard_state != driver.written;
            log.write(ready.entries(), changed.then_some(&hard_state))?;
            driver.written = hard_state;
        }
        Ok(Durable { driver, ready })
    }
}

/// Proof that a turn's write has succeeded.
#[must_use = "raft waits until it is advanced"]
pub struct Durable<'a> {
    driver: &'a mut Driver,
    ready: Ready,
}

impl Durable<'_> {
    /// Gives up what may happen only now that the disk holds it.
    pub fn advance(self) -> Done {
        let Self { driver, mut ready } = self;
        let mut send = ready.take_persisted_messages();
        let mut committed = ready.take_committed_entries();
        let reads = ready.take_read_states();
        driver.raw.mut_store().append(ready.take_entries());
        // What a group of one commits comes only here, and never again.
        let mut light = driver.raw.advance_append(ready);
        send.extend(light.take_messages());
        committed.extend(light.take_committed_entries());
        driver.settled = driver.raw.raft.hard_state();
        driver.in_turn = false;
        driver.pin_election_timeout();
        let committed: Vec<Committed> = committed.into_iter().map(Committed::of).collect();
        let changes = committed.iter().filter(|entry| matches!(entry.content, Content::Membership { .. }));
        driver.unapplied_changes.extend(changes.map(|entry| entry.position.index));
        let own = |read: raft::ReadState| {
            let (server_and_run, number) = read.request_ctx.split_at_checked(16)?;
            let expected = driver.read_context(0);
            let number = u64::from_be_bytes(number.try_into().ok()?);
            (server_and_run == &expected[..16]).then_some((ReadId(number), read.index))
        };
        Done { send, committed, reads: reads.into_iter().filter_map(own).collect() }
    }
}

/// What may happen now.
#[derive(Debug, Default)]
#[must_use = "what was committed is handed out once"]
pub struct Done {
    pub send: Vec<Message>,
    /// Next entries to apply, in order and without gaps.
    pub committed: Vec<Committed>,
    /// Reads that may be served once everything up to the index is applied.
    pub reads: Vec<(ReadId, u64)>,
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
}
