//! What may reach raft's `step`: raft panics on some messages, and believes others that it shouldn't.

use raft::eraftpb::{Message, MessageType};
use raft::{Raft, Storage};

use super::membership::{self, UnreadableEntry};

/// A term this far ahead of ours can't be the fruit of elections: one a millisecond for a year.
const MAX_TERM_LEAP: u64 = 1 << 35;

/// Why a message from another server was dropped.
#[derive(Debug, thiserror::Error)]
pub enum RefusedMessage {
    #[error("dropped a message from server {from}: {reason}")]
    Shape { from: u64, reason: &'static str },
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

/// Whether raft can take the message without harm.
pub(super) fn admit<S: Storage>(message: &Message, raft: &Raft<S>) -> Result<(), RefusedMessage> {
    shape(message, raft).map_err(|reason| RefusedMessage::Shape { from: message.from, reason })?;
    for entry in &message.entries {
        membership::of_entry(entry).map_err(|source| RefusedMessage::Entry { from: message.from, source })?;
    }
    Ok(())
}

/// Whether raft can take the announcement of a snapshot without harm.
pub(super) fn admit_snapshot<S: Storage>(message: &Message, raft: &Raft<S>) -> Result<(), RefusedMessage> {
    snapshot_shape(message, raft).map_err(|reason| RefusedMessage::Shape { from: message.from, reason })
}

fn snapshot_shape<S: Storage>(message: &Message, raft: &Raft<S>) -> Result<(), &'static str> {
    let check = |holds: bool, reason: &'static str| if holds { Ok(()) } else { Err(reason) };
    check(message.msg_type == i32::from(MessageType::MsgSnapshot), "it announces no snapshot")?;
    addresses(message, raft)?;
    check(message.term > 0 && message.entries.is_empty(), "it has no term, or entries")?;
    let snapshot = message.snapshot.as_ref().ok_or("it has no snapshot")?;
    let metadata = snapshot.metadata.as_ref().ok_or("its snapshot says not what it is")?;
    let indexes = metadata.index > 0 && metadata.index < u64::MAX - (1 << 32);
    check(indexes && snapshot.data.is_empty(), "its index is out of all bounds, or it carries rows")?;
    check(metadata.term > 0 && metadata.term <= message.term, "its snapshot is of a later term")?;
    let servers = metadata.conf_state.as_ref().ok_or("its snapshot names no servers")?;
    check(!servers.voters.is_empty() && !servers.voters.contains(&0), "its snapshot has no voters")?;
    let joint = !servers.voters_outgoing.is_empty() || !servers.learners_next.is_empty() || servers.auto_leave;
    check(!joint, "its snapshot is between two memberships")?;
    let mut ids: Vec<u64> = servers.voters.iter().chain(&servers.learners).copied().collect();
    check(ids.contains(&raft.id), "its snapshot does not know this server")?;
    ids.sort_unstable();
    check(ids.windows(2).all(|pair| pair[0] != pair[1]), "its snapshot names a server twice")?;
    let log = &raft.raft_log;
    let contradicts = metadata.index <= log.committed
        && metadata.index >= log.first_index()
        && log.term(metadata.index).is_ok_and(|term| term != metadata.term);
    check(!contradicts, "it contradicts what is committed here")
}

fn addresses<S: Storage>(message: &Message, raft: &Raft<S>) -> Result<(), &'static str> {
    let check = |holds: bool, reason: &'static str| if holds { Ok(()) } else { Err(reason) };
    check(message.to == raft.id, "it is meant for another server")?;
    check(message.from != raft::INVALID_ID && message.from != raft.id, "it says that it comes from this server")?;
    check(message.term <= raft.term.saturating_add(MAX_TERM_LEAP), "its term is out of all bounds")?;
    check(message.request_snapshot == raft::INVALID_INDEX, "it asks for a snapshot")
}

fn shape<S: Storage>(message: &Message, raft: &Raft<S>) -> Result<(), &'static str> {
    let log = &raft.raft_log;
    let check = |holds: bool, reason: &'static str| if holds { Ok(()) } else { Err(reason) };
    addresses(message, raft)?;
    let kind = MessageType::from_i32(message.msg_type).ok_or("its type is unknown")?;
    // Forwarded reads are the only ones that raft sends without a term.
    check(message.term > 0 || kind == MessageType::MsgReadIndex, "it has no term")?;
    match kind {
        MessageType::MsgAppend => {
            check(message.index < u64::MAX - (1 << 32), "its index is out of all bounds")?;
            let indexes = (message.index + 1..).zip(&message.entries);
            let terms = message.entries.iter().map(|entry| entry.term);
            check(indexes.clone().all(|(index, entry)| entry.index == index), "its entries have a gap")?;
            check(terms.clone().is_sorted(), "the terms of its entries go down")?;
            check(terms.clone().all(|term| term > 0 && term <= message.term), "it has an entry of a later term")?;
            let committed = indexes.take_while(|(index, _)| *index <= log.committed);
            let agrees = |entry: &raft::eraftpb::Entry| log.term(entry.index).map_or(true, |term| term == entry.term);
            let mut checked = committed.filter(|(index, _)| *index >= log.first_index());
            check(checked.all(|(_, entry)| agrees(entry)), "it contradicts what is committed here")
        }
        MessageType::MsgHeartbeat => check(
            message.commit <= log.last_index(),
            "it commits what this server does not hold; was its disk replaced?",
        ),
        MessageType::MsgAppendResponse => {
            let known = message.index <= log.last_index() || message.reject;
            check(known || message.term != raft.term, "it acknowledges what was never sent")
        }
        MessageType::MsgReadIndex | MessageType::MsgReadIndexResp => {
            check(message.entries.len() == 1, "a read carries exactly one context")
        }
        MessageType::MsgRequestVote
        | MessageType::MsgRequestVoteResponse
        | MessageType::MsgRequestPreVote
        | MessageType::MsgRequestPreVoteResponse
        | MessageType::MsgHeartbeatResponse
        | MessageType::MsgTimeoutNow => Ok(()),
        MessageType::MsgHup
        | MessageType::MsgBeat
        | MessageType::MsgPropose
        | MessageType::MsgSnapshot
        | MessageType::MsgUnreachable
        | MessageType::MsgSnapStatus
        | MessageType::MsgCheckQuorum
        | MessageType::MsgTransferLeader => Err("servers do not send this type to each other"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::{Driver, Recovered, Settings};
    use crate::types::RaftId;
    use raft::eraftpb::{Entry, EntryType};

    fn follower() -> Driver {
        Driver::new(Settings::new(RaftId(2), 0), Recovered::blank(RaftId(1))).unwrap()
    }

    fn message(kind: MessageType) -> Message {
        Message { msg_type: kind.into(), from: 1, to: 2, term: 1, ..Message::default() }
    }

    fn entry(index: u64) -> Entry {
        Entry { index, term: 1, ..Entry::default() }
    }

    #[test]
    fn messages_that_would_stop_raft_are_dropped() {
        let append = |entries| Message { entries, ..message(MessageType::MsgAppend) };
        let unknown_entry = Entry { entry_type: 9, ..entry(1) };
        let joint = Entry { entry_type: EntryType::EntryConfChangeV2.into(), ..entry(1) };
        for bad in [
            message(MessageType::MsgPropose),
            message(MessageType::MsgSnapshot),
            message(MessageType::MsgHup),
            message(MessageType::MsgReadIndex),
            Message { msg_type: 77, ..message(MessageType::MsgAppend) },
            Message { term: u64::MAX, ..message(MessageType::MsgHeartbeat) },
            Message { term: 0, ..message(MessageType::MsgHeartbeat) },
            Message { commit: 1, ..message(MessageType::MsgHeartbeat) },
            Message { to: 3, ..message(MessageType::MsgHeartbeat) },
            Message { from: 2, ..message(MessageType::MsgHeartbeat) },
            Message { from: 0, ..message(MessageType::MsgHeartbeat) },
            Message { index: u64::MAX, ..append(vec![entry(1)]) },
            append(vec![entry(2)]),
            append(vec![entry(1), entry(3)]),
            append(vec![Entry { term: 2, ..entry(1) }]),
            append(vec![Entry { term: 0, ..entry(1) }]),
            append(vec![unknown_entry]),
            append(vec![joint]),
        ] {
            let mut driver = follower();
            assert!(driver.step(bad.clone()).is_err(), "{bad:?}");
            assert!(driver.turn().is_none(), "{bad:?}");
        }
    }

    #[test]
    fn an_append_that_contradicts_a_committed_entry_is_dropped() {
        let mut driver = follower();
        let first = Message { entries: vec![entry(1)], commit: 1, ..message(MessageType::MsgAppend) };
        driver.step(first).unwrap();
        assert_eq!(driver.status().commit, 1);
        let other =
            Message { term: 2, entries: vec![Entry { term: 2, ..entry(1) }], ..message(MessageType::MsgAppend) };
        let error = driver.step(other).unwrap_err().to_string();
        assert!(error.contains("contradicts"), "{error}");
        assert_eq!(driver.status().term, 1);
    }
}
