//! What comes into the loop, and who waits for what comes of it.

use std::sync::Arc;
use std::time::Instant;

use blixard_core::command::{Answer, Command, Request};
use blixard_core::driver::Message;
use blixard_core::types::{NodeId, RaftId};
use tokio::sync::mpsc::Receiver;
use tokio::sync::oneshot;

use super::reads::Heartbeats;
use super::{disk, snapshot};
use crate::store::Reader;
use crate::transport::Member;

/// What others ask of the loop.
pub(super) enum Input {
    Step(Vec<Message>),
    Unreachable(RaftId),
    /// A member has opened its stream to this one: it is there, perhaps again.
    Called,
    /// A member that this node hasn't heard of yet.
    Introduced(Box<Introduced>),
    /// A member says that this node was removed.
    Removed {
        by: NodeId,
    },
    /// A member says that this node is no server any more.
    Dismissed,
    /// A member says that another process speaks for this node.
    Superseded {
        by: NodeId,
    },
    Propose(Box<Proposal>),
    Barrier(Waiting<()>),
    /// Nodes are there, and want their leases renewed.
    Heartbeats(Heartbeats),
    /// Give a checkpoint that has everything applied so far.
    Checkpoint(oneshot::Sender<Arc<Reader>>),
    /// Says that the loop takes what comes in.
    Respond(oneshot::Sender<()>),
    /// The log is back from its thread.
    Written(Box<disk::Written>),
    /// The store is back from its thread.
    Kept(Box<disk::Kept>),
    /// A snapshot that the leader announced, or why it isn't here.
    Fetched(Box<(Message, Result<snapshot::Fetched, snapshot::FetchError>)>),
    /// A follower asks for the rows of a snapshot that was announced to it.
    Serve(snapshot::Serve),
    /// A person wants another server to lead: this one, or the one that lacks least. Whom it is handed to, or why to nobody.
    Transfer {
        to: Option<NodeId>,
        answer: oneshot::Sender<Result<RaftId, String>>,
    },
    /// Hand leadership over, make everything durable, end.
    Stop,
}

pub(super) struct Introduced {
    pub node: NodeId,
    pub member: Member,
    /// The directory has it.
    pub done: oneshot::Sender<()>,
}

pub(super) struct Proposal {
    pub command: Command,
    pub request: Option<Request>,
    pub waiting: Waiting<Answer>,
}

/// Who waits for an answer, and until when.
pub(super) struct Waiting<T> {
    pub deadline: Instant,
    pub answer: oneshot::Sender<Result<T, Attempt>>,
}

/// Why one attempt came to nothing; the handle makes the final error of it, or tries again.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Attempt {
    /// Nothing was done here.
    NotLeader(Option<RaftId>),
    /// It never took effect and never will.
    Lost,
    /// It may have taken effect, or may yet.
    Unknown,
}

impl<T> Waiting<T> {
    /// Whoever waited may have gone; then nobody needs the answer.
    pub fn answer(self, answer: T) {
        let _ = self.answer.send(Ok(answer));
    }

    pub fn fail(self, attempt: Attempt) {
        let _ = self.answer.send(Err(attempt));
    }
}

/// Takes nothing any more: nothing came of what is still in the inbox.
pub(super) fn turn_away(inbox: &mut Receiver<Input>) {
    inbox.close();
    while let Ok(input) = inbox.try_recv() {
        if let Input::Propose(proposal) = input {
            proposal.waiting.fail(Attempt::NotLeader(None));
        }
    }
}
