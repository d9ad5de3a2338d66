//! One server, to which others say whatever the bytes make of them. Around its driver is what the agent's event loop does.

use std::collections::BTreeSet;

use blixard_core::driver::{
    Checkpoint, Content, Driver, Install, Membership, MembershipChange, Message, Position, RefusedMessage, Role,
    Settings, Turn, Write, announced,
};
use blixard_core::types::RaftId;
use raft::eraftpb::MessageType;

use super::bytes::Bytes;
use super::disk::Disk;
use super::facts::Facts;
use super::lies::{self, OWN, View};

/// What is done in one case at most: longer ones find no more, and take longer.
const MOST_STEPS: usize = 300;

/// What happened in a case, so that it is known whether enough did.
#[derive(Default, Debug)]
pub struct Counts {
    pub taken: u64,
    pub refused: u64,
    pub terms_led: u64,
    pub committed: u64,
    pub installed: u64,
    /// How often it took its disk for one that was replaced, and stopped.
    pub lost: u64,
}

struct Server {
    driver: Driver,
    disk: Disk,
    facts: Facts,
    waiting: Vec<Write>,
    /// A checkpoint that the store is to hold once the log knows that it is committed, and whether it does.
    recording: Option<Checkpoint>,
    recorded: bool,
    /// A snapshot that is being fetched, and one that was.
    fetching: Option<Message>,
    incoming: Option<Checkpoint>,
    installing: Option<Install>,
    applied: Position,
    contexts: Vec<Vec<u8>>,
    boots: u64,
    counts: Counts,
}

/// Lives through a case.
///
/// # Panics
/// When something is not as it has to be.
pub fn run(bytes: &[u8]) -> Counts {
    let mut bytes = Bytes::new(bytes);
    let mut server = Server::begin(&mut bytes);
    for _ in 0..MOST_STEPS {
        if bytes.is_empty() {
            break;
        }
        server.live(&mut bytes);
    }
    // Whatever it was told, it can start from what it wrote.
    server.restart();
    server.turns();
    server.counts.terms_led += server.facts.terms_led();
    server.counts
}

fn settings(boots: u64) -> Settings {
    Settings {
        election_ticks: 5,
        heartbeat_ticks: 1,
        // Small, so that a few entries reach every limit.
        max_message_bytes: 150,
        max_inflight_messages: 4,
        max_uncommitted_bytes: 1_000,
        max_committed_bytes: 200,
        keep_bytes: 300,
        keep_for_laggards_bytes: 900,
        ..Settings::new(RaftId(OWN), boots)
    }
}

impl Server {
    /// One of the roles that a server can be in.
    fn begin(bytes: &mut Bytes) -> Self {
        let of = |voters: &[u64], learners: &[u64]| {
            let ids = |ids: &[u64]| ids.iter().copied().map(RaftId).collect::<BTreeSet<_>>();
            Membership { voters: ids(voters), learners: ids(learners) }
        };
        let role = bytes.below(7);
        let disk = match role {
            0 => Disk::blank(Membership::founded_by(RaftId(2))),
            1 => Disk::of(of(&[2, 3], &[OWN])),
            2 => Disk::of(of(&[OWN], &[2, 3])),
            _ => Disk::of(of(&[OWN, 2, 3], &[4])),
        };
        let mut server = Self::start(disk, Facts::default(), 0);
        server.turns();
        if role >= 2 {
            server.persist();
            server.stand(role);
        }
        server
    }

    fn start(mut disk: Disk, mut facts: Facts, boots: u64) -> Self {
        let recovered = disk.recovered();
        facts.started(&disk);
        let mut driver = Driver::new(settings(boots), recovered).expect("it wrote this itself");
        let applied = disk.checkpoint.position;
        if applied.index > 0 && !disk.installed {
            driver.checkpointed(disk.checkpoint.clone());
        }
        Self {
            driver,
            disk,
            facts,
            waiting: Vec::new(),
            recording: None,
            recorded: false,
            fetching: None,
            incoming: None,
            installing: None,
            applied,
            contexts: Vec::new(),
            boots,
            counts: Counts::default(),
        }
    }

    /// Becomes a candidate, or a leader, as far as the role wants it; from 3 on is a follower with a vote.
    fn stand(&mut self, role: usize) {
        let kinds = [MessageType::MsgRequestPreVoteResponse, MessageType::MsgRequestVoteResponse];
        if role > 3 {
            (0..10).for_each(|_| self.driver.tick());
            self.settle();
        }
        // The last role leads, and 2 leads because nobody else votes.
        for kind in &kinds[..role.saturating_sub(4)] {
            let granted = Message { msg_type: (*kind).into(), from: 2, to: OWN, term: 6, ..Message::default() };
            self.step(granted);
            self.settle();
        }
        if role == 2 {
            self.driver.campaign_if_alone();
            self.settle();
        }
        let leads = self.driver.soft().role == Role::Leader;
        assert_eq!(leads, role == 2 || role == 6, "{:?} as {role}", self.driver.status());
    }

    fn settle(&mut self) {
        for _ in 0..3 {
            self.turns();
            self.persist();
            self.keep();
        }
    }

    fn restart(&mut self) {
        let blank = Self::start(Disk::blank(Membership::founded_by(RaftId(OWN))), Facts::default(), 0);
        let Self { disk, facts, boots, counts, .. } = std::mem::replace(self, blank);
        *self = Self { counts, ..Self::start(disk, facts, boots + 1) };
    }

    /// One thing happens.
    fn live(&mut self, bytes: &mut Bytes) {
        if self.fetching.is_some() && bytes.happens(96) {
            self.fetched();
        }
        match bytes.below(32) {
            0..=15 => {
                let status = self.driver.status();
                let view = View { status: &status, disk: &self.disk, contexts: &self.contexts };
                if let Some(message) = lies::message(bytes, &view) {
                    self.step(message);
                }
            }
            16..=18 => (0..=bytes.below(12)).for_each(|_| self.driver.tick()),
            19 => self.turns(),
            20..=22 => self.persist(),
            23 => self.keep(),
            24 => drop(self.driver.propose(vec![5; 1 + bytes.below(100)])),
            25 => drop(self.driver.read_index()),
            26 => self.begin_checkpoint(),
            27 => {
                let id = bytes.one_of(&[OWN, 2, 3, 4, 5]);
                let changes = [MembershipChange::AddLearner, MembershipChange::Promote, MembershipChange::Remove];
                drop(self.driver.propose_membership(bytes.one_of(&changes)(RaftId(id)), Vec::new()));
            }
            28 => drop(self.driver.transfer_leader(RaftId(bytes.one_of(&[OWN, 2, 3, 4, 9])))),
            29 => self.driver.snapshot_failed(RaftId(bytes.one_of(&[2, 3, 4, 9]))),
            30 => self.driver.report_unreachable(RaftId(bytes.one_of(&[2, 3, 4, 9]))),
            _ if bytes.happens(64) => self.restart(),
            _ => self.driver.campaign_if_alone(),
        }
        // Several messages may come in before raft's turn does.
        if !bytes.happens(64) {
            self.turns();
        }
        self.facts.check(&self.driver.status());
    }

    fn step(&mut self, message: Message) {
        let before = self.driver.status();
        if announced(&message).is_some() {
            if self.driver.check_snapshot(&message).is_ok() {
                self.fetching = Some(message);
            }
            return;
        }
        match self.driver.step(message.clone()) {
            Ok(()) => {
                self.counts.taken += 1;
                self.facts.heard(&before, &self.disk, &message);
            }
            Err(refused) => {
                self.counts.refused += 1;
                Facts::a_refused_message_changes_nothing(&before, &self.driver.status(), &refused);
                if matches!(refused, RefusedMessage::LostLog(_)) {
                    self.counts.lost += 1;
                    self.restart();
                }
            }
        }
    }

    /// The snapshot that was announced is here, whole.
    fn fetched(&mut self) {
        let Some(message) = self.fetching.take() else { return };
        if self.installing.is_some() {
            return;
        }
        let (before, checkpoint) = (self.driver.status(), announced(&message));
        match self.driver.step_snapshot(message) {
            Ok(is_installed) => {
                let status = self.driver.status();
                self.facts.fetched(&status);
                if is_installed {
                    self.incoming = checkpoint;
                    self.facts.replaced(&status);
                }
            }
            Err(refused) => Facts::a_refused_message_changes_nothing(&before, &self.driver.status(), &refused),
        }
    }

    fn turns(&mut self) {
        loop {
            if let Some(install) = self.installing.take() {
                if !self.waiting.is_empty() || self.recording.is_some() {
                    self.installing = Some(install);
                    return;
                }
                self.install(install);
            }
            let Some(Turn { send, install, write, committed, .. }) = self.driver.turn() else { break };
            self.send(&send);
            self.waiting.extend(write);
            Facts::what_is_committed_is_on_disk(&committed, &self.disk);
            for entry in committed {
                let index = entry.position.index;
                assert_eq!(index, self.applied.index + 1, "an entry was skipped, or came twice");
                if let Content::Membership { change, .. } = entry.content {
                    // One that does not fit is refused by all servers.
                    drop(self.driver.apply_membership(index, change));
                }
                self.applied = entry.position;
                self.counts.committed += 1;
                self.driver.applied(index);
            }
            self.installing = install;
        }
        if self.disk.installed {
            self.begin_checkpoint();
        }
    }

    fn send(&mut self, messages: &[Message]) {
        self.facts.sent(messages, &self.disk);
        let contexts = messages.iter().map(|message| &message.context).filter(|context| context.len() > 20);
        self.contexts.extend(contexts.cloned());
    }

    /// The disk has written what waited.
    fn persist(&mut self) {
        let written = Write::write_all(std::mem::take(&mut self.waiting), &mut self.disk);
        let Ok(Some(durable)) = written else { return };
        let commit = durable.commit().index();
        let after = self.driver.persisted(durable);
        self.send(&after);
        self.recorded |= self.recording.as_ref().is_some_and(|checkpoint| checkpoint.position.index <= commit);
    }

    fn begin_checkpoint(&mut self) {
        if self.applied.index > 0 && self.recording.is_none() && self.installing.is_none() {
            self.recording = Some(Checkpoint { position: self.applied, membership: self.driver.membership() });
            self.recorded = false;
            self.waiting.push(self.driver.record_commit());
        }
    }

    /// The store holds the checkpoint that the log knows of.
    fn keep(&mut self) {
        if let Some(checkpoint) = self.recording.take_if(|_| self.recorded) {
            (self.disk.checkpoint, self.disk.installed) = (checkpoint.clone(), false);
            let needed = self.driver.checkpointed(checkpoint);
            self.disk.log.release_before(needed);
        }
    }

    fn install(&mut self, install: Install) {
        let checkpoint = self.incoming.take().expect("raft was told of it");
        assert_eq!(checkpoint, install.checkpoint);
        self.counts.installed += 1;
        self.waiting.push(install.installed(&checkpoint));
        self.applied = checkpoint.position;
        (self.disk.checkpoint, self.disk.installed) = (checkpoint, true);
    }
}
