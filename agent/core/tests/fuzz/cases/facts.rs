//! What has to be so whatever a server is told, each as a function that says it.

use std::collections::{BTreeMap, BTreeSet};

use blixard_core::driver::{
    Committed, Driver, Message, Recovered, RefusedMessage, Role, Settings, Soft, Status, announced, wire,
};
use blixard_core::types::RaftId;
use raft::eraftpb::MessageType;

use super::disk::Disk;
use super::lies::OWN;

#[derive(Default)]
pub struct Facts {
    /// Who said in which term that it votes for this server.
    granted: BTreeMap<u64, BTreeSet<RaftId>>,
    /// Whom this server has told in which term that it votes for them.
    votes: BTreeMap<u64, u64>,
    term: u64,
    commit: u64,
    soft: Option<Soft>,
    terms_led: u64,
    /// Up to here a snapshot may have taken the log's place.
    replaced: u64,
    /// The term on disk at the start, and up to where this server may have acknowledged the log in which later one.
    known_term: u64,
    acknowledged: (u64, u64),
}

impl Facts {
    /// A server was started on what its disk holds.
    pub fn started(&mut self, disk: &Disk) {
        (self.term, self.commit, self.soft) = (disk.log.hard_state.term, 0, None);
        (self.known_term, self.acknowledged) = (self.term, (0, 0));
    }

    pub fn terms_led(&self) -> u64 {
        self.terms_led
    }

    /// A snapshot is to take the place of everything that is committed by then.
    pub fn replaced(&mut self, status: &Status) {
        self.replaced = status.commit;
    }

    /// A snapshot was here, whole, and is answered.
    pub fn fetched(&mut self, status: &Status) {
        self.acknowledges(status.term, status.commit);
    }

    fn acknowledges(&mut self, term: u64, index: u64) {
        let before = if self.acknowledged.0 == term { self.acknowledged.1 } else { 0 };
        self.acknowledged = (term, before.max(index));
    }

    /// A message was let through the gate of a server that stood so.
    pub fn heard(&mut self, before: &Status, disk: &Disk, message: &Message) {
        assert_eq!(message.to, OWN, "{message:?}");
        Self::only_a_leader_is_obeyed(before, message);
        self.nobody_is_followed_who_takes_back_what_is_committed(before, disk, message);
        self.nobody_is_believed_who_knows_of_more_than_was_acknowledged(before, message);
        if message.msg_type == i32::from(MessageType::MsgRequestVoteResponse) && !message.reject {
            self.granted.entry(message.term).or_default().insert(RaftId(message.from));
        }
    }

    fn only_a_leader_is_obeyed(before: &Status, message: &Message) {
        let orders = [MessageType::MsgReadIndexResp, MessageType::MsgTimeoutNow].map(i32::from);
        if orders.contains(&message.msg_type) && message.term >= before.term {
            assert_eq!(before.soft.leader, Some(RaftId(message.from)), "{message:?}");
        }
    }

    fn nobody_is_followed_who_takes_back_what_is_committed(&self, before: &Status, disk: &Disk, message: &Message) {
        if message.term < before.term || message.msg_type != i32::from(MessageType::MsgAppend) {
            return;
        }
        // Raft takes no notice of what is before the log in memory: it is committed.
        let known = before.first_index.max(self.replaced + 1)..=before.applied;
        for entry in message.entries.iter().filter(|entry| known.contains(&entry.index)) {
            let known = disk.log.term_at(entry.index).unwrap_or(entry.term);
            assert_eq!(known, entry.term, "entry {} is committed, and not like that: {message:?}", entry.index);
        }
    }

    fn nobody_is_believed_who_knows_of_more_than_was_acknowledged(&mut self, before: &Status, message: &Message) {
        if message.term < before.term {
            return;
        }
        if message.msg_type == i32::from(MessageType::MsgAppend) {
            let last = message.index + message.entries.len() as u64;
            self.acknowledges(message.term, last.max(before.commit));
        } else if message.msg_type == i32::from(MessageType::MsgHeartbeat) && message.term > self.known_term {
            self.acknowledges(message.term, 0);
            assert!(message.commit <= self.acknowledged.1, "{message:?}");
        }
    }

    /// Everything, after something has happened.
    pub fn check(&mut self, status: &Status) {
        Self::what_is_applied_is_committed_and_what_is_committed_is_there(status);
        self.nobody_takes_the_place_of_a_leader_within_its_term(status);
        self.who_leads_was_voted_for_by_a_majority(status);
        self.terms_and_commits_never_go_back(status);
    }

    fn what_is_applied_is_committed_and_what_is_committed_is_there(status: &Status) {
        let Status { applied, commit, last_index, .. } = *status;
        assert!(applied <= commit && commit <= last_index, "{status:?}");
    }

    fn nobody_takes_the_place_of_a_leader_within_its_term(&mut self, status: &Status) {
        let known = self.soft.and_then(|soft| soft.leader).filter(|_| self.term == status.term);
        if let (Some(before), Some(now)) = (known, status.soft.leader) {
            assert_eq!(before, now, "a second leader of term {}", status.term);
        }
        let leads = status.soft.role == Role::Leader;
        assert_eq!(leads, status.soft.leader == Some(RaftId(OWN)), "{status:?}");
    }

    fn who_leads_was_voted_for_by_a_majority(&mut self, status: &Status) {
        let led = self.soft.is_some_and(|soft| soft.role == Role::Leader) && self.term == status.term;
        if status.soft.role == Role::Leader && !led {
            let voters = &status.membership.voters;
            let granted = self.granted.entry(status.term).or_default();
            granted.insert(RaftId(OWN));
            self.terms_led += 1;
            let count = voters.intersection(granted).count();
            assert!(count * 2 > voters.len(), "it leads with {count} votes: {status:?}");
        }
    }

    fn terms_and_commits_never_go_back(&mut self, status: &Status) {
        assert!(status.term >= self.term, "term {} after {}", status.term, self.term);
        assert!(status.commit >= self.commit, "commit {} after {}", status.commit, self.commit);
        (self.term, self.commit, self.soft) = (status.term, status.commit, Some(status.soft));
    }

    pub fn a_refused_message_changes_nothing(before: &Status, after: &Status, refused: &RefusedMessage) {
        assert_eq!(before, after, "{refused}");
    }

    pub fn what_is_committed_is_on_disk(committed: &[Committed], disk: &Disk) {
        for Committed { position, .. } in committed {
            let term = disk.log.term_at(position.index);
            assert_eq!(
                term,
                Some(position.term),
                "{position:?} is handed out, and the log ends at {}",
                disk.log.last()
            );
        }
    }

    /// Looks at what the server sends.
    pub fn sent(&mut self, messages: &[Message], disk: &Disk) {
        for message in messages {
            self.a_vote_is_given_once_and_from_disk(message, disk);
            Self::what_is_sent_is_of_a_shape_that_is_taken(message);
            Self::a_snapshot_is_announced_only_of_what_can_be_read(message, disk);
        }
    }

    fn a_vote_is_given_once_and_from_disk(&mut self, message: &Message, disk: &Disk) {
        if message.msg_type == i32::from(MessageType::MsgRequestVoteResponse) && !message.reject {
            let vote = *self.votes.entry(message.term).or_insert(message.to);
            assert_eq!(vote, message.to, "a second vote in term {}", message.term);
            let held = &disk.log.hard_state;
            let is_held = held.term > message.term || (held.term, held.vote) == (message.term, message.to);
            assert!(is_held, "{held:?} has no vote as in {message:?}");
        }
    }

    fn a_snapshot_is_announced_only_of_what_can_be_read(message: &Message, disk: &Disk) {
        if let Some(checkpoint) = announced(message) {
            let known = &disk.checkpoint;
            assert!(!disk.installed && checkpoint == *known, "{message:?}, and there is {known:?}");
        }
    }

    fn what_is_sent_is_of_a_shape_that_is_taken(message: &Message) {
        assert_eq!(message.from, OWN, "it is sent in another's name: {message:?}");
        assert_ne!(message.to, OWN, "{message:?}");
        let message = wire::decode_message(&wire::encode_message(message)).expect("it was encoded just now");
        let receiver = Settings::new(RaftId(message.to), 0);
        let mut receiver = Driver::new(receiver, Recovered::blank(RaftId(OWN))).expect("it is blank");
        let taken = match announced(&message) {
            Some(_) => receiver.check_snapshot(&message),
            None => receiver.step(message.clone()),
        };
        // This receiver is blank: it lacks what another one has acknowledged.
        let is_taken = matches!(
            taken,
            Ok(()) | Err(RefusedMessage::Unfit { .. } | RefusedMessage::Step { .. } | RefusedMessage::LostLog(_))
        );
        assert!(is_taken, "{taken:?}: {message:?}");
    }
}
