//! What may reach raft's `step`: raft takes messages for honest, so malformed ones make it panic, and others mislead it.
//!
//! Who sent a message, the transport has seen to by its certificate. Here it is asked whether raft sends such a message at
//! all (its shape, which the message alone tells), and whether it can have sent it to this server (its fit to this raft's
//! term, leader and log). What raft ignores anyway, because of its term, need not fit.

use raft::eraftpb::{Message, MessageType};
use raft::{INVALID_ID, INVALID_INDEX, Raft, StateRole, Storage};

use super::loss::LostLog;
use super::membership::{self, UnreadableEntry};

/// Highest term and index that is believed; what is above can only be an attempt to make a sum overflow.
pub(super) const MAX_NUMBER: u64 = u64::MAX / 2;
/// A term this far ahead of ours can't be the fruit of elections: one a millisecond for a year.
const MAX_TERM_LEAP: u64 = 1 << 35;
/// Most entries of a message: more than fit in the largest one when each is as small as one can be.
const MAX_ENTRIES: usize = 131_072;
/// Most servers that a snapshot names.
const MAX_SERVERS: usize = 4096;
/// Longest context, in bytes; raft's own, and that of a read, have at most some tens.
const MAX_CONTEXT: usize = 1024;

/// Why a message from another server was dropped.
#[derive(Debug, thiserror::Error)]
pub enum RefusedMessage {
    #[error("dropped a message of type {kind} from server {from}: servers do not send it to each other")]
    Kind { from: u64, kind: i32 },
    #[error("dropped a {kind:?} from server {from}: {reason}")]
    Malformed { from: u64, kind: MessageType, reason: &'static str },
    #[error("dropped a {kind:?} from server {from}: {reason}")]
    Unfit { from: u64, kind: MessageType, reason: &'static str },
    #[error(transparent)]
    LostLog(#[from] LostLog),
    #[error("dropped a message from server {from}: it carries an entry that this agent cannot read")]
    Entry {
        from: u64,
        #[source]
        source: UnreadableEntry,
    },
    #[error("dropped a message from server {from}")]
    Step {
        from: u64,
        #[source]
        source: raft::Error,
    },
}

impl RefusedMessage {
    /// Whether an honest server may have sent it, before this one was started again, lost its lead, was sent more entries,
    /// or followed somebody else for a while: what it was about is asked for again, or was given up.
    pub fn may_be_late(&self) -> bool {
        use MessageType as T;
        match self {
            Self::Step { .. } => true,
            Self::Unfit { kind, .. } => matches!(
                kind,
                T::MsgAppendResponse
                    | T::MsgReadIndex
                    | T::MsgReadIndexResp
                    | T::MsgRequestPreVoteResponse
                    | T::MsgRequestVoteResponse
                    | T::MsgTimeoutNow
            ),
            Self::Kind { .. } | Self::Malformed { .. } | Self::LostLog(_) | Self::Entry { .. } => false,
        }
    }
}

/// Nothing, or what is wrong.
type Verdict = Result<(), &'static str>;

/// Whether raft can take the message without harm.
pub(super) fn admit<S: Storage>(message: &Message, raft: &Raft<S>) -> Result<(), RefusedMessage> {
    let (from, kind) = (message.from, kind(message)?);
    shape(kind, message).map_err(|reason| RefusedMessage::Malformed { from, kind, reason })?;
    let fetched = check(kind != MessageType::MsgSnapshot, "its snapshot was not fetched");
    let fits = fetched.and_then(|()| fit(kind, message, raft));
    fits.map_err(|reason| RefusedMessage::Unfit { from, kind, reason })?;
    for entry in &message.entries {
        membership::of_entry(entry).map_err(|source| RefusedMessage::Entry { from, source })?;
    }
    Ok(())
}

/// Whether raft can take the announcement of a snapshot without harm.
pub(super) fn admit_snapshot<S: Storage>(message: &Message, raft: &Raft<S>) -> Result<(), RefusedMessage> {
    let (from, kind) = (message.from, kind(message)?);
    let announces = check(kind == MessageType::MsgSnapshot, "it announces no snapshot");
    let shaped = announces.and_then(|()| shape(kind, message));
    shaped.map_err(|reason| RefusedMessage::Malformed { from, kind, reason })?;
    fit(kind, message, raft).map_err(|reason| RefusedMessage::Unfit { from, kind, reason })
}

fn check(holds: bool, reason: &'static str) -> Verdict {
    if holds { Ok(()) } else { Err(reason) }
}

/// The message's type, if it is one that servers send to each other.
fn kind(message: &Message) -> Result<MessageType, RefusedMessage> {
    use MessageType as T;
    // Not `get_msg_type`: it panics on a number that it doesn't know.
    match MessageType::from_i32(message.msg_type) {
        None
        | Some(
            T::MsgHup
            | T::MsgBeat
            | T::MsgPropose
            | T::MsgUnreachable
            | T::MsgSnapStatus
            | T::MsgCheckQuorum
            | T::MsgTransferLeader,
        ) => Err(RefusedMessage::Kind { from: message.from, kind: message.msg_type }),
        Some(kind) => Ok(kind),
    }
}

/// Whether raft makes such messages at all, for whomever.
fn shape(kind: MessageType, message: &Message) -> Verdict {
    let Message { term, log_term, index, commit, commit_term, reject_hint, .. } = *message;
    let numbers = [term, log_term, index, commit, commit_term, reject_hint];
    check(numbers.iter().all(|number| *number <= MAX_NUMBER), "a term or an index is impossibly high")?;
    check(message.context.len() <= MAX_CONTEXT, "its context is too long")?;
    check(message.request_snapshot == INVALID_INDEX, "servers do not ask each other for snapshots by raft")?;
    let announces = message.snapshot.is_some() == (kind == MessageType::MsgSnapshot);
    check(announces, "a snapshot is announced by a message of its own")?;
    // Raft takes what has no term for its own word. A forwarded read is the only one that it sends without.
    check(term > 0 || kind == MessageType::MsgReadIndex, "it has no term")?;
    check(term == 0 || kind != MessageType::MsgReadIndex, "it has a term")?;
    match kind {
        MessageType::MsgAppend => shape_of_append(message),
        MessageType::MsgReadIndex | MessageType::MsgReadIndexResp => shape_of_read(message),
        MessageType::MsgSnapshot => {
            check(message.entries.is_empty(), "it carries entries").and(shape_of_snapshot(message))
        }
        _ => check(message.entries.is_empty(), "it carries entries"),
    }
}

/// An append's entries follow its index without a gap, and their terms never fall or pass the message's.
fn shape_of_append(message: &Message) -> Verdict {
    check(message.entries.len() <= MAX_ENTRIES, "it has too many entries")?;
    check(message.log_term <= message.term, "its log term is above its term")?;
    // Raft finds term 0 at the log's beginning, and wherever there is nothing at all.
    check((message.index == 0) == (message.log_term == 0), "only what is before the first entry has term 0")?;
    let mut term = message.log_term.max(1);
    for (index, entry) in (message.index + 1..).zip(&message.entries) {
        check(entry.index == index, "its entries leave a gap")?;
        check(entry.term >= term && entry.term <= message.term, "its entries' terms are out of order")?;
        term = entry.term;
    }
    Ok(())
}

/// A read carries one entry, whose data is the read's context.
fn shape_of_read(message: &Message) -> Verdict {
    let [read] = message.entries.as_slice() else { return Err("it does not carry one read") };
    check(!read.data.is_empty(), "its read has no context")?;
    check(read.data.len() <= MAX_CONTEXT, "its read's context is too long")
}

/// The announcement of a snapshot says where it stands and who the servers were; its rows come on their own way.
fn shape_of_snapshot(message: &Message) -> Verdict {
    let snapshot = message.snapshot.as_ref().ok_or("it has no snapshot")?;
    let metadata = snapshot.metadata.as_ref().ok_or("its snapshot does not say what it is")?;
    check(snapshot.data.is_empty(), "it carries rows")?;
    let indexes = 1..=MAX_NUMBER;
    let terms = 1..=message.term;
    let stands = indexes.contains(&metadata.index) && terms.contains(&metadata.term);
    check(stands, "its snapshot's term or index is out of all bounds")?;
    let servers = metadata.conf_state.as_ref().ok_or("its snapshot names no servers")?;
    check(!servers.voters.is_empty(), "its snapshot has no voters")?;
    let joint = !servers.voters_outgoing.is_empty() || !servers.learners_next.is_empty() || servers.auto_leave;
    check(!joint, "its snapshot is between two memberships")?;
    check(servers.voters.len() + servers.learners.len() <= MAX_SERVERS, "its snapshot names too many servers")?;
    let mut ids: Vec<u64> = servers.voters.iter().chain(&servers.learners).copied().collect();
    ids.sort_unstable();
    check(ids[0] != INVALID_ID, "its snapshot names a server 0")?;
    check(ids.windows(2).all(|pair| pair[0] != pair[1]), "its snapshot names a server twice")
}

/// Whether an honest sender can have sent it to this raft, as that stands now.
fn fit<S: Storage>(kind: MessageType, message: &Message, raft: &Raft<S>) -> Verdict {
    use MessageType as T;
    check(message.to == raft.id, "it is meant for another server")?;
    check(message.from != INVALID_ID && message.from != raft.id, "it says that it comes from this server")?;
    check(message.term <= raft.term.saturating_add(MAX_TERM_LEAP), "its term is out of all bounds")?;
    let is_old = message.term < raft.term;
    let follows = |leader: u64| message.term == raft.term && raft.leader_id == leader;
    match kind {
        // No log is looked at, and this server has no part in that term any more.
        T::MsgSnapshot => {
            check(!is_old, "it is of an earlier term")?;
            // Raft would say nothing of which of the two it takes.
            check(raft.raft_log.unstable_snapshot().is_none(), "another snapshot is about to be installed")?;
        }
        T::MsgReadIndex => {
            // Raft would send it on in the name of its sender, as whom the leader's gate does not know this server.
            return check(raft.state == StateRole::Leader, "this server does not lead");
        }
        _ if is_old => return Ok(()),
        _ => {}
    }
    match kind {
        T::MsgAppend | T::MsgHeartbeat | T::MsgSnapshot => {
            let may_lead = message.term > raft.term || follows(INVALID_ID) || follows(message.from);
            check(may_lead, "another server leads its term")?;
            fits_log(kind, message, raft)
        }
        T::MsgReadIndexResp => check(follows(message.from), "its sender does not lead"),
        T::MsgTimeoutNow => {
            check(follows(message.from), "its sender does not lead")?;
            // A leader steps down for whom it knows to hold everything.
            check(is_persisted(raft), "this server is still writing, and can't lead")
        }
        T::MsgRequestVoteResponse | T::MsgRequestPreVoteResponse => {
            // Raft asks for votes once its log is on disk, and panics if it wins before.
            let stands = matches!(raft.state, StateRole::PreCandidate | StateRole::Candidate);
            check(!stands || is_persisted(raft), "this server has not asked for a vote yet")
        }
        T::MsgAppendResponse => {
            let is_known = message.index <= raft.raft_log.last_index() || message.reject;
            check(is_known || message.term != raft.term, "it acknowledges what was never sent")
        }
        _ => Ok(()),
    }
}

/// Whether a leader's message goes together with the log here: raft panics where it doesn't.
fn fits_log<S: Storage>(kind: MessageType, message: &Message, raft: &Raft<S>) -> Verdict {
    let log = &raft.raft_log;
    // What is before the first entry is known to have been committed, and by now only the store knows its term.
    let known = log.first_index().saturating_sub(1)..=log.committed;
    let agrees = |index: u64, term: u64| !known.contains(&index) || log.term(index).map_or(true, |own| own == term);
    match kind {
        MessageType::MsgAppend => {
            let entries = message.entries.iter().map(|entry| (entry.index, entry.term));
            let mut told = entries.chain([(message.index, message.log_term)]);
            check(told.all(|(index, term)| agrees(index, term)), "it contradicts what is committed here")
        }
        MessageType::MsgHeartbeat => Ok(()),
        _ => {
            let metadata = message.snapshot.as_ref().and_then(|snapshot| snapshot.metadata.as_ref());
            let metadata = metadata.expect("its shape was checked");
            let servers = metadata.conf_state.as_ref().expect("its shape was checked");
            let names_own = servers.voters.contains(&raft.id) || servers.learners.contains(&raft.id);
            check(names_own, "its snapshot does not know this server")?;
            check(agrees(metadata.index, metadata.term), "it contradicts what is committed here")
        }
    }
}

/// Whether the whole log is on disk.
pub(super) fn is_persisted<S: Storage>(raft: &Raft<S>) -> bool {
    raft.raft_log.persisted >= raft.raft_log.last_index()
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod traffic;
