//! The ways between the servers, and what is under way on them.

use std::collections::BTreeSet;

use blixard_core::driver::{Checkpoint, Message};
use blixard_core::types::RaftId;
use raft::eraftpb::MessageType;

use super::super::disk::State;
use super::super::speakers::Verdict;
use super::{Event, MILLISECOND, Time, World};

/// How long a leader waits for a follower to fetch its snapshot.
const OFFER: Time = 500 * MILLISECOND;

/// A message, and when which process has sent it.
#[derive(Clone)]
pub struct Sent {
    pub message: Message,
    pub boot: u64,
    pub at: Time,
}

/// How the network is.
#[derive(Default)]
pub struct Network {
    /// Ways that nothing goes, one direction each.
    pub cut: BTreeSet<(RaftId, RaftId)>,
    pub drop_percent: u64,
    pub twice_percent: u64,
    /// Longest that a message is under way.
    pub latency: Time,
}

impl World {
    pub(super) fn send(&mut self, sent: Sent) {
        let way = (RaftId(sent.message.from), RaftId(sent.message.to));
        if sent.message.msg_type == i32::from(MessageType::MsgSnapshot) {
            return self.send_snapshot(sent);
        }
        if self.network.cut.contains(&way) || self.random.percent(self.network.drop_percent) {
            return;
        }
        if self.random.percent(self.network.twice_percent) {
            let late = self.random.below(50 * MILLISECOND);
            self.after(late, Event::Deliver(sent.clone()));
        }
        let latency = self.random.between(200, self.network.latency);
        self.after(latency, Event::Deliver(sent));
    }

    /// The rows go on their own way, which takes longer, and breaks off now and then.
    fn send_snapshot(&mut self, sent: Sent) {
        let (from, to, boot) = (RaftId(sent.message.from), RaftId(sent.message.to), sent.boot);
        let server = self.processes_mut(from).find(|server| server.boot == boot).expect("it has sent it");
        let store = server.store.image();
        let is_held = blixard_core::driver::announced(&sent.message).as_ref() == Some(&store.checkpoint);
        let held = &store.checkpoint;
        assert!(is_held, "seed {}: server {from} offers what its store lacks, as it is at {held:?}", self.seed);
        assert!(!store.installed, "seed {}: server {from} offers what it cannot read yet", self.seed);
        let arrived = !self.network.cut.contains(&(from, to)) && !self.random.percent(self.network.drop_percent * 2);
        let takes = self.random.between(MILLISECOND, 40 * MILLISECOND + self.network.latency * 2);
        self.after(takes, Event::Fetched { sent, state: Box::new(store.state), arrived });
        self.after(takes + OFFER, Event::OfferExpires { server: from, boot, peer: to });
    }

    /// Whether a process takes what reaches it; if not, whoever sent it may hear why.
    pub(super) fn takes(&mut self, id: RaftId, boot: u64, sent: &Sent) -> bool {
        let (from, now) = (RaftId(sent.message.from), self.now);
        let member = self.servers[&from].member;
        let hears = !self.network.cut.contains(&(id, from)) && !self.retired.contains(&from);
        let receiver = self.processes_mut(id).find(|server| server.boot == boot).expect("it runs");
        if receiver.dismisses(member, from) {
            if hears {
                let all = self.servers.values().chain(&self.twin);
                let teller = all.into_iter().find(|server| server.id == id && server.boot == boot);
                self.facts.who_goes_is_needed_by_nobody(teller.expect("it runs"), from);
                self.retire(from);
            }
            return false;
        }
        match receiver.judge(from, sent.boot, sent.at, now) {
            Verdict::Taken => true,
            Verdict::Dropped => false,
            Verdict::Refused => {
                let lives = self.processes_mut(from).any(|server| server.is_up() && server.boot == sent.boot);
                if hears && lives {
                    let is_twin = self.cloned == Some(from);
                    assert!(is_twin, "seed {}: {from} is told that it runs twice", self.seed);
                    self.facts.superseded += 1;
                    // Where it is the last one, a person has it start again.
                    self.end(from, sent.boot);
                }
                false
            }
        }
    }

    pub(super) fn fetched(&mut self, (id, boot): (RaftId, u64), message: Message, state: State) {
        self.trace.push(shown(&message));
        let checkpoint = blixard_core::driver::announced(&message).expect("it was sent as one");
        self.act(id, boot, |server| server.fetched(message, checkpoint, state));
        let dies = self.network.drop_percent > 0 && self.random.percent(10);
        if dies && self.servers[&id].is_up() {
            self.crash(id);
        }
    }
}

/// A message on one line, with what matters of its kind.
pub fn shown(message: &Message) -> String {
    use std::fmt::Write as _;
    let Message { from, to, term, index, log_term, commit, .. } = message;
    let mut line = format!("{from}→{to} {:?} term {term}", message.msg_type());
    for (name, value) in [("index", index), ("log_term", log_term), ("commit", commit)] {
        if *value != 0 {
            write!(line, " {name} {value}").unwrap();
        }
    }
    if let Some(Checkpoint { position, .. }) = blixard_core::driver::announced(message) {
        write!(line, " snapshot {} of term {}", position.index, position.term).unwrap();
    }
    if !message.entries.is_empty() {
        write!(line, " entries {}", message.entries.len()).unwrap();
    }
    if message.reject {
        line.push_str(" reject");
    }
    line
}
