//! What three real Rafts send each other passes the gate: elections, appends, conflicts, reads, transfers.

use std::collections::BTreeSet;

use raft::eraftpb::{Message, MessageType};
use raft::storage::MemStorage;
use raft::{Config, RawNode, StateRole};

use crate::driver::wire;

struct Group {
    nodes: Vec<RawNode<MemStorage>>,
    away: Option<usize>,
    seen: BTreeSet<i32>,
    reads: usize,
}

fn raft_id(at: usize) -> u64 {
    11 + at as u64
}

impl Group {
    fn new() -> Self {
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let voters: Vec<u64> = (0..3).map(raft_id).collect();
        let start = |at: usize| {
            let config = Config {
                id: voters[at],
                election_tick: 10,
                heartbeat_tick: 2,
                check_quorum: true,
                pre_vote: true,
                max_size_per_msg: 512 << 10,
                ..Config::default()
            };
            let storage = MemStorage::new_with_conf_state((voters.clone(), vec![]));
            RawNode::new(&config, storage, &logger).unwrap()
        };
        Self { nodes: (0..3).map(start).collect(), away: None, seen: BTreeSet::new(), reads: 0 }
    }

    /// What `at` has to send, its log written and its state applied first.
    fn turn(&mut self, at: usize) -> Vec<Message> {
        let node = &mut self.nodes[at];
        if !node.has_ready() {
            return Vec::new();
        }
        let mut ready = node.ready();
        self.reads += ready.read_states().len();
        let mut messages = ready.take_messages();
        let store = node.store().clone();
        store.wl().append(ready.entries()).unwrap();
        if let Some(hard_state) = ready.hs() {
            store.wl().set_hardstate(hard_state.clone());
        }
        messages.extend(ready.take_persisted_messages());
        let mut light = node.advance(ready);
        if let Some(commit) = light.commit_index() {
            store.wl().mut_hard_state().commit = commit;
        }
        messages.extend(light.take_messages());
        node.advance_apply();
        messages
    }

    /// Carries messages through the gate until nobody has anything to say.
    fn settle(&mut self) {
        loop {
            let sent: Vec<(usize, Message)> =
                (0..3).flat_map(|at| self.turn(at).into_iter().map(move |m| (at, m)).collect::<Vec<_>>()).collect();
            if sent.is_empty() {
                return;
            }
            for (from, message) in sent {
                let to = (0..3).find(|at| raft_id(*at) == message.to).unwrap();
                let message = wire::decode_message(&wire::encode_message(&message)).unwrap();
                self.seen.insert(message.msg_type);
                if self.away.is_none_or(|away| away != from && away != to) {
                    super::admit(&message, &self.nodes[to].raft).unwrap_or_else(|error| panic!("{error}: {message:?}"));
                    let _ = self.nodes[to].step(message);
                }
            }
        }
    }

    /// Ticks until somebody of those who are there leads.
    fn leader(&mut self) -> usize {
        for _ in 0..1000 {
            for at in 0..3 {
                self.nodes[at].tick();
            }
            self.settle();
            let leads = |at: &usize| self.nodes[*at].raft.state == StateRole::Leader && self.away != Some(*at);
            if let Some(leader) = (0..3).find(leads) {
                return leader;
            }
        }
        panic!("no leader within 1000 ticks");
    }
}

#[test]
fn all_that_raft_sends_in_a_stormy_life_passes_the_gate() {
    let mut group = Group::new();
    for round in 0..20_u64 {
        let leader = group.leader();
        for n in 0..50 {
            group.nodes[leader].propose(vec![], vec![7; 1 + n * 100]).unwrap();
        }
        group.settle();
        let follower = (leader + 1) % 3;
        group.nodes[follower].read_index(round.to_be_bytes().to_vec());
        group.settle();
        // The old leader goes on alone with entries that the others' next leader overwrites.
        group.away = Some(leader);
        let _ = group.nodes[leader].propose(vec![], b"lost".to_vec());
        let next = group.leader();
        group.nodes[next].propose(vec![], b"kept".to_vec()).unwrap();
        group.settle();
        group.away = None;
        let leader = group.leader();
        group.nodes[leader].transfer_leader(raft_id((leader + 1) % 3));
        group.settle();
    }
    let ends: BTreeSet<u64> = group.nodes.iter().map(|node| node.raft.raft_log.committed).collect();
    assert!(ends.iter().min() > Some(&1000), "{ends:?}");
    assert!(group.reads >= 20, "{} reads", group.reads);
    for kind in [
        MessageType::MsgAppend,
        MessageType::MsgAppendResponse,
        MessageType::MsgRequestVote,
        MessageType::MsgRequestVoteResponse,
        MessageType::MsgRequestPreVote,
        MessageType::MsgRequestPreVoteResponse,
        MessageType::MsgHeartbeat,
        MessageType::MsgHeartbeatResponse,
        MessageType::MsgReadIndex,
        MessageType::MsgReadIndexResp,
        MessageType::MsgTimeoutNow,
    ] {
        assert!(group.seen.contains(&(kind as i32)), "{kind:?} was never sent");
    }
}
