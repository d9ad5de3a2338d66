//! raft's turns: write, send, apply, answer.

use std::sync::Arc;

use blixard_core::command::{DecodeError, Entry, Reply};
use blixard_core::driver::{Committed, Content, Fate, Membership, ProposeError};
use blixard_core::state::{Change, Table};
use blixard_core::types::Term;

use super::{Attempt, Node};
use crate::log::LogError;
use crate::store::{Durability, StoreError};

/// A durable commit of the store at least this often, so that a crash replays little.
const DURABLE_TICKS: u64 = 500;

/// What stops a node; it acknowledges nothing any more.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error("cannot go on: the log could not be written")]
    WriteLog(#[source] LogError),
    #[error("cannot go on: the store could not be written")]
    WriteStore(#[source] StoreError),
    #[error("cannot go on at log entry {index}")]
    Decode { index: u64, source: DecodeError },
}

impl Node {
    /// Does all that raft wants done, in raft's order: written before it is acknowledged, acknowledged before it is
    /// applied.
    pub(super) fn turns(&mut self) -> Result<(), NodeError> {
        self.ask_for_reads();
        while let Some(mut turn) = self.driver.turn() {
            let soft = turn.soft;
            self.transport.send(std::mem::take(&mut turn.send_now));
            let durable = turn.write_to(&mut self.log).map_err(NodeError::WriteLog)?;
            let done = durable.advance();
            self.transport.send(done.send);
            if let Some(soft) = soft {
                self.note_soft(soft);
            }
            self.apply(done.committed)?;
            for (read, index) in done.reads {
                if self.asked.as_ref().is_some_and(|(asked, ..)| *asked == read) {
                    let (_, _, waiting) = self.asked.take().expect("it was there just now");
                    self.unserved.entry(index).or_default().extend(waiting);
                }
            }
            self.serve_reads();
            self.ask_for_reads();
        }
        Ok(())
    }

    fn apply(&mut self, committed: Vec<Committed>) -> Result<(), NodeError> {
        let Some(last) = committed.last().map(|entry| entry.position) else { return Ok(()) };
        let (mut changes, mut answers) = (Vec::new(), Vec::new());
        let servers = self.driver.membership();
        for entry in committed {
            let index = entry.position.index;
            let reply = match &entry.content {
                Content::Nothing => Reply::Done,
                Content::Command(bytes) => self.apply_command(index, entry.position.term, bytes, &mut changes)?,
                Content::Membership { change, .. } => match self.driver.apply_membership(index, *change) {
                    Ok(_) => {
                        tracing::info!(index, change = %change, "the servers have changed");
                        Reply::Done
                    }
                    Err(error) => Reply::Refused(crate::error_chain(&error)),
                },
            };
            answers.extend(
                self.proposals.settle(&entry).into_iter().map(|(waiting, fate)| (waiting, fate, reply.clone())),
            );
        }
        self.applied = last.index;
        self.applied_term = Term(last.term);
        let servers = Some(self.driver.membership()).filter(|now| *now != servers);
        let due = self.ticks.saturating_sub(self.durable_at) >= DURABLE_TICKS;
        self.commit(&changes, servers.as_ref(), due)?;
        self.driver.applied(self.applied);
        if changes.iter().any(|change| change.table == Table::Nodes) {
            self.directory.send_replace(Arc::new(super::directory_of(&self.state)));
        }
        if servers.is_some() || !changes.is_empty() {
            self.lead.dirty = true;
            self.changed();
        }
        for (waiting, fate, reply) in answers {
            match fate {
                Fate::Applied => waiting.answer(reply),
                Fate::Superseded | Fate::Emptied => waiting.fail(Attempt::Lost),
            }
        }
        Ok(())
    }

    fn apply_command(
        &mut self,
        index: u64,
        term: u64,
        bytes: &[u8],
        changes: &mut Vec<Change>,
    ) -> Result<Reply, NodeError> {
        let entry = Entry::decode(bytes).map_err(|source| NodeError::Decode { index, source })?;
        let outcome = self.state.apply(index, Term(term), &entry);
        tracing::trace!(index, term, command = ?entry.command, reply = ?outcome.reply, "applied");
        changes.extend(outcome.changes);
        Ok(outcome.reply)
    }

    /// Writes the rows, and `servers` where they have changed. What isn't made durable now, the log replays after a crash.
    fn commit(&mut self, changes: &[Change], servers: Option<&Membership>, durable: bool) -> Result<(), NodeError> {
        let durability = if durable {
            self.durable_at = self.ticks;
            Durability::Now(self.log.record_commit(self.driver.hard_state()).map_err(NodeError::WriteLog)?)
        } else {
            Durability::Lazy
        };
        self.store.commit(changes, self.applied, servers, durability).map_err(NodeError::WriteStore)
    }

    /// Everything applied so far becomes durable.
    pub(super) fn finish(&mut self) -> Result<(), NodeError> {
        self.commit(&[], None, true)
    }

    fn serve_reads(&mut self) {
        let later = self.unserved.split_off(&(self.applied + 1));
        for waiting in std::mem::replace(&mut self.unserved, later).into_values().flatten() {
            waiting.answer(());
        }
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
