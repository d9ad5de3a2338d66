//! What a peer's Raft message must look like before this node's Raft sees it.
//!
//! Raft takes messages for honest: malformed ones make it panic, or believe a stranger to lead. So a message passes
//! only if its sender is who its certificate says, it is for this node, and its shape is one that Raft itself sends.

use blixard_core::driver::wire;
use blixard_core::types::{ClusterId, NodeId};
use raft::eraftpb::{EntryType, Message, MessageType};

use super::proto::RaftFrame;
use super::{Directory, MAX_MESSAGE};

/// Highest term and index that is believed; what is above can only be an attempt to make a sum overflow.
const MAX_NUMBER: u64 = u64::MAX / 2;
/// Most messages of a frame; a link sends at most [`super::link::BATCH_MESSAGES`].
const MAX_MESSAGES: usize = 4096;
/// Most entries of a message: more than fit in Raft's 512 KiB when each is as small as one can be.
const MAX_ENTRIES: usize = 131_072;
/// Most servers that a snapshot names.
const MAX_SERVERS: usize = 4096;
/// Longest context, in bytes; Raft's own, and that of a read, have at most some tens.
const MAX_CONTEXT: usize = 1024;

/// Why a frame was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("the frame is of cluster {found:?}, and this is cluster {own}")]
    Cluster { found: String, own: ClusterId },
    #[error("the frame says that node {found} sent it, and the certificate is node {peer}'s")]
    Sender { found: u64, peer: NodeId },
    #[error("node {peer} is not in the directory of members of this node (yet)")]
    Stranger { peer: NodeId },
    #[error("node {own}, which was called, is not in its own directory of members (yet)")]
    NotReady { own: NodeId },
    #[error("the frame has {count} messages, and at most {MAX_MESSAGES} are taken")]
    TooMany { count: usize },
    #[error("a Raft message has {size} bytes, and at most {MAX_MESSAGE} are taken")]
    TooLarge { size: usize },
    #[error("a Raft message cannot be decoded")]
    Undecodable,
    #[error("a Raft message says that it is from {found}, and node {peer} is {expected}")]
    From { found: u64, peer: NodeId, expected: u64 },
    #[error("a Raft message is for {found}, and this node is {own}")]
    To { found: u64, own: u64 },
    #[error("a Raft message is of type {kind}, which is not sent between nodes")]
    Kind { kind: i32 },
    #[error("a {kind:?} is malformed: {what}")]
    Malformed { kind: MessageType, what: &'static str },
}

/// The messages of a frame that `peer` (by its certificate) sent to `own`, all of them fit for Raft.
///
/// # Errors
/// The first thing that is wrong; then none of the frame's messages may be used.
pub fn open(
    frame: &RaftFrame,
    cluster: ClusterId,
    own: NodeId,
    peer: NodeId,
    directory: &Directory,
) -> Result<Vec<Message>, Refused> {
    if frame.cluster != cluster.to_string() {
        return Err(Refused::Cluster { found: frame.cluster.chars().take(64).collect(), own: cluster });
    }
    if frame.sender != peer.0 {
        return Err(Refused::Sender { found: frame.sender, peer });
    }
    if frame.messages.len() > MAX_MESSAGES {
        return Err(Refused::TooMany { count: frame.messages.len() });
    }
    let mut messages = Vec::with_capacity(frame.messages.len());
    for bytes in &frame.messages {
        if bytes.len() > MAX_MESSAGE {
            return Err(Refused::TooLarge { size: bytes.len() });
        }
        let message = wire::decode_message(bytes).map_err(|_| Refused::Undecodable)?;
        check(&message, own, peer, directory)?;
        messages.push(message);
    }
    Ok(messages)
}

/// Whether one message is from `peer`, for `own`, and of a shape that Raft sends.
///
/// # Errors
/// The first thing that is wrong.
pub fn check(message: &Message, own: NodeId, peer: NodeId, directory: &Directory) -> Result<(), Refused> {
    let sender = directory.0.get(&peer).ok_or(Refused::Stranger { peer })?;
    let receiver = directory.0.get(&own).ok_or(Refused::NotReady { own })?;
    if message.from != sender.raft.0 {
        return Err(Refused::From { found: message.from, peer, expected: sender.raft.0 });
    }
    if message.to != receiver.raft.0 {
        return Err(Refused::To { found: message.to, own: receiver.raft.0 });
    }
    // Not `get_msg_type`: it panics on a number that it doesn't know.
    let kind = MessageType::from_i32(message.msg_type).ok_or(Refused::Kind { kind: message.msg_type })?;
    match check_shape(kind, message)? {
        None => Ok(()),
        Some(what) => Err(Refused::Malformed { kind, what }),
    }
}

/// What is malformed in a message of this kind, if anything.
fn check_shape(kind: MessageType, message: &Message) -> Result<Option<&'static str>, Refused> {
    use MessageType as T;
    let numbers =
        [message.term, message.log_term, message.index, message.commit, message.commit_term, message.reject_hint];
    if numbers.iter().any(|number| *number > MAX_NUMBER) {
        return Ok(Some("a term or an index is impossibly high"));
    }
    if message.context.len() > MAX_CONTEXT {
        return Ok(Some("its context is too long"));
    }
    if message.request_snapshot != 0 {
        return Ok(Some("nodes do not ask each other for snapshots by Raft"));
    }
    if message.snapshot.is_some() != (kind == T::MsgSnapshot) {
        return Ok(Some("a snapshot is announced by a message of its own"));
    }
    let no_term = if message.term == 0 { Some("it has no term") } else { None };
    let entries = if message.entries.is_empty() { None } else { Some("it carries entries") };
    Ok(match kind {
        T::MsgAppend => no_term.or_else(|| check_entries(message)),
        // Forwarded by a follower as if it were local, so without a term.
        T::MsgReadIndex if message.term != 0 => Some("it has a term"),
        T::MsgReadIndex => check_read(message),
        T::MsgReadIndexResp => no_term.or_else(|| check_read(message)),
        T::MsgAppendResponse
        | T::MsgRequestVote
        | T::MsgRequestVoteResponse
        | T::MsgRequestPreVote
        | T::MsgRequestPreVoteResponse
        | T::MsgHeartbeat
        | T::MsgHeartbeatResponse
        | T::MsgTransferLeader
        | T::MsgTimeoutNow => no_term.or(entries),
        T::MsgSnapshot => no_term.or(entries).or_else(|| check_snapshot(message)),
        T::MsgHup | T::MsgBeat | T::MsgPropose | T::MsgUnreachable | T::MsgSnapStatus | T::MsgCheckQuorum => {
            return Err(Refused::Kind { kind: message.msg_type });
        }
    })
}

/// An append's entries follow its index without a gap, and their terms never fall or pass the message's.
fn check_entries(message: &Message) -> Option<&'static str> {
    if message.entries.len() > MAX_ENTRIES {
        return Some("it has too many entries");
    }
    if message.log_term > message.term {
        return Some("its log term is above its term");
    }
    let mut term = message.log_term.max(1);
    for (index, entry) in (message.index + 1..).zip(&message.entries) {
        if entry.index != index {
            return Some("its entries leave a gap");
        }
        if entry.term < term || entry.term > message.term {
            return Some("its entries' terms are out of order");
        }
        if EntryType::from_i32(entry.entry_type).is_none() {
            return Some("an entry is of an unknown type");
        }
        term = entry.term;
    }
    None
}

/// The announcement of a snapshot says where it stands and who the servers were; its rows come on their own way.
fn check_snapshot(message: &Message) -> Option<&'static str> {
    let snapshot = message.snapshot.as_ref()?;
    let Some(metadata) = &snapshot.metadata else { return Some("its snapshot does not say what it is") };
    if !snapshot.data.is_empty() {
        return Some("it carries rows");
    }
    if metadata.index == 0 || metadata.index > MAX_NUMBER || metadata.term == 0 || metadata.term > message.term {
        return Some("its snapshot's term or index is out of all bounds");
    }
    let servers = metadata.conf_state.as_ref().map_or(0, |servers| servers.voters.len() + servers.learners.len());
    if servers == 0 || servers > MAX_SERVERS { Some("its snapshot names no servers, or too many") } else { None }
}

/// A read carries one entry, whose data is the read's context.
fn check_read(message: &Message) -> Option<&'static str> {
    match message.entries.as_slice() {
        [entry] if entry.data.is_empty() => Some("its read has no context"),
        [entry] if entry.data.len() > MAX_CONTEXT => Some("its read's context is too long"),
        [entry] if EntryType::from_i32(entry.entry_type).is_none() => Some("an entry is of an unknown type"),
        [_] => None,
        _ => Some("it does not carry one read"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use blixard_core::types::RaftId;
    use proptest::prelude::*;
    use raft::eraftpb::{ConfState, Entry, Snapshot, SnapshotMetadata};

    use super::super::Member;
    use super::*;

    const OWN: NodeId = NodeId(1);
    const PEER: NodeId = NodeId(2);

    fn directory() -> Directory {
        let member = |n: u64| Member {
            name: format!("node{n}").parse().unwrap(),
            address: format!("127.0.0.1:{n}").parse().unwrap(),
            raft: RaftId(10 + n),
        };
        Directory(BTreeMap::from([(OWN, member(1)), (PEER, member(2)), (NodeId(3), member(3))]))
    }

    fn message(kind: MessageType) -> Message {
        Message { msg_type: kind as i32, from: 12, to: 11, term: 5, ..Message::default() }
    }

    fn entry(index: u64, term: u64) -> Entry {
        Entry { index, term, data: vec![1], ..Entry::default() }
    }

    fn append() -> Message {
        let entries = vec![entry(8, 4), entry(9, 5)];
        Message { index: 7, log_term: 4, commit: 9, entries, ..message(MessageType::MsgAppend) }
    }

    fn read() -> Message {
        Message { term: 0, entries: vec![entry(0, 0)], ..message(MessageType::MsgReadIndex) }
    }

    fn verdict(message: &Message) -> Result<(), Refused> {
        check(message, OWN, PEER, &directory())
    }

    fn malformed(message: &Message) -> &'static str {
        match verdict(message) {
            Err(Refused::Malformed { what, .. }) => what,
            other => panic!("{other:?} for {message:?}"),
        }
    }

    #[test]
    fn what_raft_sends_passes() {
        verdict(&append()).unwrap();
        verdict(&Message { entries: vec![], ..append() }).unwrap();
        verdict(&read()).unwrap();
        verdict(&Message { term: 5, msg_type: MessageType::MsgReadIndexResp as i32, ..read() }).unwrap();
        for kind in [
            MessageType::MsgAppendResponse,
            MessageType::MsgRequestVote,
            MessageType::MsgRequestVoteResponse,
            MessageType::MsgRequestPreVote,
            MessageType::MsgRequestPreVoteResponse,
            MessageType::MsgHeartbeat,
            MessageType::MsgHeartbeatResponse,
            MessageType::MsgTransferLeader,
            MessageType::MsgTimeoutNow,
        ] {
            verdict(&message(kind)).unwrap();
        }
    }

    #[test]
    fn what_is_local_to_a_node_or_unknown_is_refused() {
        for kind in [
            MessageType::MsgHup as i32,
            MessageType::MsgBeat as i32,
            MessageType::MsgPropose as i32,
            MessageType::MsgUnreachable as i32,
            MessageType::MsgSnapStatus as i32,
            MessageType::MsgCheckQuorum as i32,
            -1,
            99,
        ] {
            let message = Message { msg_type: kind, ..message(MessageType::MsgHeartbeat) };
            assert_eq!(verdict(&message), Err(Refused::Kind { kind }));
        }
    }

    #[test]
    fn a_message_is_from_the_node_in_the_certificate_and_for_this_one() {
        let from_other = Message { from: 13, ..append() };
        assert!(matches!(verdict(&from_other), Err(Refused::From { found: 13, .. })));
        assert!(matches!(verdict(&Message { from: 0, ..append() }), Err(Refused::From { .. })));
        assert!(matches!(verdict(&Message { to: 13, ..append() }), Err(Refused::To { found: 13, own: 11 })));
        assert_eq!(check(&append(), OWN, NodeId(9), &directory()), Err(Refused::Stranger { peer: NodeId(9) }));
        let mut without = directory();
        without.0.remove(&OWN);
        assert_eq!(check(&append(), OWN, PEER, &without), Err(Refused::NotReady { own: OWN }));
    }

    #[test]
    fn an_append_with_a_gap_or_impossible_terms_is_refused() {
        let with = |entries: Vec<Entry>| Message { entries, ..append() };
        assert_eq!(malformed(&with(vec![entry(9, 5)])), "its entries leave a gap");
        assert_eq!(malformed(&with(vec![entry(8, 5), entry(10, 5)])), "its entries leave a gap");
        assert_eq!(malformed(&with(vec![entry(8, 5), entry(8, 5)])), "its entries leave a gap");
        let out_of_order = "its entries' terms are out of order";
        assert_eq!(malformed(&with(vec![entry(8, 5), entry(9, 4)])), out_of_order);
        assert_eq!(malformed(&with(vec![entry(8, 6)])), out_of_order);
        assert_eq!(malformed(&with(vec![entry(8, 3)])), out_of_order);
        assert_eq!(malformed(&Message { log_term: 0, ..with(vec![entry(8, 0)]) }), out_of_order);
        let unknown = Entry { entry_type: 7, ..entry(8, 5) };
        assert_eq!(malformed(&with(vec![unknown])), "an entry is of an unknown type");
        assert_eq!(malformed(&Message { log_term: 6, ..append() }), "its log term is above its term");
        let many = (0..=MAX_ENTRIES as u64).map(|n| entry(8 + n, 5)).collect();
        assert_eq!(malformed(&with(many)), "it has too many entries");
    }

    #[test]
    fn numbers_that_would_overflow_are_refused() {
        for number in [MAX_NUMBER + 1, u64::MAX] {
            for message in [
                Message { term: number, ..append() },
                Message { index: number, ..append() },
                Message { commit: number, ..append() },
                Message { log_term: number, ..append() },
                Message { commit: number, ..message(MessageType::MsgHeartbeat) },
                Message { commit_term: number, ..message(MessageType::MsgRequestVote) },
                Message { reject_hint: number, ..message(MessageType::MsgAppendResponse) },
                Message { index: number, ..message(MessageType::MsgAppendResponse) },
            ] {
                assert_eq!(malformed(&message), "a term or an index is impossibly high");
            }
        }
    }

    #[test]
    fn a_message_without_a_term_is_refused_unless_it_is_a_read() {
        for kind in [MessageType::MsgHeartbeat, MessageType::MsgAppend, MessageType::MsgRequestVote] {
            assert_eq!(malformed(&Message { term: 0, ..message(kind) }), "it has no term");
        }
        assert_eq!(malformed(&Message { term: 5, ..read() }), "it has a term");
    }

    #[test]
    fn a_read_carries_exactly_one_context() {
        for kind in [MessageType::MsgReadIndex, MessageType::MsgReadIndexResp] {
            let term = if kind == MessageType::MsgReadIndex { 0 } else { 5 };
            let with = |entries| Message { term, msg_type: kind as i32, entries, ..read() };
            assert_eq!(malformed(&with(vec![])), "it does not carry one read");
            assert_eq!(malformed(&with(vec![entry(0, 0), entry(0, 0)])), "it does not carry one read");
            assert_eq!(malformed(&with(vec![Entry::default()])), "its read has no context");
            let long = Entry { data: vec![0; MAX_CONTEXT + 1], ..Entry::default() };
            assert_eq!(malformed(&with(vec![long])), "its read's context is too long");
        }
    }

    #[test]
    fn snapshots_stray_entries_and_long_contexts_are_refused() {
        let of_its_own = "a snapshot is announced by a message of its own";
        assert_eq!(malformed(&Message { snapshot: Some(Snapshot::default()), ..append() }), of_its_own);
        assert_eq!(malformed(&message(MessageType::MsgSnapshot)), of_its_own);
        let announced = |change: fn(&mut Snapshot)| {
            let conf_state = Some(ConfState { voters: vec![11], ..ConfState::default() });
            let metadata = Some(SnapshotMetadata { conf_state, index: 3, term: 1 });
            let mut snapshot = Snapshot { data: Vec::new(), metadata };
            change(&mut snapshot);
            Message { snapshot: Some(snapshot), ..message(MessageType::MsgSnapshot) }
        };
        assert_eq!(verdict(&announced(|_| ())), Ok(()));
        assert_eq!(malformed(&announced(|snapshot| snapshot.data.push(1))), "it carries rows");
        assert_eq!(malformed(&announced(|snapshot| snapshot.metadata = None)), "its snapshot does not say what it is");
        let changes: [fn(&mut SnapshotMetadata); 2] =
            [|metadata| metadata.index = 0, |metadata| metadata.term = 1 << 40];
        for change in changes {
            let mut message = announced(|_| ());
            change(message.snapshot.as_mut().unwrap().metadata.as_mut().unwrap());
            assert_eq!(malformed(&message), "its snapshot's term or index is out of all bounds");
        }
        let nobody = announced(|snapshot| snapshot.metadata.as_mut().unwrap().conf_state = None);
        assert_eq!(malformed(&nobody), "its snapshot names no servers, or too many");
        let asked = Message { request_snapshot: 1, ..message(MessageType::MsgAppendResponse) };
        assert_eq!(malformed(&asked), "nodes do not ask each other for snapshots by Raft");
        let stray = Message { entries: vec![entry(1, 1)], ..message(MessageType::MsgHeartbeat) };
        assert_eq!(malformed(&stray), "it carries entries");
        let long = Message { context: vec![0; MAX_CONTEXT + 1], ..message(MessageType::MsgHeartbeat) };
        assert_eq!(malformed(&long), "its context is too long");
    }

    #[test]
    fn a_frame_of_another_cluster_or_sender_is_refused_whole() {
        let cluster = ClusterId::from_bytes([1; 16]);
        let frame = |messages| RaftFrame { cluster: cluster.to_string(), sender: PEER.0, messages };
        let good = wire::encode_message(&append());
        let opened = |frame: &RaftFrame| open(frame, cluster, OWN, PEER, &directory());
        assert_eq!(opened(&frame(vec![good.clone(), good.clone()])).unwrap(), vec![append(), append()]);
        let other = RaftFrame { cluster: "x".repeat(1000), ..frame(vec![good.clone()]) };
        assert!(matches!(opened(&other), Err(Refused::Cluster { .. })));
        let other = RaftFrame { sender: 3, ..frame(vec![good.clone()]) };
        assert_eq!(opened(&other), Err(Refused::Sender { found: 3, peer: PEER }));
        assert_eq!(opened(&frame(vec![good.clone(), vec![0xff; 9]])), Err(Refused::Undecodable));
        assert!(matches!(opened(&frame(vec![vec![]; MAX_MESSAGES + 1])), Err(Refused::TooMany { .. })));
        assert!(matches!(opened(&frame(vec![vec![0; MAX_MESSAGE + 1]])), Err(Refused::TooLarge { .. })));
        let bad = wire::encode_message(&Message { from: 13, ..append() });
        assert!(matches!(opened(&frame(vec![good, bad])), Err(Refused::From { .. })));
    }

    proptest! {
        #[test]
        fn any_bytes_at_all_are_judged_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let cluster = ClusterId::from_bytes([1; 16]);
            let frame = RaftFrame { cluster: cluster.to_string(), sender: PEER.0, messages: vec![bytes] };
            let _ = open(&frame, cluster, OWN, PEER, &directory());
        }

        #[test]
        fn any_numbers_at_all_are_judged_without_a_panic(
            kind in -2..25i32, numbers in proptest::array::uniform6(any::<u64>()), index in any::<u64>(), term in any::<u64>()
        ) {
            let [term_, log_term, at, commit, commit_term, reject_hint] = numbers;
            let message = Message {
                msg_type: kind, from: 12, to: 11, term: term_, log_term, index: at, commit, commit_term, reject_hint,
                entries: vec![entry(index, term)], ..Message::default()
            };
            let _ = verdict(&message);
        }
    }
}
