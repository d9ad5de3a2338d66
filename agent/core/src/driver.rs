//! The only room that knows raft's `Ready`.
//!
//! ```text
//!  tick step propose read_index …                       write_all(log)             persisted()
//!  ───────────▶ Driver ── turn() ──▶ Turn{send, write} ───────────────▶ Durable ───────────────▶ messages to send
//!                 ▲                    │ committed, reads
//!                 └── applied(), apply_membership()
//! ```
//!
//! Writes may be under way while raft goes on: a leader's entries travel to its followers before its own disk has them.
//! What promises something (a vote, an acknowledgement) is inside the [`Write`] that it depends on. Only a successful
//! write makes a [`Durable`], and only a `Durable` gives such messages up, or lets raft commit by this server's word.
//!
//! ```compile_fail,E0451
//! # use blixard_core::driver::Durable;
//! fn nothing_is_durable_but_by_a_write(number: u64) -> Durable {
//!     Durable { number, ..todo!() }
//! }
//! ```

mod gate;
mod loss;
mod membership;
mod mirror;
mod proposals;
mod recovered;
mod settings;
mod turn;
pub mod wire;

use std::collections::VecDeque;

use raft::eraftpb::HardState;
use raft::{Progress, ProgressState, RawNode, SnapshotStatus, StateRole};

pub use gate::RefusedMessage;
pub use loss::LostLog;
pub use membership::{Membership, MembershipChange, RefusedChange};
pub use proposals::{Fate, Proposals, ProposeError};
pub use raft::eraftpb::Message;
pub use recovered::{Position, Recovered, StartError, behind_snapshot};
pub use settings::{ELECTION_TICKS, HEARTBEAT_TICKS, Settings};
pub use turn::{CommitOnDisk, Committed, Content, Durable, Install, LogStore, Turn, Write, announced};

use serde::{Deserialize, Serialize};

use crate::types::RaftId;
use mirror::Mirror;

/// A leader promotes a learner only when it lacks fewer entries than this.
pub const CAUGHT_UP_ENTRIES: u64 = 100;

/// One server's part in the cluster's Raft group: calls in, a [`Turn`] out.
pub struct Driver {
    raw: RawNode<Mirror>,
    settings: Settings,
    /// The hard state that the log was last told, or will be by the writes that are under way.
    written: HardState,
    /// Numbers of raft's readies: the newest one whose write is under way, the newest one that is on disk, and the newest
    /// one that brought another term or vote.
    in_flight: Option<u64>,
    persisted: u64,
    promised: u64,
    /// Numbers of the newest write, and of the newest one that is on disk.
    last_write: u64,
    written_up_to: u64,
    /// Up to where the log on disk knows what is committed.
    commit_on_disk: CommitOnDisk,
    acknowledged: loss::Acknowledged,
    /// The last index of the newest snapshot that was handed out and that raft doesn't take for applied yet. An election
    /// would make it look for the entries that the snapshot replaces.
    installing: Option<u64>,
    last_read: u64,
    /// Indexes of membership changes that were handed out and not applied yet.
    unapplied_changes: VecDeque<u64>,
}

/// What the store holds durably: everything up to a position, and the servers as of then.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Checkpoint {
    pub position: Position,
    pub membership: Membership,
}

/// Why a read index was not asked for; the caller tries again after a tick or two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    #[error("cannot read: no leader is known")]
    NoLeader,
    #[error("cannot read: the leader has not committed an entry of its own term yet")]
    LeaderNotReady,
}

/// Which answer in [`Turn::reads`] belongs to which [`Driver::read_index`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ReadId(pub u64);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    Follower,
    Candidate,
    Leader,
}

/// What this server takes itself and others for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Soft {
    pub role: Role,
    pub leader: Option<RaftId>,
}

/// A snapshot of the driver for people and metrics.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Status {
    pub soft: Soft,
    pub term: u64,
    pub commit: u64,
    pub applied: u64,
    /// Of the log in memory.
    pub first_index: u64,
    pub last_index: u64,
    pub membership: Membership,
    /// The other servers as the leader sees them, by id; empty elsewhere.
    pub peers: Vec<Peer>,
}

/// Another server, as the leader sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Peer {
    pub id: RaftId,
    /// Its log is known to equal the leader's up to here.
    pub matched: u64,
    /// Heard of within the current election timeout.
    pub recently_active: bool,
    /// Active, known to have a part of the log, and lacking fewer than [`CAUGHT_UP_ENTRIES`] of it.
    pub caught_up: bool,
}

impl Driver {
    /// A follower that goes on from what its log and store held.
    ///
    /// # Errors
    /// When log and store don't fit each other; raft itself would panic on most of these.
    pub fn new(settings: Settings, recovered: Recovered) -> Result<Self, StartError> {
        recovered.validate(&settings)?;
        let (written, commit_on_disk) = (recovered.hard_state.clone(), recovered.commit());
        let acknowledged = loss::Acknowledged::recovered(&written);
        let config = settings.raft_config(recovered.applied);
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let raw = RawNode::new(&config, Mirror::new(recovered), &logger)
            .map_err(|source| StartError::StartRaft { id: settings.id, source })?;
        let mut driver = Self {
            raw,
            settings,
            written,
            in_flight: None,
            persisted: 0,
            promised: 0,
            last_write: 0,
            written_up_to: 0,
            commit_on_disk,
            acknowledged,
            installing: None,
            last_read: 0,
            unapplied_changes: VecDeque::new(),
        };
        driver.raw.raft.election_elapsed = driver.settings.head_start();
        driver.pin_election_timeout();
        Ok(driver)
    }

    /// Lets one tick pass.
    pub fn tick(&mut self) {
        // Who votes alone becomes leader at once, and raft wants everything from before on disk by then. Who stands asks
        // for votes once its own is on disk: a slow one mustn't make it stand anew before anybody has heard of it.
        let is_early = self.is_writing()
            && match self.soft().role {
                Role::Follower => self.is_alone(),
                Role::Candidate => true,
                Role::Leader => false,
            };
        if is_early || self.installing.is_some() {
            return;
        }
        self.raw.tick();
        self.pin_election_timeout();
    }

    /// Takes a message that another server sent to this one.
    ///
    /// # Errors
    /// When it could stop or mislead raft; nothing has changed then.
    pub fn step(&mut self, message: Message) -> Result<(), RefusedMessage> {
        gate::admit(&message, &self.raw.raft)?;
        if message.term >= self.term() {
            self.acknowledged.check(&message, self.raw.raft.raft_log.last_index())?;
        }
        self.admitted(message)
    }

    fn admitted(&mut self, message: Message) -> Result<(), RefusedMessage> {
        let from = message.from;
        let stepped = self.raw.step(message);
        self.pin_election_timeout();
        stepped.map_err(|source| RefusedMessage::Step { from, source })
    }

    /// Appends a command to the leader's log; where it went, not that it will commit.
    ///
    /// # Errors
    /// Anywhere but on a leader that takes proposals; nothing was appended.
    pub fn propose(&mut self, command: Vec<u8>) -> Result<Position, ProposeError> {
        self.assert_leader()?;
        if command.is_empty() {
            return Err(ProposeError::Empty);
        }
        let (bytes, max) = (command.len(), self.settings.max_command_bytes);
        if bytes > max {
            return Err(ProposeError::TooLong { bytes, max });
        }
        self.raw.propose(Vec::new(), command).map_err(|_| ProposeError::Busy)?;
        Ok(self.last_position())
    }

    /// Appends a change of the servers to the leader's log; `context` comes out with it when it commits.
    ///
    /// # Errors
    /// When raft or the group could not survive the change now; nothing was appended.
    pub fn propose_membership(&mut self, change: MembershipChange, context: Vec<u8>) -> Result<Position, ProposeError> {
        self.assert_leader()?;
        // Raft would turn the change into an empty entry and say nothing.
        if self.raw.raft.has_pending_conf() {
            return Err(ProposeError::ChangePending);
        }
        match change {
            MembershipChange::Remove(id) if id == self.settings.id => return Err(ProposeError::RemovesLeader { id }),
            MembershipChange::Promote(id) if !self.is_caught_up_learner(id) => {
                return Err(ProposeError::NotCaughtUp { id });
            }
            _ => {}
        }
        self.raw.propose_conf_change(Vec::new(), change.to_raft(context)).map_err(|_| ProposeError::Busy)?;
        Ok(self.last_position())
    }

    /// Asks the leader for an index that is at least every index committed before this call.
    ///
    /// The answer comes in [`Turn::reads`]; it may get lost, so the caller asks again after a while. Many reads can wait
    /// for one answer.
    ///
    /// # Errors
    /// When raft would drop the request at once.
    pub fn read_index(&mut self) -> Result<ReadId, ReadError> {
        if self.soft().leader.is_none() {
            return Err(ReadError::NoLeader);
        }
        if self.soft().role == Role::Leader && !self.raw.raft.commit_to_current_term() {
            return Err(ReadError::LeaderNotReady);
        }
        self.last_read += 1;
        self.raw.read_index(self.read_context(self.last_read));
        Ok(ReadId(self.last_read))
    }

    /// Starts to hand leadership over; proposals are refused until it is done or an election timeout has passed.
    ///
    /// # Errors
    /// When this server doesn't lead. A target that is no voter is ignored.
    pub fn transfer_leader(&mut self, to: RaftId) -> Result<(), ProposeError> {
        self.assert_leader()?;
        if self.membership().voters.contains(&to) {
            self.raw.transfer_leader(to.0);
        }
        Ok(())
    }

    /// Tells the leader that a message to `peer` was lost, so that it probes instead of pipelining.
    pub fn report_unreachable(&mut self, peer: RaftId) {
        self.raw.report_unreachable(peer.0);
    }

    /// Sends heartbeats at once, where this server leads: one that is there again needn't wait to hear what it lacks.
    pub fn call(&mut self) {
        self.raw.ping();
    }

    /// Becomes leader without waiting for a timeout, where no other voter could object; elsewhere nothing happens.
    pub fn campaign_if_alone(&mut self) {
        if self.is_alone() && !self.is_writing() {
            self.raw.campaign().expect("a local message is always taken");
            self.pin_election_timeout();
        }
    }

    /// Whether the leader's announcement of a snapshot is one to fetch it on.
    ///
    /// # Errors
    /// Where [`Self::step_snapshot`] would refuse it now.
    pub fn check_snapshot(&self, announcement: &Message) -> Result<(), RefusedMessage> {
        gate::admit_snapshot(announcement, &self.raw.raft)
    }

    /// Takes the leader's announcement of a snapshot, whose rows are spooled and verified by now.
    ///
    /// Whether it is to be installed, which the next turn says: the log may have got there by itself meanwhile.
    ///
    /// # Errors
    /// As [`Self::step`].
    pub fn step_snapshot(&mut self, message: Message) -> Result<bool, RefusedMessage> {
        gate::admit_snapshot(&message, &self.raw.raft)?;
        self.admitted(message)?;
        Ok(self.raw.raft.raft_log.unstable.snapshot.is_some())
    }

    /// Whether the leader sends `peer` nothing else, since a snapshot was announced to it that it doesn't have yet.
    pub fn awaits_snapshot(&self, peer: RaftId) -> bool {
        self.raw.raft.prs().get(peer.0).is_some_and(|progress| progress.state == ProgressState::Snapshot)
    }

    /// Tells the leader that `peer` won't get the snapshot that was announced. That it has it, it says itself: raft would
    /// try to go on there as soon as it is told by others, and find that `peer` hasn't installed it yet.
    pub fn snapshot_failed(&mut self, peer: RaftId) {
        self.raw.report_snapshot(peer.0, SnapshotStatus::Failure);
        self.pin_election_timeout();
    }

    /// Tells what the store holds durably.
    ///
    /// Returns the first index that is still needed: the log on disk may drop what is before it.
    pub fn checkpointed(&mut self, checkpoint: Checkpoint) -> u64 {
        let behind = checkpoint.position.index + 1;
        let mirror = self.raw.mut_store();
        mirror.checkpointed(checkpoint);
        // The memory may hold less than the store needs after a crash, or nothing where a snapshot waits to be installed.
        mirror.first().min(behind)
    }

    /// Drops the oldest entries of the log in memory: those that are applied here and that no follower needs which answers.
    fn forget_applied(&mut self) {
        let Settings { id, keep_bytes, keep_for_laggards_bytes, .. } = self.settings;
        if self.raw.store().bytes() <= keep_bytes {
            return;
        }
        let applied = self.raw.raft.raft_log.applied;
        let laggard = match self.soft().role {
            Role::Leader => {
                let answer = |(peer, progress): &(&u64, &Progress)| **peer != id.0 && progress.recent_active;
                self.raw.raft.prs().iter().filter(answer).map(|(_, progress)| progress.matched).min()
            }
            Role::Follower | Role::Candidate => None,
        };
        let mirror = self.raw.mut_store();
        mirror.compact(keep_bytes, applied.min(laggard.unwrap_or(applied)));
        mirror.compact(keep_for_laggards_bytes, applied);
    }

    /// Whether a follower needs a snapshot that is newer than the last checkpoint.
    pub fn wants_checkpoint(&self) -> bool {
        self.raw.store().wants_checkpoint()
    }

    /// Tells raft that everything up to `index` has been applied.
    ///
    /// # Panics
    /// When a membership change up to there was not given to [`Self::apply_membership`]: the next change could then overlap it.
    pub fn applied(&mut self, index: u64) {
        let pending = self.unapplied_changes.front();
        assert!(pending.is_none_or(|change| *change > index), "a membership change up to {index} was skipped");
        self.raw.advance_apply_to(index);
        self.forget_applied();
        self.pin_election_timeout();
    }

    /// The servers after the change that committed at `index`; for each one handed out, in order.
    ///
    /// # Errors
    /// When the change doesn't fit the servers; that is so on every server, and leaves them as they were.
    ///
    /// # Panics
    /// When it isn't the next membership change that was handed out.
    pub fn apply_membership(&mut self, index: u64, change: MembershipChange) -> Result<Membership, RefusedChange> {
        let next = self.unapplied_changes.pop_front();
        assert_eq!(next, Some(index), "membership changes are applied in the order in which they were handed out");
        // Raft panics, or blocks the group, under a leader that isn't a member. The entry may come from an earlier leader.
        if change == MembershipChange::Remove(self.settings.id) && self.soft().role == Role::Leader {
            let term = self.raw.raft.term;
            self.raw.raft.become_follower(term, raft::INVALID_ID);
        }
        let applied = self.raw.apply_conf_change(&change.to_raft(Vec::new()));
        self.pin_election_timeout();
        match applied {
            Ok(state) => Ok(Membership::from_raft(&state)),
            Err(source) => Err(RefusedChange { change, source }),
        }
    }

    /// What this server takes itself and others for.
    pub fn soft(&self) -> Soft {
        Soft::of(self.raw.raft.state, self.raw.raft.leader_id)
    }

    pub fn membership(&self) -> Membership {
        Membership::from_raft(&self.raw.raft.prs().conf().to_conf_state())
    }

    pub fn term(&self) -> u64 {
        self.raw.raft.term
    }

    /// Most ticks that come at once, after a pause: what came in meanwhile is to be heard before an election is due.
    pub fn most_ticks_at_once(&self) -> u16 {
        (self.settings.election_ticks / 3).max(1)
    }

    pub fn status(&self) -> Status {
        let raft = &self.raw.raft;
        let mut peers: Vec<Peer> = match self.soft().role {
            Role::Leader => raft.prs().iter().filter(|(id, _)| **id != raft.id).map(|(id, _)| self.peer(*id)).collect(),
            Role::Follower | Role::Candidate => Vec::new(),
        };
        peers.sort_by_key(|peer| peer.id);
        Status {
            soft: self.soft(),
            term: raft.term,
            commit: raft.raft_log.committed,
            applied: raft.raft_log.applied,
            first_index: self.raw.store().first(),
            last_index: raft.raft_log.last_index(),
            membership: self.membership(),
            peers,
        }
    }

    fn peer(&self, id: u64) -> Peer {
        let progress = self.raw.raft.prs().get(id).expect("it was listed");
        let lag = self.raw.raft.raft_log.last_index().saturating_sub(progress.matched);
        Peer {
            id: RaftId(id),
            matched: progress.matched,
            recently_active: progress.recent_active,
            caught_up: progress.recent_active && progress.matched > 0 && lag < CAUGHT_UP_ENTRIES,
        }
    }

    fn is_alone(&self) -> bool {
        self.membership().voters.iter().eq([&self.settings.id])
    }

    /// Whether something isn't on disk yet, be it that no turn has handed it out.
    fn is_writing(&self) -> bool {
        self.in_flight.is_some() || !gate::is_persisted(&self.raw.raft)
    }

    fn is_caught_up_learner(&self, id: RaftId) -> bool {
        self.membership().learners.contains(&id) && self.peer(id.0).caught_up
    }

    fn last_position(&self) -> Position {
        Position { index: self.raw.raft.raft_log.last_index(), term: self.raw.raft.term }
    }

    /// Raft merges equal contexts, so one is unique over servers, runs and requests.
    fn read_context(&self, number: u64) -> Vec<u8> {
        [self.settings.id.0, self.settings.seed, number].map(u64::to_be_bytes).concat()
    }

    fn assert_leader(&self) -> Result<(), ProposeError> {
        match self.soft() {
            Soft { role: Role::Leader, .. } => Ok(()),
            Soft { leader, .. } => Err(ProposeError::NotLeader { leader }),
        }
    }

    fn pin_election_timeout(&mut self) {
        let timeout = self.settings.election_timeout(self.raw.raft.term);
        self.raw.raft.set_randomized_election_timeout(timeout);
    }
}

impl Soft {
    fn of(state: StateRole, leader: u64) -> Self {
        let role = match state {
            StateRole::Follower => Role::Follower,
            StateRole::PreCandidate | StateRole::Candidate => Role::Candidate,
            StateRole::Leader => Role::Leader,
        };
        Self { role, leader: (leader != raft::INVALID_ID).then_some(RaftId(leader)) }
    }
}
