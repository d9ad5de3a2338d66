use std::collections::BTreeSet;

use proptest::prelude::*;
use raft::eraftpb::{ConfState, Entry, EntryType, HardState, Snapshot, SnapshotMetadata};

use super::super::announced as announced_checkpoint;
use super::super::{Driver, ELECTION_TICKS, LogStore, Membership, Position, Recovered, Role, Settings, Write};
use super::*;
use crate::types::RaftId;

/// Keeps nothing.
struct Disk;

impl LogStore for Disk {
    type Error = ();
    fn write(&mut self, _: &[Entry], _: Option<&HardState>) -> Result<(), ()> {
        Ok(())
    }
    fn restart(&mut self, _: Position, _: &HardState) -> Result<(), ()> {
        Ok(())
    }
}

/// Server 11 of three, in term 5, with entries up to 9; those up to 7 are committed.
fn follower() -> Driver {
    let membership = Membership { voters: [11, 12, 13].map(RaftId).into(), learners: [14].map(RaftId).into() };
    let entries = vec![entry(6, 3), entry(7, 4), entry(8, 4), entry(9, 5)];
    let hard_state = HardState { term: 5, vote: 0, commit: 7 };
    let base = Position { index: 5, term: 3 };
    let recovered = Recovered { base, entries, hard_state, membership, applied: 5 };
    Driver::new(Settings::new(RaftId(11), 0), recovered).unwrap()
}

/// Hands out the writes that are to be done.
fn turns(driver: &mut Driver) -> Vec<Write> {
    let mut writes = Vec::new();
    while let Some(turn) = driver.turn() {
        writes.extend(turn.write);
        if let Some(last) = turn.committed.last() {
            driver.applied(last.position.index);
        }
    }
    writes
}

fn persist(driver: &mut Driver) {
    let durable = Write::write_all(turns(driver), &mut Disk).unwrap();
    if let Some(durable) = durable {
        driver.persisted(durable);
    }
}

fn candidate() -> Driver {
    let mut driver = follower();
    (0..2 * ELECTION_TICKS).for_each(|_| driver.tick());
    assert_eq!((driver.soft().role, driver.term()), (Role::Candidate, 5));
    persist(&mut driver);
    driver.step(Message { term: 6, from: 12, ..message(MessageType::MsgRequestPreVoteResponse) }).unwrap();
    persist(&mut driver);
    assert_eq!((driver.soft().role, driver.term()), (Role::Candidate, 6));
    driver
}

fn leader() -> Driver {
    let mut driver = candidate();
    driver.step(Message { term: 6, from: 12, ..message(MessageType::MsgRequestVoteResponse) }).unwrap();
    assert_eq!((driver.soft().role, driver.term()), (Role::Leader, 6));
    persist(&mut driver);
    driver
}

fn message(kind: MessageType) -> Message {
    Message { msg_type: kind.into(), from: 12, to: 11, term: 5, ..Message::default() }
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

fn announced() -> Message {
    let conf_state = Some(ConfState { voters: vec![11, 12], learners: vec![13], ..ConfState::default() });
    let metadata = Some(SnapshotMetadata { conf_state, index: 20, term: 5 });
    let snapshot = Some(Snapshot { data: Vec::new(), metadata });
    Message { snapshot, ..message(MessageType::MsgSnapshot) }
}

/// What is wrong with a message's shape.
fn malformed(message: &Message) -> &'static str {
    let kind = kind(message).unwrap();
    let reason = shape(kind, message).expect_err("it is malformed");
    for mut driver in [follower(), candidate(), leader()] {
        let before = driver.status();
        let refused = match kind {
            MessageType::MsgSnapshot => driver.step_snapshot(message.clone()).map(|_| ()),
            _ => driver.step(message.clone()),
        };
        assert!(matches!(refused, Err(RefusedMessage::Malformed { from: 12, .. })), "{refused:?}");
        assert_eq!(driver.status(), before);
    }
    reason
}

/// Why a message of good shape is refused by a server, which stays as it was.
fn unfit(driver: &mut Driver, message: Message) -> &'static str {
    let before = driver.status();
    let refused = match kind(&message).unwrap() {
        MessageType::MsgSnapshot => driver.step_snapshot(message).map(|_| ()),
        _ => driver.step(message),
    };
    let Err(RefusedMessage::Unfit { reason, .. }) = refused else { panic!("{refused:?}") };
    assert_eq!(driver.status(), before);
    reason
}

#[test]
fn what_raft_sends_passes() {
    follower().step(append()).unwrap();
    follower().step(Message { entries: vec![], ..append() }).unwrap();
    leader().step(read()).unwrap();
    assert!(follower().step_snapshot(announced()).unwrap());
    let mut led = follower();
    led.step(message(MessageType::MsgHeartbeat)).unwrap();
    led.step(Message { term: 5, msg_type: MessageType::MsgReadIndexResp.into(), ..read() }).unwrap();
    led.step(message(MessageType::MsgTimeoutNow)).unwrap();
    for kind in [
        MessageType::MsgAppendResponse,
        MessageType::MsgRequestVote,
        MessageType::MsgRequestVoteResponse,
        MessageType::MsgRequestPreVote,
        MessageType::MsgRequestPreVoteResponse,
        MessageType::MsgHeartbeat,
        MessageType::MsgHeartbeatResponse,
    ] {
        for term in [1, 5, 9] {
            follower().step(Message { term, ..message(kind) }).unwrap();
            leader().step(Message { term, ..message(kind) }).unwrap();
        }
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
        MessageType::MsgTransferLeader as i32,
        -1,
        99,
    ] {
        let message = Message { msg_type: kind, ..message(MessageType::MsgHeartbeat) };
        for mut driver in [follower(), candidate(), leader()] {
            let refused = driver.step(message.clone());
            assert!(matches!(refused, Err(RefusedMessage::Kind { from: 12, kind: k }) if k == kind), "{refused:?}");
            assert!(driver.step_snapshot(message.clone()).is_err());
        }
    }
}

#[test]
fn a_refusal_names_the_sender_the_message_and_the_reason() {
    let text = |message| follower().step(message).unwrap_err().to_string();
    let local = text(message(MessageType::MsgPropose));
    assert_eq!(local, "dropped a message of type 2 from server 12: servers do not send it to each other");
    let gap = text(Message { entries: vec![entry(9, 5)], ..append() });
    assert_eq!(gap, "dropped a MsgAppend from server 12: its entries leave a gap");
    let other = text(Message { to: 13, ..append() });
    assert_eq!(other, "dropped a MsgAppend from server 12: it is meant for another server");
    let unreadable = text(Message { entries: vec![Entry { entry_type: 7, ..entry(8, 5) }], ..append() });
    assert!(unreadable.starts_with("dropped a message from server 12: it carries an entry"), "{unreadable}");
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
    assert_eq!(malformed(&Message { index: 0, log_term: 0, ..with(vec![entry(1, 0)]) }), out_of_order);
    assert_eq!(malformed(&Message { log_term: 6, ..append() }), "its log term is above its term");
    let many = (0..=MAX_ENTRIES as u64).map(|n| entry(8 + n, 5)).collect();
    assert_eq!(malformed(&with(many)), "it has too many entries");
}

#[test]
fn an_entry_that_could_not_be_applied_is_refused() {
    let joint = EntryType::EntryConfChangeV2.into();
    let change = EntryType::EntryConfChange.into();
    for entry_type in [joint, change, 7, -1] {
        // Its data is no change of the servers either.
        let with = |base: Message, index, term| {
            let entry = Entry { entry_type, data: vec![0xff], ..entry(index, term) };
            Message { entries: vec![entry], ..base }
        };
        let (mut follower, mut leader) = (follower(), leader());
        for (driver, message) in [(&mut follower, with(append(), 8, 5)), (&mut leader, with(read(), 0, 0))] {
            let before = driver.status();
            let refused = driver.step(message);
            assert!(matches!(refused, Err(RefusedMessage::Entry { from: 12, .. })), "{refused:?}");
            assert_eq!(driver.status(), before);
        }
    }
}

#[test]
fn an_append_behind_nothing_is_refused() {
    // Raft finds term 0 behind its log's end too, and would append there.
    let far = |entries| Message { index: 1000, log_term: 0, commit: 1000, entries, ..message(MessageType::MsgAppend) };
    let no_term = "only what is before the first entry has term 0";
    assert_eq!(malformed(&far(vec![])), no_term);
    assert_eq!(malformed(&far(vec![entry(1001, 5)])), no_term);
    assert_eq!(malformed(&Message { index: 0, log_term: 1, ..message(MessageType::MsgAppend) }), no_term);
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
    let leap = Message { term: 6 + MAX_TERM_LEAP, ..message(MessageType::MsgHeartbeat) };
    assert_eq!(unfit(&mut follower(), leap), "its term is out of all bounds");
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
        let with = |entries| Message { term, msg_type: kind.into(), entries, ..read() };
        assert_eq!(malformed(&with(vec![])), "it does not carry one read");
        assert_eq!(malformed(&with(vec![entry(0, 0), entry(0, 0)])), "it does not carry one read");
        assert_eq!(malformed(&with(vec![Entry::default()])), "its read has no context");
        let long = Entry { data: vec![0; MAX_CONTEXT + 1], ..Entry::default() };
        assert_eq!(malformed(&with(vec![long])), "its read's context is too long");
    }
}

#[test]
fn stray_snapshots_entries_and_long_contexts_are_refused() {
    let of_its_own = "a snapshot is announced by a message of its own";
    assert_eq!(malformed(&Message { snapshot: Some(Snapshot::default()), ..append() }), of_its_own);
    assert_eq!(malformed(&message(MessageType::MsgSnapshot)), of_its_own);
    let asked = Message { request_snapshot: 1, ..message(MessageType::MsgAppendResponse) };
    assert_eq!(malformed(&asked), "servers do not ask each other for snapshots by raft");
    for kind in [MessageType::MsgHeartbeat, MessageType::MsgRequestVote, MessageType::MsgAppendResponse] {
        let stray = Message { entries: vec![entry(1, 1)], ..message(kind) };
        assert_eq!(malformed(&stray), "it carries entries");
    }
    assert_eq!(malformed(&Message { entries: vec![entry(1, 1)], ..announced() }), "it carries entries");
    let long = Message { context: vec![0; MAX_CONTEXT + 1], ..message(MessageType::MsgHeartbeat) };
    assert_eq!(malformed(&long), "its context is too long");
}

#[test]
fn a_malformed_announcement_of_a_snapshot_is_refused() {
    let snapshot = |change: fn(&mut Snapshot)| {
        let mut message = announced();
        change(message.snapshot.as_mut().unwrap());
        malformed(&message)
    };
    assert_eq!(snapshot(|snapshot| snapshot.data.push(1)), "it carries rows");
    assert_eq!(snapshot(|snapshot| snapshot.metadata = None), "its snapshot does not say what it is");
    let metadata = |change: fn(&mut SnapshotMetadata)| {
        let mut message = announced();
        change(message.snapshot.as_mut().unwrap().metadata.as_mut().unwrap());
        malformed(&message)
    };
    let bounds = "its snapshot's term or index is out of all bounds";
    assert_eq!(metadata(|metadata| metadata.index = 0), bounds);
    assert_eq!(metadata(|metadata| metadata.index = MAX_NUMBER + 1), bounds);
    assert_eq!(metadata(|metadata| metadata.term = 0), bounds);
    assert_eq!(metadata(|metadata| metadata.term = 6), bounds);
    assert_eq!(metadata(|metadata| metadata.conf_state = None), "its snapshot names no servers");
    let servers = |change: fn(&mut ConfState)| {
        let mut message = announced();
        let metadata = message.snapshot.as_mut().unwrap().metadata.as_mut().unwrap();
        change(metadata.conf_state.as_mut().unwrap());
        malformed(&message)
    };
    assert_eq!(servers(|servers| servers.voters.clear()), "its snapshot has no voters");
    let joint = "its snapshot is between two memberships";
    assert_eq!(servers(|servers| servers.voters_outgoing.push(11)), joint);
    assert_eq!(servers(|servers| servers.learners_next.push(11)), joint);
    assert_eq!(servers(|servers| servers.auto_leave = true), joint);
    assert_eq!(servers(|servers| servers.voters.push(0)), "its snapshot names a server 0");
    assert_eq!(servers(|servers| servers.learners.push(0)), "its snapshot names a server 0");
    let twice = "its snapshot names a server twice";
    assert_eq!(servers(|servers| servers.learners.push(11)), twice);
    assert_eq!(servers(|servers| servers.voters.push(12)), twice);
    let many = "its snapshot names too many servers";
    assert_eq!(servers(|servers| servers.learners.extend(20..20 + MAX_SERVERS as u64)), many);
}

#[test]
fn a_snapshot_that_does_not_fit_is_refused() {
    let with = |change: fn(&mut SnapshotMetadata)| {
        let mut message = announced();
        change(message.snapshot.as_mut().unwrap().metadata.as_mut().unwrap());
        message
    };
    let stranger = with(|metadata| metadata.conf_state.as_mut().unwrap().voters = vec![12]);
    assert_eq!(unfit(&mut follower(), stranger), "its snapshot does not know this server");
    let other = with(|metadata| (metadata.index, metadata.term) = (7, 5));
    assert_eq!(unfit(&mut follower(), other), "it contradicts what is committed here");
    assert_eq!(unfit(&mut leader(), announced()), "it is of an earlier term");
    assert!(follower().check_snapshot(&announced()).is_ok());
    assert!(leader().check_snapshot(&announced()).is_err());
    let mut driver = follower();
    let refused = driver.step(announced()).unwrap_err().to_string();
    assert!(refused.contains("was not fetched"), "{refused}");
    assert!(matches!(driver.step_snapshot(append()), Err(RefusedMessage::Malformed { .. })));
}

#[test]
fn of_two_snapshots_at_once_the_first_is_installed() {
    let mut driver = follower();
    driver.step_snapshot(announced()).unwrap();
    let mut other = announced();
    let metadata = other.snapshot.as_mut().unwrap().metadata.as_mut().unwrap();
    metadata.conf_state.as_mut().unwrap().learners.clear();
    assert_eq!(unfit(&mut driver, other.clone()), "another snapshot is about to be installed");
    let installed = driver.turn().unwrap().install.unwrap().checkpoint;
    assert_eq!(Some(installed), announced_checkpoint(&announced()));
    driver.step_snapshot(other).unwrap();
}

#[test]
fn a_message_is_from_another_server_and_for_this_one() {
    let own = "it says that it comes from this server";
    assert_eq!(unfit(&mut follower(), Message { from: 11, ..append() }), own);
    assert_eq!(unfit(&mut follower(), Message { from: 0, ..append() }), own);
    assert_eq!(unfit(&mut follower(), Message { to: 13, ..append() }), "it is meant for another server");
}

#[test]
fn who_contradicts_what_is_committed_is_refused_in_any_term_that_raft_listens_to() {
    let contradicts = "it contradicts what is committed here";
    let other = Message { index: 6, log_term: 3, entries: vec![entry(7, 5)], ..append() };
    for (index, log_term) in [(7, 3), (7, 5), (6, 2), (5, 2)] {
        let before = Message { index, log_term, entries: vec![], ..append() };
        assert_eq!(unfit(&mut follower(), before), contradicts, "{index} {log_term}");
    }
    assert_eq!(unfit(&mut follower(), other.clone()), contradicts);
    assert_eq!(unfit(&mut follower(), Message { term: 6, ..other.clone() }), contradicts);
    // Raft answers it with its own term, whatever it says.
    leader().step(other).unwrap();
    // What isn't committed may be replaced.
    let mut driver = follower();
    driver.step(Message { term: 6, entries: vec![entry(8, 6)], ..append() }).unwrap();
    assert_eq!(driver.status().last_index, 8);
}

#[test]
fn a_heartbeat_beyond_what_is_on_disk_says_that_it_was_lost() {
    let step = |term, commit| follower().step(Message { term, commit, ..message(MessageType::MsgHeartbeat) });
    let is_lost = |term, commit| matches!(step(term, commit), Err(RefusedMessage::LostLog(_)));
    assert!(is_lost(5, 10) && is_lost(6, 1) && !is_lost(6, 0) && !is_lost(4, 10));
}

#[test]
fn a_leader_calls_when_it_is_asked_to_and_nobody_else_does() {
    let called = |mut driver: Driver| {
        persist(&mut driver);
        driver.call();
        let sent = driver.turn().map(|turn| turn.send).unwrap_or_default().into_iter();
        let heartbeats = sent.filter(|message| message.msg_type() == MessageType::MsgHeartbeat);
        heartbeats.map(|message| message.to).collect::<BTreeSet<_>>()
    };
    assert_eq!((called(leader()), called(follower())), ([12, 13, 14].into(), BTreeSet::new()));
}

#[test]
fn a_leader_believes_no_acknowledgement_of_what_it_never_had() {
    let beyond = Message { term: 6, index: 11, ..message(MessageType::MsgAppendResponse) };
    assert_eq!(unfit(&mut leader(), beyond.clone()), "it acknowledges what was never sent");
    leader().step(Message { reject: true, ..beyond }).unwrap();
}

#[test]
fn nobody_takes_the_place_of_a_leader_within_its_term() {
    let mut driver = follower();
    driver.step(append()).unwrap();
    for other in [Message { from: 13, ..append() }, Message { from: 13, ..message(MessageType::MsgHeartbeat) }] {
        assert_eq!(unfit(&mut driver, other), "another server leads its term");
    }
    assert_eq!(unfit(&mut driver, Message { from: 13, ..announced() }), "another server leads its term");
    assert_eq!(unfit(&mut leader(), Message { term: 6, ..append() }), "another server leads its term");
    driver.step(Message { from: 13, term: 6, ..append() }).unwrap();
    assert_eq!(driver.soft().leader, Some(RaftId(13)));
}

#[test]
fn only_the_leader_answers_reads_and_hands_over() {
    let answer = Message { term: 5, msg_type: MessageType::MsgReadIndexResp.into(), ..read() };
    for message in [answer, message(MessageType::MsgTimeoutNow)] {
        assert_eq!(unfit(&mut follower(), message.clone()), "its sender does not lead");
        let mut led = follower();
        led.step(append()).unwrap();
        assert_eq!(unfit(&mut led, Message { from: 13, ..message.clone() }), "its sender does not lead");
        assert_eq!(unfit(&mut led, Message { term: 6, ..message.clone() }), "its sender does not lead");
        led.step(message).unwrap();
    }
}

#[test]
fn a_read_is_not_sent_on_in_the_name_of_who_asked() {
    let mut led = follower();
    led.step(append()).unwrap();
    assert_eq!(unfit(&mut led, Message { from: 13, ..read() }), "this server does not lead");
    assert_eq!(unfit(&mut follower(), read()), "this server does not lead");
}

#[test]
fn a_server_that_still_writes_wins_no_election() {
    let mut driver = follower();
    driver.step(Message { index: 9, log_term: 5, entries: vec![entry(10, 5)], ..append() }).unwrap();
    let writes = turns(&mut driver);
    let handover = message(MessageType::MsgTimeoutNow);
    assert_eq!(unfit(&mut driver, handover.clone()), "this server is still writing, and can't lead");
    assert!(driver.step(handover).unwrap_err().may_be_late(), "its sender gave the handover up, and went on");
    (0..2 * ELECTION_TICKS).for_each(|_| driver.tick());
    assert_eq!(driver.soft().role, Role::Candidate);
    for kind in [MessageType::MsgRequestPreVoteResponse, MessageType::MsgRequestVoteResponse] {
        let granted = Message { term: 6, ..message(kind) };
        assert_eq!(unfit(&mut driver, granted.clone()), "this server has not asked for a vote yet");
        assert!(driver.step(granted).unwrap_err().may_be_late(), "it stood before it followed");
    }
    driver.persisted(Write::write_all(writes, &mut Disk).unwrap().unwrap());
    persist(&mut driver);
    for kind in [MessageType::MsgRequestPreVoteResponse, MessageType::MsgRequestVoteResponse] {
        driver.step(Message { term: 6, ..message(kind) }).unwrap();
        persist(&mut driver);
    }
    assert_eq!(driver.soft().role, Role::Leader);
}

#[test]
fn a_server_that_votes_alone_does_not_stand_before_it_has_written() {
    let membership = Membership { voters: [RaftId(11)].into(), learners: [RaftId(12)].into() };
    let hard_state = HardState { term: 5, ..HardState::default() };
    let recovered = Recovered { hard_state, membership, ..Recovered::default() };
    let mut driver = Driver::new(Settings::new(RaftId(11), 0), recovered).unwrap();
    let first = Message { entries: vec![entry(1, 5)], ..message(MessageType::MsgAppend) };
    driver.step(first).unwrap();
    // No turn has handed the entry out yet.
    (0..100).for_each(|_| driver.tick());
    driver.campaign_if_alone();
    assert_eq!(driver.soft().role, Role::Follower);
    persist(&mut driver);
    (0..100).for_each(|_| driver.tick());
    assert_eq!(driver.soft().role, Role::Leader);
}

proptest! {
    #[test]
    fn any_numbers_at_all_are_judged_without_a_panic(
        kind in -2..25i32, numbers in proptest::array::uniform6(any::<u64>()), index in any::<u64>(), term in any::<u64>()
    ) {
        let [message_term, log_term, at, commit, commit_term, reject_hint] = numbers;
        let message = Message {
            msg_type: kind, to: 11, from: 12, term: message_term, log_term, index: at, entries: vec![entry(index, term)],
            commit, commit_term, reject_hint, ..Message::default()
        };
        let _ = follower().step(message);
    }
}
