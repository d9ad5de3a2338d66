//! One server: the driver, and around it what the agent's event loop does, on disks that take their time.

use std::collections::BTreeMap;

use blixard_core::driver::{
    Checkpoint, Committed, Content, Driver, Fate, Install, LogStore, Membership, MembershipChange, Message, Position,
    Proposals, ReadId, Recovered, RefusedMessage, Role, Settings, Status, Write, behind_snapshot,
};
use blixard_core::state;
use blixard_core::types::{NodeId, RaftId};

use super::cluster::{self, Watch};
use super::disk::{Failed, Flaw, Late, LogDisk, Promise, State, StoreDisk};
use super::image::Image;
use super::mutations::Mutation;
use super::speakers::{Speakers, Verdict};
use super::told::Told;
use super::world::{MILLISECOND, TICK, Time};

/// Entries between two checkpoints.
const CHECKPOINT_EVERY: u64 = 8;
/// How much longer a checkpoint takes that puts the rows of a snapshot into their tables.
const FILLING: Time = 400 * MILLISECOND;

pub struct Server {
    pub id: RaftId,
    /// The member whose server it is.
    pub member: NodeId,
    pub mutation: Mutation,
    founding: Membership,
    /// Of all starts there were, which one this is; no other process has it.
    pub boot: u64,
    /// Which of all disks it is on.
    pub disk: u64,
    pub log: LogDisk,
    pub store: StoreDisk,
    node: Option<Node>,
    /// Most that a sync takes, over what it takes anyway.
    pub sync_time: Time,
    pub clock_percent: u64,
    pub paused_until: Time,
    /// What became of the proposals that were made here.
    pub fates: Vec<(Vec<u8>, Fate)>,
}

/// What a server loses when it crashes.
struct Node {
    driver: Driver,
    state: State,
    applied: Position,
    waiting: Vec<Write>,
    writing: Option<Vec<Write>>,
    /// With [`Mutation::SpeaksBeforeItWrites`], what the log is still to be told.
    late: Vec<Late>,
    /// What it must stop for.
    failed: Option<Failed>,
    checkpointing: Option<(Checkpoint, State)>,
    stage: Stage,
    incoming: Option<(Checkpoint, State)>,
    installing: Option<Install>,
    proposals: Proposals<Vec<u8>>,
    /// What was acknowledged somewhere when each read was asked for.
    reads: BTreeMap<ReadId, u64>,
    told: Told,
    watch: Watch,
    speakers: Speakers,
    /// Index of the last change of the members.
    members_at: u64,
    /// Index of the last checkpoint that others can be given; none where a snapshot has overtaken the store.
    held: Option<u64>,
}

/// How far a checkpoint is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The log is to hold its commit index first.
    Recording,
    Recorded,
    Storing,
}

impl Server {
    /// Of a group that began with these servers and this state.
    pub fn blank(
        (id, member): (RaftId, NodeId),
        founding: &Membership,
        cluster: &state::State,
        mutation: Mutation,
    ) -> Self {
        let flaw = match mutation {
            Mutation::ForgetsSyncs => Flaw::ForgetsSyncs,
            Mutation::ForgetsVotes => Flaw::ForgetsVotes,
            Mutation::ForgetsRestarts => Flaw::ForgetsRestarts,
            _ => Flaw::None,
        };
        Self {
            id,
            member,
            mutation,
            founding: founding.clone(),
            boot: 0,
            disk: 0,
            log: LogDisk { flaw, ..LogDisk::default() },
            store: StoreDisk::founded(cluster),
            node: None,
            sync_time: 0,
            clock_percent: 100,
            paused_until: 0,
            fates: Vec::new(),
        }
    }

    pub fn start(&mut self, seed: u64, boot: u64) {
        self.boot = boot;
        let StoreDisk { checkpoint, state, installed, .. } = self.store.clone();
        let at = checkpoint.position;
        let image = &self.log.durable;
        let behind = behind_snapshot(at, image.term_at(at.index), &image.hard_state);
        if let Some(hard_state) = behind.filter(|_| installed) {
            self.log.restart(at, &hard_state).expect("a disk that fails is a later one's");
        }
        let image = self.log.durable.clone();
        let forgets = at.index == 0 || self.mutation == Mutation::ForgetsChanges;
        let membership = if forgets { self.founding.clone() } else { checkpoint.membership.clone() };
        let recovered = Recovered {
            base: image.base,
            entries: image.entries,
            hard_state: image.hard_state,
            membership,
            applied: at.index,
        };
        // Small, so that logs are cut and snapshots needed.
        let keep = Settings { keep_bytes: 1_500, keep_for_laggards_bytes: 6_000, ..Settings::new(self.id, 0) };
        let settings = Settings { seed: seed ^ (self.boot << 32), max_committed_bytes: 600, ..keep };
        let mut driver = Driver::new(settings, recovered).expect("its own log and store fit each other");
        if at.index > 0 && !installed {
            driver.checkpointed(checkpoint);
        }
        self.node = Some(Node {
            driver,
            state,
            applied: at,
            waiting: Vec::new(),
            writing: None,
            late: Vec::new(),
            failed: None,
            checkpointing: None,
            stage: Stage::Recording,
            incoming: None,
            installing: None,
            proposals: Proposals::default(),
            reads: BTreeMap::new(),
            told: Told::default(),
            watch: Watch::default(),
            speakers: Speakers::default(),
            members_at: at.index,
            held: (!installed).then_some(at.index),
        });
    }

    /// What its disks hold.
    pub fn disks(&self) -> (Image, StoreDisk) {
        (self.log.durable.clone(), self.store.image())
    }

    /// It on another disk, which holds this.
    #[must_use]
    pub fn on_disk(self, disk: u64, (log, store): (Image, StoreDisk)) -> Self {
        let log = LogDisk { live: log.clone(), durable: log, ..self.log };
        Self { disk, log, store, ..self }
    }

    /// Everything in memory goes; of a write that is under way, all is kept or nothing.
    pub fn crash(&mut self, keeps_write: bool) {
        let Some(mut node) = self.node.take() else { return };
        if keeps_write && let Some(writes) = node.writing.take() {
            // Whether it succeeds makes no difference any more.
            let _ = Write::write_all(writes, &mut self.log);
        }
        self.log.crash();
        self.store.crash();
    }

    pub fn is_up(&self) -> bool {
        self.node.is_some()
    }

    pub fn status(&self) -> Status {
        self.node.as_ref().expect("it runs").driver.status()
    }

    /// Whether somebody needs a snapshot that it can't offer yet.
    pub fn wants_checkpoint(&self) -> bool {
        self.node.as_ref().expect("it runs").driver.wants_checkpoint()
    }

    /// The members, as of what it has applied.
    pub fn cluster(&self) -> &state::State {
        &self.node.as_ref().expect("it runs").state.cluster
    }

    /// The index up to which it has applied everything, and the servers as of then; not while a snapshot is about to
    /// take its place.
    pub fn servers(&self) -> Option<(u64, Membership)> {
        let node = self.node.as_ref().filter(|node| node.installing.is_none())?;
        Some((node.applied.index, node.driver.membership()))
    }

    /// The members, and what it heard of them.
    pub fn watched(&mut self) -> (&state::State, &mut Watch) {
        let node = self.node();
        (&node.state.cluster, &mut node.watch)
    }

    /// Whether it tells this server of a node that it is none any more.
    pub fn dismisses(&self, member: NodeId, id: RaftId) -> bool {
        let node = self.node.as_ref().expect("it runs");
        let is_on_disk = node.driver.commit_on_disk().index() >= node.members_at;
        let is_sure = is_on_disk || self.mutation == Mutation::DismissesEarly;
        is_sure && node.state.cluster.is_dismissed(member, id)
    }

    /// Whether it leads, knows all that its predecessors did, and is to decide now.
    pub fn decides(&mut self) -> bool {
        self.node.as_mut().is_some_and(|node| {
            let is_due = node.watch.tick(node.driver.soft().role == Role::Leader);
            is_due && node.applied.term == node.driver.term()
        })
    }

    /// The commands that it has applied, in order.
    pub fn commands(&self) -> Vec<Vec<u8>> {
        self.node.as_ref().expect("it runs").state.applied.values().cloned().collect()
    }

    pub fn driver(&mut self) -> &mut Driver {
        &mut self.node().driver
    }

    fn node(&mut self) -> &mut Node {
        self.node.as_mut().expect("it runs")
    }

    /// Lets its clock tick, and again where that is `late`, as often as the agent does after a pause; how often it did.
    pub fn tick(&mut self, late: Time) -> u64 {
        let driver = self.driver();
        let ticks = (1 + late / TICK).min(driver.most_ticks_at_once().into());
        (0..ticks).for_each(|_| driver.tick());
        ticks
    }

    /// Whether it takes a message that this process has sent then.
    pub fn judge(&mut self, from: RaftId, boot: u64, sent: Time, now: Time) -> Verdict {
        let hears_both = self.mutation == Mutation::HearsBoth;
        if hears_both { Verdict::Taken } else { self.node().speakers.judge(from, boot, sent, now) }
    }

    pub fn step(&mut self, message: Message) {
        let mutation = self.mutation;
        let node = self.node();
        node.watch.heard(RaftId(message.from), &node.state.cluster);
        let stepped = node.driver.step(message);
        if matches!(stepped, Err(RefusedMessage::LostLog(_))) {
            node.failed = (mutation != Mutation::GoesOnWithoutItsLog).then_some(Failed::LostLog);
        } else if let Err(error) = stepped {
            assert!(
                mutation != Mutation::None || error.may_be_late(),
                "what an honest server sent was not taken: {error}"
            );
        }
    }

    pub fn propose(&mut self, command: &[u8]) -> bool {
        let mutation = self.mutation;
        let node = self.node();
        let Ok(position) = node.driver.propose(command.to_vec()) else { return false };
        node.proposals.track(position, command.to_vec());
        if mutation == Mutation::AcknowledgesAtAppend {
            node.told.acknowledged.push((command.to_vec(), position));
        }
        true
    }

    pub fn read(&mut self, known: u64) {
        let mutation = self.mutation;
        let node = self.node();
        if mutation == Mutation::ReadsWithoutQuorum {
            if node.driver.soft().role == Role::Leader {
                node.told.reads.push((node.driver.status().commit, known));
            }
        } else if let Ok(read) = node.driver.read_index() {
            node.reads.insert(read, known);
        }
    }

    /// A write of the log is on disk, or has failed.
    pub fn log_done(&mut self) {
        let result = self.write_log();
        self.node().failed = result.err();
    }

    fn write_log(&mut self) -> Result<(), Failed> {
        let Self { log, node, .. } = self;
        let node = node.as_mut().expect("it runs");
        for late in std::mem::take(&mut node.late) {
            match late {
                Late::Write(entries, hard_state) => log.write(&entries, hard_state.as_ref())?,
                Late::Restart(base, hard_state) => log.restart(base, &hard_state)?,
            }
        }
        let writes = node.writing.take().unwrap_or_default();
        if let Some(durable) = Write::write_all(writes, log)? {
            node.persisted(durable);
        }
        Ok(())
    }

    /// A checkpoint of the store is on disk, or has failed.
    pub fn store_done(&mut self) {
        let Self { log, store, node, .. } = self;
        let node = node.as_mut().expect("it runs");
        let (checkpoint, state) = node.checkpointing.take().expect("one was under way");
        let failed = store.checkpoint(checkpoint.clone(), state).err();
        if failed.is_some() && self.mutation != Mutation::PassesOverFailures {
            node.failed = failed;
            return;
        }
        node.held = Some(checkpoint.position.index);
        let needed = node.driver.checkpointed(checkpoint);
        let cuts_too_much = self.mutation == Mutation::CutsTooMuch;
        log.live.release_before(if cuts_too_much { node.applied.index + 1 } else { needed });
        log.sync();
    }

    /// A snapshot is here, whole.
    pub fn fetched(&mut self, message: Message, checkpoint: Checkpoint, state: State) {
        let node = self.node();
        if node.installing.is_some() {
            return;
        }
        if matches!(node.driver.step_snapshot(message), Ok(true)) {
            node.incoming = Some((checkpoint, state));
        }
    }

    /// All that is to be done now; what takes time is begun.
    ///
    /// # Errors
    /// When a disk has failed: it must stop, and nothing more is done.
    pub fn turns(&mut self) -> Result<Told, Failed> {
        let mutation = self.mutation;
        let Self { store, node, fates, .. } = self;
        let Some(node) = node.as_mut() else { return Ok(Told::default()) };
        if let Some(failed) = node.failed {
            return Err(failed);
        }
        loop {
            if let Some(install) = node.installing.take() {
                if node.writing.is_some() || !node.waiting.is_empty() || node.checkpointing.is_some() {
                    node.installing = Some(install);
                    break;
                }
                node.install(install, store, mutation)?;
            }
            let Some(turn) = node.driver.turn() else { break };
            node.told.messages.extend(turn.send);
            node.told.soft = turn.soft.or(node.told.soft);
            node.waiting.extend(turn.write);
            for (read, index) in turn.reads {
                if let Some(known) = node.reads.remove(&read) {
                    node.told.reads.push((index, known));
                }
            }
            node.apply(turn.committed, mutation);
            node.installing = turn.install;
        }
        node.begin_checkpoint(mutation);
        let mut told = std::mem::take(&mut node.told);
        fates.append(&mut told.fates);
        if node.writing.is_none() && !node.waiting.is_empty() {
            let mut writes = std::mem::take(&mut node.waiting);
            if mutation == Mutation::SpeaksBeforeItWrites {
                let durable = Write::write_all(std::mem::take(&mut writes), &mut Promise(&mut node.late));
                node.persisted(durable.expect("a promise is always given").expect("there were writes"));
                told.messages.append(&mut node.told.messages);
            }
            node.writing = Some(writes);
            told.log_takes = Some(100 + self.sync_time);
        }
        if node.checkpointing.is_some() && node.stage == Stage::Recorded {
            node.stage = Stage::Storing;
            let filling = if store.installed { FILLING } else { 0 };
            told.store_takes = Some(MILLISECOND + self.sync_time * 2 + filling);
        }
        Ok(told)
    }
}

impl Node {
    fn persisted(&mut self, durable: blixard_core::driver::Durable) {
        let commit = durable.commit().index();
        self.told.messages.extend(self.driver.persisted(durable));
        let is_recorded = |(checkpoint, _): &(Checkpoint, State)| checkpoint.position.index <= commit;
        if self.stage == Stage::Recording && self.checkpointing.as_ref().is_some_and(is_recorded) {
            self.stage = Stage::Recorded;
        }
    }

    fn apply(&mut self, committed: Vec<Committed>, mutation: Mutation) {
        for entry in committed {
            let (index, mut is_recorded) = (entry.position.index, false);
            assert_eq!(index, self.applied.index + 1, "an entry was skipped or came twice");
            match &entry.content {
                Content::Membership { change, .. } => {
                    // Servers refuse the same ones.
                    let is_done = self.driver.apply_membership(index, *change).is_ok();
                    is_recorded |= is_done;
                    if let MembershipChange::Remove(raft) = *change
                        && is_done
                    {
                        self.members_at = index;
                        self.state.cluster.apply_removal(index, raft);
                    }
                }
                Content::Command(command) => {
                    if cluster::apply(&mut self.state.cluster, entry.position, command) {
                        self.members_at = index;
                        let servers = self.state.cluster.servers();
                        self.told.enlisted = servers.filter_map(|(id, node)| Some((*id, node.raft?))).collect();
                    }
                    self.state.applied.insert(index, command.clone());
                }
                Content::Nothing => {}
            }
            for (command, fate) in self.proposals.settle(&entry) {
                self.told.fates.push((command.clone(), fate));
                let is_done = match fate {
                    Fate::Applied => mutation != Mutation::AcknowledgesAtAppend,
                    Fate::Superseded => mutation == Mutation::SkipsTheTerm,
                    Fate::Emptied => false,
                };
                if is_done {
                    self.told.acknowledged.push((command, entry.position));
                }
            }
            self.applied = entry.position;
            self.driver.applied(index);
            self.told.committed.push(entry);
            if is_recorded || self.members_at == index {
                self.waiting.push(self.driver.record_commit());
            }
        }
    }

    fn begin_checkpoint(&mut self, mutation: Mutation) {
        let applied = self.applied.index;
        let is_behind = self.held.is_none_or(|held| held < applied);
        let is_due = self.held.is_none_or(|held| applied >= held + CHECKPOINT_EVERY) || self.driver.wants_checkpoint();
        if !is_behind || !is_due || self.checkpointing.is_some() || self.installing.is_some() {
            return;
        }
        let checkpoint = Checkpoint { position: self.applied, membership: self.driver.membership() };
        self.checkpointing = Some((checkpoint, self.state.clone()));
        if mutation == Mutation::StoresBeforeItLogs {
            self.stage = Stage::Recorded;
        } else {
            self.stage = Stage::Recording;
            self.waiting.push(self.driver.record_commit());
        }
    }

    fn install(&mut self, install: Install, store: &mut StoreDisk, mutation: Mutation) -> Result<(), Failed> {
        let (checkpoint, state) = self.incoming.take().expect("raft was told of it");
        assert_eq!(checkpoint, install.checkpoint);
        store.install(checkpoint.clone(), state.clone(), mutation == Mutation::ForgetsSnapshots)?;
        self.waiting.push(install.installed(&checkpoint));
        self.applied = checkpoint.position;
        self.held = None;
        self.proposals.pass_over(checkpoint.position.index);
        if mutation == Mutation::OffersBeforeItCanRead {
            self.driver.checkpointed(checkpoint);
        }
        self.told.installed = Some(state.clone());
        self.state = state;
        Ok(())
    }
}
