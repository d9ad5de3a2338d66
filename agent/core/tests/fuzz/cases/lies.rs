//! Messages as a member could send them that is damaged, or means harm: nearly right, and wrong somewhere.

use blixard_core::driver::{Message, Status, wire};
use raft::eraftpb::{ConfChange, ConfChangeType, ConfState, Entry, EntryType, MessageType, Snapshot, SnapshotMetadata};
use raft_prost::Message as _;

use super::bytes::Bytes;
use super::disk::Disk;

pub const OWN: u64 = 1;
/// The servers that there are, and one that nobody knows.
const SERVERS: [u64; 6] = [2, 3, 2, 3, 4, 9];
const KINDS: [MessageType; 17] = [
    MessageType::MsgSnapshot,
    MessageType::MsgAppend,
    MessageType::MsgAppend,
    MessageType::MsgAppend,
    MessageType::MsgHeartbeat,
    MessageType::MsgAppendResponse,
    MessageType::MsgAppendResponse,
    MessageType::MsgHeartbeatResponse,
    MessageType::MsgRequestVote,
    MessageType::MsgRequestVoteResponse,
    MessageType::MsgRequestPreVote,
    MessageType::MsgRequestPreVoteResponse,
    MessageType::MsgReadIndex,
    MessageType::MsgReadIndexResp,
    MessageType::MsgSnapshot,
    MessageType::MsgTimeoutNow,
    MessageType::MsgTransferLeader,
];

/// What a liar knows of the server that it lies to.
pub struct View<'a> {
    pub status: &'a Status,
    pub disk: &'a Disk,
    /// The contexts of reads that the server has sent around.
    pub contexts: &'a [Vec<u8>],
}

/// A message that arrives, if its bytes are still one.
pub fn message(bytes: &mut Bytes, view: &View) -> Option<Message> {
    if bytes.happens(8) {
        return wire::decode_message(bytes.take(255)).ok();
    }
    let mut message = likely(bytes, view);
    if bytes.happens(128) {
        for _ in 0..=bytes.below(2) {
            twist(&mut message, bytes, view);
        }
    }
    let mut encoded = wire::encode_message(&message);
    if bytes.happens(16) {
        bytes.damage(&mut encoded);
    }
    wire::decode_message(&encoded).ok()
}

/// A message as an honest server might send it.
fn likely(bytes: &mut Bytes, view: &View) -> Message {
    let Status { term, commit, last_index, .. } = *view.status;
    let kind = bytes.one_of(&KINDS);
    let ahead = u64::from(bytes.happens(64));
    let mut message = Message {
        msg_type: kind.into(),
        from: bytes.one_of(&SERVERS),
        to: OWN,
        term: term + ahead,
        ..Message::default()
    };
    match kind {
        MessageType::MsgAppend => {
            let behind = u64::try_from(bytes.below(4)).expect("less than four");
            message.index = view.disk.log.last().saturating_sub(behind);
            message.log_term = view.disk.log.term_at(message.index).unwrap_or(term);
            message.commit = bytes.one_of(&[commit, last_index, last_index + 2]);
            let count = bytes.below(4);
            message.entries =
                (message.index + 1..).take(count).map(|index| entry(bytes, index, message.term)).collect();
        }
        // The last is a lie about what this server has acknowledged.
        MessageType::MsgHeartbeat => message.commit = bytes.one_of(&[0, commit, last_index, last_index + 1]),
        MessageType::MsgHeartbeatResponse => {
            message.context = view.contexts.last().cloned().unwrap_or_default();
            message.commit = commit;
        }
        MessageType::MsgAppendResponse => {
            message.index = bytes.one_of(&[last_index, view.disk.log.last(), commit, last_index.saturating_sub(1), 0]);
            message.reject = bytes.happens(64);
            message.reject_hint = bytes.one_of(&[0, commit, last_index]);
            message.log_term = bytes.one_of(&[0, term]);
        }
        MessageType::MsgRequestVote | MessageType::MsgRequestPreVote => {
            (message.index, message.log_term) = (last_index, term);
            (message.commit, message.commit_term) = (bytes.one_of(&[commit, last_index]), term);
            message.context = bytes.one_of(&[Vec::new(), b"CampaignTransfer".to_vec()]);
        }
        MessageType::MsgRequestVoteResponse | MessageType::MsgRequestPreVoteResponse => {
            message.reject = bytes.happens(32);
            (message.commit, message.commit_term) = (bytes.one_of(&[0, commit, last_index]), term);
        }
        MessageType::MsgReadIndex | MessageType::MsgReadIndexResp => {
            message.term = if kind == MessageType::MsgReadIndex { 0 } else { term };
            message.index = bytes.one_of(&[commit, last_index]);
            let data = view.contexts.last().cloned().unwrap_or(vec![7; 24]);
            message.entries = vec![Entry { data, ..Entry::default() }];
        }
        MessageType::MsgSnapshot => message.snapshot = Some(snapshot(bytes, view.status)),
        _ => {}
    }
    message
}

fn entry(bytes: &mut Bytes, index: u64, term: u64) -> Entry {
    if !bytes.happens(48) {
        return Entry { index, term, data: vec![3; bytes.below(60)], ..Entry::default() };
    }
    let kinds = [ConfChangeType::AddNode, ConfChangeType::AddLearnerNode, ConfChangeType::RemoveNode];
    let node_id = bytes.one_of(&[OWN, 2, 3, 4, 5]);
    let change = ConfChange { change_type: bytes.one_of(&kinds).into(), node_id, ..ConfChange::default() };
    Entry {
        index,
        term,
        entry_type: EntryType::EntryConfChange.into(),
        data: change.encode_to_vec(),
        ..Entry::default()
    }
}

fn snapshot(bytes: &mut Bytes, status: &Status) -> Snapshot {
    let learners = bytes.one_of(&[vec![], vec![], vec![4], vec![4, 5], vec![OWN], vec![2], vec![0]]);
    let voters = bytes.one_of(&[vec![OWN, 2, 3], vec![OWN, 2, 3], vec![2, 3], vec![OWN], vec![2, OWN]]);
    let conf_state = Some(ConfState { voters, learners, ..ConfState::default() });
    let index =
        bytes.one_of(&[status.last_index + 5, status.last_index + 1, status.last_index, status.commit, status.applied]);
    Snapshot { data: Vec::new(), metadata: Some(SnapshotMetadata { conf_state, index, term: status.term }) }
}

/// Makes one thing of the message something else.
fn twist(message: &mut Message, bytes: &mut Bytes, view: &View) {
    let number = strange(bytes, view.status);
    match bytes.below(16) {
        0 => message.msg_type = i32::from(bytes.byte()) % 24 - 2,
        1 => message.from = bytes.one_of(&[0, OWN, 9, number]),
        2 => message.to = number,
        3 => message.term = number,
        4 => message.log_term = number,
        5 => message.index = number,
        6 => message.commit = number,
        7 => message.commit_term = number,
        8 => message.reject_hint = number,
        9 => message.reject = !message.reject,
        10 => message.request_snapshot = number,
        11 => message.context = bytes.take(64).to_vec(),
        12 => message.entries.push(Entry { index: number, ..entry(bytes, number, view.status.term) }),
        13 => message.entries.iter_mut().take(1).for_each(|entry| entry.term = number),
        14 => message.entries.iter_mut().take(1).for_each(|entry| entry.entry_type = i32::from(bytes.byte() % 5)),
        _ => match message.snapshot.as_mut().and_then(|snapshot| snapshot.metadata.as_mut()) {
            None => message.snapshot = Some(snapshot(bytes, view.status)),
            Some(metadata) if bytes.happens(128) => metadata.index = number,
            Some(metadata) if bytes.happens(128) => metadata.term = number,
            Some(metadata) if bytes.happens(128) => metadata.conf_state = None,
            Some(SnapshotMetadata { conf_state: Some(servers), .. }) => match bytes.below(4) {
                0 => servers.voters.push(number),
                1 => servers.learners.push(number),
                2 => servers.voters_outgoing.push(number),
                _ => servers.voters.clear(),
            },
            Some(_) => message.snapshot = Some(Snapshot::default()),
        },
    }
}

/// A number that is at the edge of something.
fn strange(bytes: &mut Bytes, status: &Status) -> u64 {
    let near = bytes.one_of(&[0, status.term, status.commit, status.applied, status.last_index, 1 << 35, u64::MAX / 2]);
    match bytes.below(6) {
        0 => near,
        1 => near.wrapping_sub(1),
        2 => near + 1,
        3 => near + 1000,
        4 => u64::MAX - u64::from(bytes.byte()),
        _ => bytes.word(),
    }
}
