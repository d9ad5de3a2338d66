//! One server: the driver, the state that it applies to, and what it remembers while it leads.

use std::collections::BTreeMap;
use std::convert::Infallible;

use blixard_core::command::{Command, Entry};
use blixard_core::driver::{
    Committed, Content, Driver, LogStore, MembershipChange, Message, Position, ReadId, Recovered, Role, Settings, Write,
};
use blixard_core::lease::{Grants, Liveness};
use blixard_core::membership::{self, Step};
use blixard_core::schedule::schedule;
use blixard_core::state::{Arming, State};
use blixard_core::types::{BootTime, ClusterEpoch, NodeEpoch, NodeId, RaftId, Term, Timestamp};
use raft::eraftpb::{Entry as RaftEntry, HardState};

use super::mutations::Mutation;
use super::world::{HostId, TICK};

/// How often a leader looks, and for how long somebody has to be silent, in ticks: for longer than the shortest lease waits.
const LOOK_TICKS: u64 = 5;
const SILENT_TICKS: u64 = 200;

/// What an epoch of a cluster begins with: where its log starts, by whom, and the state as of then.
pub struct Beginning {
    pub start: Recovered,
    pub state: State,
}

impl Beginning {
    pub fn epoch(&self) -> ClusterEpoch {
        self.state.cluster().expect("there is one").epoch
    }
}

/// Who waits for a round of reads.
pub enum Waiting {
    Beat { from: HostId, request: u64, node: NodeId, epoch: NodeEpoch },
    Barrier { from: HostId, request: u64 },
}

/// What a server says to an agent.
pub enum Answer {
    Granted {
        to: HostId,
        request: u64,
    },
    /// Whatever was applied before the barrier is in the entries up to this one.
    Index {
        to: HostId,
        request: u64,
        index: u64,
    },
}

/// What comes of its turns.
#[derive(Default)]
pub struct Told {
    pub messages: Vec<Message>,
    pub answers: Vec<Answer>,
    pub applied: Vec<(Position, Entry)>,
    /// Servers that the group has removed.
    pub removed: Vec<(u64, RaftId)>,
}

pub struct Server {
    pub id: RaftId,
    pub node: NodeId,
    pub mutation: Mutation,
    pub driver: Driver,
    pub state: State,
    pub applied: Position,
    log: Log,
    reads: BTreeMap<ReadId, Waiting>,
    pub grants: Grants,
    liveness: Liveness,
    /// The term that it was last seen to lead.
    led: u64,
    ticks: u64,
    /// Index of its newest decision.
    decided: u64,
    /// What is committed waits to be applied.
    pub is_behind: bool,
    committed: Vec<Committed>,
    /// With [`Mutation::ForwardsDecisions`], what it has decided.
    pub forwards: Vec<Command>,
}

/// A log on a disk that never fails, and takes no time: what those do is another simulation's.
#[derive(Clone)]
pub struct Log {
    entries: Vec<RaftEntry>,
    hard_state: HardState,
}

impl Log {
    pub fn blank(beginning: &Beginning) -> Self {
        Self { entries: Vec::new(), hard_state: beginning.start.hard_state.clone() }
    }

    /// What its server recovers from it: all is to be applied anew, as the log is never cut.
    pub fn recovered(&self, beginning: &Beginning) -> Recovered {
        let (entries, hard_state) = (self.entries.clone(), self.hard_state.clone());
        Recovered { entries, hard_state, ..beginning.start.clone() }
    }
}

impl LogStore for Log {
    type Error = Infallible;

    fn write(&mut self, entries: &[RaftEntry], hard_state: Option<&HardState>) -> Result<(), Infallible> {
        if let Some(first) = entries.first() {
            self.entries.retain(|entry| entry.index < first.index);
            self.entries.extend_from_slice(entries);
        }
        if let Some(hard_state) = hard_state {
            self.hard_state = hard_state.clone();
        }
        Ok(())
    }

    fn restart(&mut self, _: Position, _: &HardState) -> Result<(), Infallible> {
        unreachable!("no log is ever cut")
    }
}

impl Server {
    /// It goes on from its log.
    pub fn start(
        (id, node): (RaftId, NodeId),
        (seed, mutation): (u64, Mutation),
        log: Log,
        beginning: &Beginning,
    ) -> Self {
        let driver = Driver::new(Settings::new(id, seed), log.recovered(beginning)).expect("its log is whole");
        Self {
            id,
            node,
            mutation,
            driver,
            state: beginning.state.clone(),
            applied: beginning.start.base,
            log,
            reads: BTreeMap::new(),
            grants: Grants::default(),
            liveness: Liveness::default(),
            led: 0,
            ticks: 0,
            decided: 0,
            is_behind: false,
            committed: Vec::new(),
            forwards: Vec::new(),
        }
    }

    /// What its disk holds.
    pub fn log(&self) -> &Log {
        &self.log
    }

    pub fn into_log(self) -> Log {
        self.log
    }

    pub fn leads(&self) -> bool {
        self.driver.soft().role == Role::Leader
    }

    /// Whether it leads, and knows all that its predecessors did.
    fn knows_all(&self) -> bool {
        self.leads() && self.applied.term == self.driver.term()
    }

    pub fn tick(&mut self, now: BootTime) {
        self.ticks += 1;
        self.driver.tick();
        self.begin_to_lead(now);
        if self.knows_all() && self.ticks.is_multiple_of(LOOK_TICKS) {
            self.lead(now);
        }
    }

    fn begin_to_lead(&mut self, now: BootTime) {
        if self.leads() && self.led != self.driver.term() {
            self.led = self.driver.term();
            self.liveness.restart(self.ticks);
            if self.mutation != Mutation::KeepsGrants {
                self.grants.restart(now);
            }
        }
    }

    /// What a leader does now and then.
    fn lead(&mut self, now: BootTime) {
        if self.applied.index < self.decided {
            return;
        }
        let Self { state, liveness, ticks, node, driver, .. } = self;
        let mut decisions = liveness.decide(state, *node, *ticks, SILENT_TICKS);
        let (status, own) = (driver.status(), self.id);
        match membership::next_step(state, own, &status, |_| false) {
            // Refused while another change is under way: it is tried again.
            Some(Step::Change(change)) => drop(driver.propose_membership(change, Vec::new())),
            Some(Step::HandOver(peer)) => drop(driver.transfer_leader(peer)),
            Some(Step::Enlist(node)) => decisions.push(Command::Enlist { node }),
            None => {}
        }
        decisions.extend(membership::gone(state, &status.membership).map(|node| Command::ForgetNode { node }));
        decisions.append(&mut self.over(now));
        decisions.extend(schedule(&self.state));
        for decision in decisions {
            self.decide(decision, now);
        }
    }

    /// What it decides about leases.
    fn over(&mut self, now: BootTime) -> Vec<Command> {
        let Self { state, liveness, ticks, grants, .. } = self;
        let mut decisions = grants.decide(state, |node| liveness.is_silent_for(node, *ticks, SILENT_TICKS), now);
        match self.mutation {
            Mutation::WaitsForTheLeaseOnly => {
                let unended = state
                    .nodes()
                    .iter()
                    .filter_map(|(id, member)| Some((*id, member.lease.epoch, member.lease.unended()?)));
                let is_over = |(node, _, arming): &(NodeId, NodeEpoch, &Arming)| {
                    let lease = u64::try_from(arming.terms.lease().as_micros()).expect("it is short");
                    liveness.is_silent_for(*node, *ticks, lease / TICK)
                };
                decisions.extend(unended.filter(is_over).map(|(node, epoch, _)| Command::Fence { node, epoch }));
            }
            Mutation::SparesWhoHasBooted => {
                let is_armed = |node: &NodeId| state.nodes()[node].lease.arming().is_some();
                decisions.retain(|decision| !matches!(decision, Command::Fence { node, .. } if !is_armed(node)));
            }
            _ => {}
        }
        decisions
    }

    fn decide(&mut self, command: Command, now: BootTime) {
        if self.mutation == Mutation::ForwardsDecisions && matches!(command, Command::Fence { .. }) {
            self.forwards.push(command.clone());
        }
        self.append(command, now);
    }

    fn append(&mut self, command: Command, now: BootTime) {
        let decided_in = Some(Term(self.driver.term()));
        let entry = Entry { at: Timestamp(now.0 / 1_000_000), decided_in, request: None, command };
        if let Ok(position) = self.driver.propose(entry.encode()) {
            self.decided = position.index;
        }
    }

    /// Takes what somebody asks of the cluster; it comes again where that isn't possible now.
    pub fn propose(&mut self, command: Command, now: BootTime) {
        self.begin_to_lead(now);
        if command.is_decision() {
            // With the mutation only: decisions are never forwarded.
            return self.append(command, now);
        }
        let is_waived = match command {
            Command::Arm { .. } => matches!(self.mutation, Mutation::LetsClonesArm | Mutation::TakesAnyArming),
            Command::ConfirmDead { .. } => self.mutation == Mutation::ConfirmsWhoIsGranted,
            _ => false,
        };
        if !self.knows_all() || (!is_waived && self.grants.objection(&self.state, &command, now).is_some()) {
            return;
        }
        let entry = Entry { at: Timestamp(now.0 / 1_000_000), decided_in: None, request: None, command };
        // Where it is refused it comes again.
        let _ = self.driver.propose(entry.encode());
    }

    /// A node says that it is there, and may ask for its lease.
    pub fn beat(
        &mut self,
        (from, request): (HostId, u64),
        node: NodeId,
        epoch: Option<NodeEpoch>,
        now: BootTime,
    ) -> Option<Answer> {
        if !self.leads() {
            return None;
        }
        self.begin_to_lead(now);
        self.liveness.heard(node, self.ticks);
        let epoch = epoch?;
        if self.mutation == Mutation::GrantsWithoutQuorum {
            return self.grant((from, request), node, epoch, now);
        }
        // One that isn't ready to read drops it: it comes again.
        let read = self.driver.read_index().ok()?;
        self.reads.insert(read, Waiting::Beat { from, request, node, epoch });
        None
    }

    fn grant(&mut self, (to, request): (HostId, u64), node: NodeId, epoch: NodeEpoch, now: BootTime) -> Option<Answer> {
        self.begin_to_lead(now);
        let is_ready = self.knows_all() || (self.leads() && self.mutation == Mutation::GrantsBeforeItKnowsAll);
        let epoch = match self.state.nodes().get(&node) {
            Some(member) if self.mutation == Mutation::GrantsAnyEpoch => member.lease.epoch,
            _ => epoch,
        };
        let mut granted = is_ready && self.grants.grant(&self.state, node, epoch, now).is_ok();
        if self.mutation == Mutation::GrantsAfterItsMark {
            granted = is_ready && Grants::default().grant(&self.state, node, epoch, now).is_ok();
        }
        granted.then_some(Answer::Granted { to, request })
    }

    /// An agent wants to know what it has to apply before it does anything.
    pub fn barrier(&mut self, from: HostId, request: u64) {
        if let Ok(read) = self.driver.read_index() {
            self.reads.insert(read, Waiting::Barrier { from, request });
        }
    }

    /// All that is to be done now.
    pub fn turns(&mut self, now: BootTime) -> Told {
        let mut told = Told::default();
        while let Some(turn) = self.driver.turn() {
            assert!(turn.install.is_none(), "no log is ever cut");
            told.messages.extend(turn.send);
            let mut writes: Vec<Write> = turn.write.into_iter().collect();
            self.committed.extend(turn.committed);
            if self.apply(&mut told) {
                // A start that didn't know of it would count on the voters of before.
                writes.push(self.driver.record_commit());
            }
            if let Ok(Some(durable)) = Write::write_all(writes, &mut self.log) {
                told.messages.extend(self.driver.persisted(durable));
            }
            for (read, index) in turn.reads {
                match self.reads.remove(&read) {
                    Some(Waiting::Beat { from, request, node, epoch }) => {
                        told.answers.extend(self.grant((from, request), node, epoch, now));
                    }
                    Some(Waiting::Barrier { from, request }) => {
                        told.answers.push(Answer::Index { to: from, request, index });
                    }
                    None => {}
                }
            }
        }
        told
    }

    /// Whether the servers have changed.
    fn apply(&mut self, told: &mut Told) -> bool {
        let mut has_changed = false;
        let committed = if self.is_behind { Vec::new() } else { std::mem::take(&mut self.committed) };
        for committed in committed {
            let index = committed.position.index;
            match committed.content {
                Content::Membership { change, .. } => {
                    let is_done = self.driver.apply_membership(index, change).is_ok();
                    has_changed |= is_done;
                    if let MembershipChange::Remove(raft) = change
                        && is_done
                    {
                        self.state.apply_removal(index, raft);
                        told.removed.push((index, raft));
                    }
                }
                Content::Command(bytes) => {
                    let entry = Entry::decode(&bytes).expect("it was encoded here");
                    self.mutation.apply(&mut self.state, committed.position, &entry);
                    told.applied.push((committed.position, entry));
                }
                Content::Nothing => {}
            }
            self.applied = committed.position;
            self.driver.applied(index);
        }
        has_changed
    }
}
