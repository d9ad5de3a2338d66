//! raft's turns: write, send, apply, answer.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use blixard_core::command::{Answer, DecodeError, Entry, Reply};
use blixard_core::driver::{
    Checkpoint, Committed, Content, Durable, Fate, LostLog, MembershipChange, Message, Position, ProposeError,
};
use blixard_core::state::{Change, Diverged, RowError, State, Table};
use blixard_core::types::{Level, NodeId, Term};

use super::known::Known;
use super::reads::Read;
use super::{Attempt, Node, Waiting};
use crate::log::LogError;
use crate::memory;
use crate::store::StoreError;

/// A checkpoint of the store at least this often, in time and in bytes of entries, so that a crash replays little.
const CHECKPOINT_TICKS: u64 = 500;
const CHECKPOINT_BYTES: usize = 12 << 20;

/// What stops a node; it acknowledges nothing any more.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error(transparent)]
    WriteLog(LogError),
    #[error(transparent)]
    WriteStore(StoreError),
    #[error("cannot keep the leader's snapshot beside the store, and without it this node learns nothing new")]
    KeepSnapshot(#[source] StoreError),
    #[error("cannot go on at log entry {index}")]
    Decode { index: u64, source: DecodeError },
    #[error("cannot go on from the leader's snapshot")]
    Rows(#[source] RowError),
    #[error(
        "cannot go on: the cluster is at feature level {level}, and this agent understands {understands} at most: the \
         cluster's data was written by a newer agent; upgrade this one"
    )]
    TooOld { level: Level, understands: Level },
    #[error("cannot go on")]
    Diverged(#[source] Diverged),
    #[error("cannot go on")]
    LostLog(#[source] LostLog),
    #[error(
        "this host, node {own}, was removed from the cluster, as node {by} says; to let it join again, as a new node, \
         move its data directory away"
    )]
    Removed { own: NodeId, by: NodeId },
    #[error(
        "this host, node {own}, is there twice, as node {by} says: another agent runs elsewhere from a copy of its data; \
         move one of the two data directories away, and that host joins as a new node; in the other one remove \
         raft/machine, and it goes on as it was"
    )]
    Superseded { own: NodeId, by: NodeId },
}

/// What a batch of entries has changed.
#[derive(Default)]
struct Changed {
    /// What the keeper hasn't heard of yet.
    rows: Vec<Change>,
    anything: bool,
    /// Who is a member, or where.
    members: bool,
    /// Who is in the raft group, last by this entry.
    servers: Option<u64>,
    /// What is placed here.
    assignment: bool,
    /// On which nodes what is placed has changed.
    nodes: BTreeSet<NodeId>,
}

impl Changed {
    fn take(&mut self, rows: Vec<Change>) {
        self.members |= rows.iter().any(|change| change.table == Table::Nodes);
        self.anything |= !rows.is_empty();
        self.rows.extend(rows);
    }
}

/// A proposal that is decided, and what to say of it.
type Decided = (Waiting<Answer>, Fate, Answer);

impl Node {
    /// Does all that raft wants done, in raft's order: written before it is acknowledged, acknowledged before it is
    /// applied.
    pub(super) async fn turns(&mut self) -> Result<(), NodeError> {
        self.ask_for_reads();
        loop {
            if let Some(install) = self.installing.take() {
                if !self.writer.is_idle() || !self.keeper.is_idle() {
                    self.begin_checkpoint();
                    self.installing = Some(install);
                    return self.write().await.map(|_| ());
                }
                self.install(install)?;
            }
            while let Some(turn) = self.driver.turn() {
                self.send(turn.send);
                self.note_leader();
                if let Some(soft) = turn.soft {
                    self.note_soft(soft);
                }
                turn.write.into_iter().for_each(|write| self.writer.add(write));
                self.apply(turn.committed)?;
                for (read, index) in turn.reads {
                    self.reads.confirmed(read, index);
                }
                self.serve_reads();
                self.ask_for_reads();
                if turn.install.is_some() {
                    self.installing = turn.install;
                    break;
                }
            }
            if !self.write().await? && self.installing.is_none() {
                return Ok(());
            }
        }
    }

    /// Writes what waits; whether it is on disk already.
    async fn write(&mut self) -> Result<bool, NodeError> {
        // Others' proposals can go to the followers while the first is written here.
        let is_busy = self.proposals.len() > 1;
        if self.writer.will_block(is_busy) && std::mem::take(&mut self.has_sent) {
            // The followers write at the same time: what was handed to the transport leaves before.
            tokio::task::yield_now().await;
        }
        let durable = self.writer.write(is_busy)?;
        let is_done = durable.is_some();
        self.written(durable);
        Ok(is_done)
    }

    /// Says what may be said now that it is on disk.
    pub(super) fn written(&mut self, durable: Option<Durable>) {
        let Some(durable) = durable else { return };
        self.keeper.recorded(durable.commit());
        let messages = self.driver.persisted(durable);
        self.send(messages);
        let on_disk = self.driver.commit_on_disk().index();
        if self.unpublished.take_if(|index| *index <= on_disk).is_some() {
            let known = self.known.clone();
            self.publish_directory(&known.look().state);
        }
    }

    fn send(&mut self, messages: Vec<Message>) {
        self.offer_snapshots(&messages);
        self.has_sent |= !messages.is_empty();
        self.transport.send(messages);
    }

    fn apply(&mut self, committed: Vec<Committed>) -> Result<(), NodeError> {
        let Some(last) = committed.last().map(|entry| entry.position) else { return Ok(()) };
        let known = self.known.clone();
        let mut known = known.change();
        let servers = self.driver.membership();
        let applied = self.apply_to(&mut known, committed);
        let (changed, decided) = applied.inspect_err(|_| known.has_ended = true)?;
        self.set_applied(last);
        known.standing.applied = last.index;
        let servers = Some(self.driver.membership()).filter(|now| *now != servers);
        let is_changed = servers.is_some() || changed.anything;
        if let Some(servers) = servers {
            known.standing.set_servers(servers);
        }
        drop(known);
        self.driver.applied(self.applied);
        if changed.members || changed.servers.is_some() {
            // A start that didn't know of it would count on the voters of before.
            let record = self.driver.record_commit();
            self.writer.add(record);
        }
        if changed.members {
            self.lead.look_at = self.ticks;
            self.unpublished = Some(self.applied);
            self.followers.tell_all();
        } else {
            self.followers.tell(&changed.nodes);
        }
        if changed.assignment {
            self.news.assignment.send_modify(|revision| *revision += 1);
        }
        if is_changed {
            self.lead.dirty = true;
            self.changed();
        }
        self.keeper.add(changed.rows);
        for (waiting, fate, answer) in decided {
            match fate {
                Fate::Applied => waiting.answer(answer),
                Fate::Superseded | Fate::Emptied => waiting.fail(Attempt::Lost),
            }
        }
        Ok(())
    }

    /// Nobody looks meanwhile.
    fn apply_to(&mut self, known: &mut Known, committed: Vec<Committed>) -> Result<(Changed, Vec<Decided>), NodeError> {
        let (mut changed, mut decided) = (Changed::default(), Vec::new());
        self.applied_bytes += committed.iter().map(Committed::bytes).sum::<usize>();
        for entry in committed {
            let index = entry.position.index;
            let done = Answer { index, reply: Reply::Done };
            let answer = match &entry.content {
                Content::Nothing => done,
                Content::Command(bytes) => self.apply_command(&mut known.state, entry.position, bytes, &mut changed)?,
                Content::Membership { change, .. } => match self.driver.apply_membership(index, *change) {
                    Ok(_) => {
                        tracing::info!(index, change = %change, "the servers have changed");
                        changed.servers = Some(index);
                        if let MembershipChange::Remove(raft) = *change {
                            changed.take(known.state.apply_removal(index, raft).changes);
                        }
                        done
                    }
                    Err(error) => Answer { index, reply: Reply::Refused(crate::error_chain(&error)) },
                },
            };
            let settled = self.proposals.settle(&entry).into_iter();
            decided.extend(settled.map(|(waiting, fate)| (waiting, fate, answer.clone())));
        }
        Ok((changed, decided))
    }

    fn apply_command(
        &mut self,
        state: &mut State,
        position: Position,
        bytes: &[u8],
        changed: &mut Changed,
    ) -> Result<Answer, NodeError> {
        let Position { index, term } = position;
        let entry = Entry::decode(bytes).map_err(|source| NodeError::Decode { index, source })?;
        let outcome = state.apply(index, Term(term), &entry);
        tracing::trace!(index, term, command = ?entry.command, reply = ?outcome.answer.reply, "applied");
        let touches = |table| outcome.changes.iter().any(|change| change.table == table);
        let (is_checked, is_judged) = (touches(Table::Check), touches(Table::Cluster) || touches(Table::WorkerStatus));
        changed.take(outcome.changes);
        if is_checked || is_judged {
            self.judge(state)?;
        }
        if is_checked && state.check().is_some_and(|check| check.at == index) {
            self.keeper.add(std::mem::take(&mut changed.rows));
            self.mark(state, position);
        }
        changed.assignment |= outcome.nodes.contains(&self.own);
        changed.nodes.extend(outcome.nodes);
        Ok(outcome.answer)
    }

    pub(super) fn checkpoint_if_due(&mut self) {
        // What a start has replayed, the next needn't replay again.
        let due = self.checkpointed_at.is_none_or(|at| self.ticks.saturating_sub(at) >= CHECKPOINT_TICKS)
            || self.applied_bytes >= CHECKPOINT_BYTES
            || self.driver.wants_checkpoint()
            || self.keeper.has_cut()
            || !self.awaited.is_empty()
            || self.closing;
        if self.held() < self.applied && due {
            if self.keeper.is_idle() {
                let known = self.known.clone();
                self.cut_checkpoint(&known.look().state);
            }
            self.begin_checkpoint();
        }
    }

    /// Takes up what the store holds since before this start.
    pub(super) fn begin(&mut self) -> Result<(), NodeError> {
        let store = self.keeper.store().expect("nothing is under way yet");
        let reader = store.reader().map_err(NodeError::WriteStore)?;
        if let Some(reader) = reader.filter(|reader| reader.checkpoint().position.index > 0) {
            self.driver.checkpointed(reader.checkpoint().clone());
            self.snapshots.latest = Some(Arc::new(reader));
        }
        // All of the log and of the rows was read.
        memory::trim();
        self.judge(&self.known.look().state)
    }

    /// Makes a checkpoint of everything applied so far.
    pub(super) fn cut_checkpoint(&mut self, state: &State) {
        (self.checkpointed_at, self.applied_bytes) = (Some(self.ticks), 0);
        self.keeper.add(vec![state.sessions_row()]);
        self.keeper.cut(Checkpoint { position: self.position(), membership: self.driver.membership() });
    }

    /// Begins to write the checkpoint that was made, unless one is under way.
    fn begin_checkpoint(&mut self) {
        if self.keeper.begin() {
            let record = self.driver.record_commit();
            self.writer.add(record);
        }
    }

    /// The store holds a checkpoint: the log may forget what is before it.
    pub(super) fn kept(&mut self, kept: super::disk::Kept) -> Result<(), NodeError> {
        let reader = self.keeper.back(kept)?;
        let is_awaited = self.driver.wants_checkpoint();
        let needed = self.driver.checkpointed(reader.checkpoint().clone());
        if is_awaited {
            // Raft tries again when the follower answers.
            self.driver.call();
        }
        self.writer.release_before(needed);
        let reader = Arc::new(reader);
        self.hash_if_marked(&reader);
        self.snapshots.latest = Some(reader);
        self.serve_checkpoints();
        Ok(())
    }

    /// Index of the last entry whose rows are in the store's tables.
    fn held(&self) -> u64 {
        self.snapshots.latest.as_ref().map_or(0, |reader| reader.checkpoint().position.index)
    }

    /// Whether everything applied is in the store, and nothing is under way.
    pub(super) fn is_checkpointed(&self) -> bool {
        self.held() == self.applied && self.keeper.is_idle() && self.writer.is_idle()
    }

    pub(super) fn set_applied(&mut self, position: Position) {
        (self.applied, self.applied_term) = (position.index, Term(position.term));
        self.published.store(position.index, Ordering::Relaxed);
    }

    fn position(&self) -> Position {
        Position { index: self.applied, term: self.applied_term.0 }
    }

    fn serve_reads(&mut self) {
        for read in self.reads.served(self.applied).collect::<Vec<_>>() {
            match read {
                Read::Barrier(waiting) => waiting.answer(()),
                Read::Heartbeats(heartbeats) => self.grant(heartbeats),
            }
        }
    }

    fn ask_for_reads(&mut self) {
        self.reads.ask(self.ticks, || self.driver.read_index());
    }
}

impl Attempt {
    pub(super) fn of(error: &ProposeError) -> Self {
        match error {
            ProposeError::NotLeader { leader } => Self::NotLeader(*leader),
            _ => Self::Lost,
        }
    }
}
