//! Whether this server still has on its disk what it has acknowledged.

use raft::eraftpb::{HardState, Message, MessageType};

use super::Position;
use crate::ANEW;

/// What this server has acknowledged isn't in its log any more; it has forgotten votes, too, and must not give any.
///
/// With a heartbeat a leader tells each server of commits only as far as that one has acknowledged the log to it in its term,
/// which it does once both are on disk; and within a term nothing that was acknowledged is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "server {leader} has this server's word for the log up to {acknowledged}, and what is here is older and ends at {last}: its disk was \
     replaced, or put back to an earlier time, and what it promised the others is forgotten; {anew}", anew = ANEW
)]
pub struct LostLog {
    pub leader: u64,
    pub acknowledged: u64,
    pub last: u64,
}

/// What this server can have acknowledged: of the term that its disk knew at the start, all that it has; of a later one,
/// what it has acknowledged since.
pub(super) struct Acknowledged {
    known_term: u64,
    since: Position,
}

impl Acknowledged {
    pub fn recovered(hard_state: &HardState) -> Self {
        Self { known_term: hard_state.term, since: Position::default() }
    }

    /// Takes note of what is about to be said.
    pub fn note(&mut self, messages: &[Message]) {
        let is_one = |message: &&Message| message.msg_type() == MessageType::MsgAppendResponse && !message.reject;
        for Message { term, index, .. } in messages.iter().filter(is_one) {
            let before = if *term == self.since.term { self.since.index } else { 0 };
            self.since = Position { term: *term, index: before.max(*index) };
        }
    }

    /// # Errors
    /// When a leader has this server's word for more; its log ends at `last`.
    pub fn check(&self, message: &Message, last: u64) -> Result<(), LostLog> {
        let acknowledged = match message.term {
            term if term <= self.known_term => last,
            // Only who lies has it give that up again.
            term if term == self.since.term => self.since.index.min(last),
            _ => 0,
        };
        if message.msg_type() == MessageType::MsgHeartbeat && message.commit > acknowledged {
            return Err(LostLog { leader: message.from, acknowledged: message.commit, last });
        }
        Ok(())
    }
}
