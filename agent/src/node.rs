//! The event loop: the only place where the core meets disk and network. It owns raft, the log, the store and the state.
//!
//! It is one task, best on the thread that has the connections to the other servers: what a message causes is then done
//! without waking another thread, which takes longer than the work. Others hold a [`Handle`] and send it messages. Its
//! inbox is bounded: what doesn't fit is dropped (raft's messages) or refused (requests).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use blixard_core::command::{Answer, Command, Entry, Reply, Request};
use blixard_core::driver::{self, Driver, Install, Message, Proposals, RefusedMessage, Role, Soft};
use blixard_core::lease::{Grants, Liveness};
use blixard_core::state::State;
use blixard_core::types::{ClientId, Level, NodeId, RaftId, Term};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

use crate::boot_time;
use crate::log::Log;
use crate::store::{Beside, Store};
use crate::transport::{Directory, Member, Transport};

mod apply;
mod backup;
mod check;
mod disk;
mod follow;
mod followers;
mod handle;
mod input;
mod known;
mod lead;
mod leaderless;
mod leases;
mod pulse;
mod reads;
mod relay;
mod snapshot;

pub use apply::NodeError;
pub use follow::follow;
use followers::Followers;
pub use handle::{Handle, PATIENCE, ProposeError};
use input::{Attempt, Input, Introduced, Proposal, Waiting};
pub use known::Standing;
use leases::Renewed;
pub use pulse::now;
use relay::Serving;

/// How often raft's clock ticks.
pub const TICK: Duration = Duration::from_millis(10);
/// Messages and requests that wait for the loop.
const INBOX: usize = 4096;
/// Inputs that are taken in before raft's turn comes: what came in while the disk wrote is one batch.
const BATCH: usize = 1024;
/// A worker that the leader hasn't heard for this long does not answer.
const SILENT_TICKS: u64 = 300;
/// Most members that this node takes the word of; by far more than join while it is away.
const MAX_INTRODUCED: usize = 256;
/// The index of what the leader's agent refused, and not the state: entries are counted from 1.
const BY_NO_ENTRY: u64 = 0;

/// What the loop is made of.
pub struct Parts {
    pub common: Common,
    pub raft: RaftId,
    pub driver: Driver,
    pub log: Log,
    pub store: Store,
    pub state: State,
    /// On the node that founds the cluster, until it has.
    pub founding: Option<Command>,
    /// How often the servers compare their states, if anything has changed.
    pub check_ticks: u64,
}

/// What the loop of a server and that of a worker have in common.
pub struct Common {
    pub node: NodeId,
    /// By which the cluster knows this agent's requests; drawn anew at each start.
    pub client: ClientId,
    /// The newest level of `apply` that this agent understands.
    pub understands: Level,
    pub transport: Arc<Transport>,
    pub directory: watch::Sender<Arc<Directory>>,
}

#[cfg(test)]
impl Common {
    fn of(node: NodeId, on: &crate::transport::tests::rig::Node) -> Self {
        let (transport, directory) = (on.transport.clone(), on.directory.clone());
        Self { node, client: ClientId(1), understands: Level::NEWEST, transport, directory }
    }
}

/// Why the loop has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// It was told to stop.
    Stopped,
    /// This node is to be a server, by this raft id.
    Enlisted(RaftId),
    /// This node, which was a server, is none any more: its log and its store are worth nothing.
    Dismissed,
}

/// How the loop ended; nothing is sent while it runs.
pub type Ended = oneshot::Receiver<Result<End, NodeError>>;

/// Starts the loop on the current tokio runtime, which it may keep from other work for as long as a short write takes.
pub fn start(mut parts: Parts) -> (Handle, Ended) {
    let (inbox, inputs) = channel(INBOX);
    let news = News::default();
    let raft = parts.raft;
    let standing = Standing::of(parts.common.node, raft, &parts.driver);
    let known = known::Shared::new(std::mem::take(&mut parts.state), standing);
    let followers = Followers::default();
    let (serving, waiting) = Serving::new(followers.clone());
    let handle = Handle::new(&parts.common, inbox.clone(), known.clone(), &news, Some(serving));
    let mut tasks = JoinSet::new();
    let doubting = handle.clone();
    tasks.spawn(async move { doubting.doubt(raft).await });
    tasks.spawn(relay::run(handle.clone(), waiting));
    let node = Node::new(parts, inbox, handle.clone(), known.clone(), news, followers);
    let (end, ended) = oneshot::channel();
    tokio::spawn(async move {
        let result = node.run(inputs).await;
        drop(tasks);
        known.change().has_ended = true;
        // Nobody waits for the end of a node whose agent is gone.
        let _ = end.send(result);
    });
    (handle, ended)
}

/// Where the members of this state are found.
pub fn directory_of(state: &State) -> Directory {
    let member = |node: &blixard_core::state::Node| Member {
        name: node.name.clone(),
        address: node.address.clone(),
        raft: node.raft,
    };
    let mut directory = Directory::of(state.nodes().iter().map(|(id, node)| (*id, member(node))));
    (directory.newest, directory.newest_raft) = (state.newest_node(), state.newest_raft());
    directory
}

struct Node {
    own: NodeId,
    driver: Driver,
    writer: disk::Writer,
    keeper: disk::Keeper,
    snapshots: snapshot::Snapshots,
    awaited: Vec<backup::Awaited>,
    /// A snapshot that raft wants installed, until log and store are both here.
    installing: Option<Install>,
    known: known::Shared,
    /// Where the store lies; an incoming snapshot is kept beside it.
    home: Beside,
    inbox: Sender<Input>,
    /// For what it asks of itself as others do.
    handle: Handle,
    transport: Arc<Transport>,
    directory: watch::Sender<Arc<Directory>>,
    /// Members that have joined after what the state knows, by their own word.
    introduced: BTreeMap<NodeId, Member>,
    founding: Option<Command>,
    understands: Level,
    check_ticks: u64,
    /// Index of the entry after which the state is to be hashed.
    marked: u64,
    applied: u64,
    /// `applied`, for the handles to read.
    published: Arc<AtomicU64>,
    /// Term of the last applied entry: a leader that hasn't applied one of its own knows too little to decide.
    applied_term: Term,
    proposals: Proposals<Waiting<Answer>>,
    reads: reads::Reads,
    lead: lead::Lead,
    liveness: Liveness,
    grants: Grants,
    ticks: u64,
    /// Ticks at the last checkpoint since the start.
    checkpointed_at: Option<u64>,
    /// Bytes that were applied since.
    applied_bytes: usize,
    stopping_at: Option<u64>,
    /// Nothing is taken any more; the store is to hold what was applied.
    closing: bool,
    /// This node is no server any more, as another one has told it.
    dismissed: bool,
    /// Index of the last change of the members that nobody is told of before the log knows on disk that it is committed.
    unpublished: Option<u64>,
    followers: Followers,
    /// Messages were handed to the transport since this task last let others run.
    has_sent: bool,
    news: News,
}

/// What the loop tells everybody who watches.
#[derive(Default)]
struct News {
    /// Grows with every change of the state, the leader or the servers.
    revision: watch::Sender<u64>,
    /// Grows with every change of what is placed on this node.
    assignment: watch::Sender<u64>,
    leader: watch::Sender<Option<RaftId>>,
    /// The server that this node follows, if it is none itself.
    followed: watch::Sender<Option<NodeId>>,
    /// What came of each renewal of this node's lease, if it is no server.
    renewed: watch::Sender<Renewed>,
}

impl Node {
    fn new(
        parts: Parts,
        inbox: Sender<Input>,
        handle: Handle,
        known: known::Shared,
        news: News,
        followers: Followers,
    ) -> Self {
        let applied = known.look().standing.applied;
        let applied_term = Term(parts.store.checkpoint().position.term);
        Self {
            own: parts.common.node,
            driver: parts.driver,
            writer: disk::Writer::new(parts.log, inbox.clone()),
            home: parts.store.home().clone(),
            keeper: disk::Keeper::new(parts.store, inbox.clone()),
            snapshots: snapshot::Snapshots::default(),
            awaited: Vec::new(),
            installing: None,
            inbox,
            published: handle.applied(),
            handle,
            known,
            transport: parts.common.transport,
            directory: parts.common.directory,
            introduced: BTreeMap::new(),
            founding: parts.founding,
            understands: parts.common.understands,
            check_ticks: parts.check_ticks,
            marked: 0,
            applied,
            applied_term,
            proposals: Proposals::default(),
            reads: reads::Reads::default(),
            lead: lead::Lead::new(parts.check_ticks),
            liveness: Liveness::default(),
            grants: Grants::default(),
            ticks: 0,
            checkpointed_at: None,
            applied_bytes: 0,
            stopping_at: None,
            closing: false,
            dismissed: false,
            unpublished: None,
            followers,
            has_sent: false,
            news,
        }
    }

    async fn run(mut self, mut inputs: Receiver<Input>) -> Result<End, NodeError> {
        self.begin()?;
        self.driver.campaign_if_alone();
        self.turns().await?;
        let mut pulse = pulse::Pulse::start(self.driver.most_ticks_at_once());
        loop {
            let (input, ticks) = pulse.next(&mut inputs).await;
            if let Some(input) = input {
                self.take(input)?;
                for _ in 1..BATCH {
                    let Ok(input) = inputs.try_recv() else { break };
                    self.take(input)?;
                }
            }
            (0..ticks).for_each(|_| self.tick());
            self.turns().await?;
            self.lead();
            self.turns().await?;
            self.closing |= self.dismissed || self.has_stopped();
            if self.closing || self.driver.wants_checkpoint() {
                self.checkpoint_if_due();
                self.turns().await?;
            }
            if self.closing && self.is_checkpointed() {
                input::turn_away(&mut inputs);
                return Ok(if self.dismissed { End::Dismissed } else { End::Stopped });
            }
        }
    }

    fn take(&mut self, input: Input) -> Result<(), NodeError> {
        match input {
            Input::Step(_) if self.closing => {}
            Input::Propose(proposal) if self.closing => proposal.waiting.fail(Attempt::NotLeader(None)),
            Input::Step(messages) => messages.into_iter().try_for_each(|message| self.step(message))?,
            Input::Unreachable(peer) => self.driver.report_unreachable(peer),
            Input::Called => self.driver.call(),
            Input::Introduced(introduced) => self.introduced(*introduced),
            Input::Removed { by } => return Err(NodeError::Removed { own: self.own, by }),
            Input::Superseded { by } => return Err(NodeError::Superseded { own: self.own, by }),
            Input::Dismissed => self.dismissed = true,
            // Whoever asked may have gone.
            Input::Transfer { to, answer } => _ = answer.send(self.transfer(to)),
            Input::Propose(proposal) => self.propose(*proposal),
            Input::Barrier(waiting) => self.reads.barrier(waiting),
            Input::Heartbeats(heartbeats) if self.leads() => self.reads.heartbeats(heartbeats),
            Input::Heartbeats(beats) => beats.waiting.fail(Attempt::NotLeader(self.driver.soft().leader)),
            Input::Checkpoint(answer) => self.await_checkpoint(answer),
            // Whoever asked may have gone.
            Input::Respond(answer) => _ = answer.send(()),
            Input::Written(written) => {
                let durable = self.writer.back(*written)?;
                self.written(durable);
            }
            Input::Kept(kept) => self.kept(*kept)?,
            Input::Fetched(fetched) => self.fetched_snapshot(fetched.0, fetched.1)?,
            Input::Serve(snapshot::Serve { peer, position, answer }) => {
                // Whoever asked may have gone.
                let _ = answer.send(self.serve_snapshot(peer, position));
            }
            Input::Stop => self.stopping_at = self.stopping_at.or(Some(self.ticks)),
        }
        Ok(())
    }

    fn step(&mut self, message: Message) -> Result<(), NodeError> {
        let from = RaftId(message.from);
        if driver::announced(&message).is_some() {
            return self.fetch_snapshot(message);
        }
        if let Err(error) = self.driver.step(message) {
            if let RefusedMessage::LostLog(lost) = error {
                return Err(NodeError::LostLog(lost));
            }
            let (late, error) = (error.may_be_late(), crate::error_chain(&error));
            if late {
                tracing::debug!(peer = %from, error, "a message came too late");
            } else {
                tracing::warn!(peer = %from, error, "a message was refused");
            }
            return Ok(());
        }
        if let Some((node, _)) = self.known.look().state.node_of_raft(from) {
            self.liveness.heard(node, self.ticks);
        }
        Ok(())
    }

    fn introduced(&mut self, Introduced { node, member, done }: Introduced) {
        if self.introduced.len() < MAX_INTRODUCED {
            self.introduced.insert(node, member);
            let known = self.known.clone();
            self.publish_directory(&known.look().state);
        }
        // Whoever waits may have gone.
        let _ = done.send(());
    }

    /// Tells the transport who is a member: those of the state, and newer ones by their own word until the state has them.
    fn publish_directory(&mut self, state: &State) {
        let mut directory = directory_of(state);
        self.introduced.retain(|node, member| directory.is_news(*node, member));
        self.introduced.iter().for_each(|(node, member)| directory.enter(*node, member.clone()));
        self.directory.send_replace(Arc::new(directory));
    }

    fn tick(&mut self) {
        self.ticks += 1;
        self.driver.tick();
        self.reads.tick(self.ticks);
        self.expire(Instant::now());
        self.expire_offers();
        self.checkpoint_if_due();
    }

    fn propose(&mut self, Proposal { command, request, waiting }: Proposal) {
        if command.ends_epoch() && self.leads() && !self.may_decide() {
            // It doesn't know yet which epoch that is. It is asked again.
            return waiting.fail(Attempt::NotLeader(None));
        }
        if let Some(why) = self.objection(&command) {
            return waiting.answer(Answer { index: BY_NO_ENTRY, reply: Reply::Refused(why) });
        }
        // Decisions are the leader's own: without a term, `apply` refuses one that comes from anywhere else.
        if let Err((waiting, error)) = self.append(command, None, request, waiting) {
            waiting.fail(Attempt::of(&error));
        }
    }

    /// Stamps a command, appends it to the leader's log and remembers who waits for it.
    fn append(
        &mut self,
        command: Command,
        decided_in: Option<Term>,
        request: Option<Request>,
        waiting: Waiting<Answer>,
    ) -> Result<(), (Waiting<Answer>, driver::ProposeError)> {
        let entry = Entry { at: now(), decided_in, request, command };
        match self.driver.propose(entry.encode()) {
            Ok(position) => {
                self.proposals.track(position, waiting);
                Ok(())
            }
            Err(error) => Err((waiting, error)),
        }
    }

    fn expire(&mut self, now: Instant) {
        for waiting in self.proposals.expire(|waiting| waiting.deadline <= now) {
            waiting.fail(Attempt::Unknown);
        }
        self.reads.expire(now);
    }

    /// Whether this node leads, as far as it knows.
    fn leads(&self) -> bool {
        self.driver.soft().role == Role::Leader
    }

    /// Whether it leads and knows what the leader before did: it has applied an entry of its own term.
    fn may_decide(&self) -> bool {
        self.leads() && self.applied_term == Term(self.driver.term())
    }

    /// Notes whom this node follows by now, and in which term.
    fn note_leader(&mut self) {
        let (leader, term) = (self.driver.soft().leader, Term(self.driver.term()));
        let told = {
            let standing = &self.known.look().standing;
            (standing.leader, standing.term)
        };
        if told != (leader, term) {
            self.known.change().standing.set_leader(leader, term);
        }
    }

    fn note_soft(&mut self, soft: Soft) {
        let term = self.driver.term();
        if *self.news.leader.borrow() != soft.leader {
            tracing::info!(term, leader = soft.leader.map_or(0, |leader| leader.0), "the leader has changed");
            self.news.leader.send_replace(soft.leader);
        }
        if soft.role == Role::Leader {
            self.liveness.restart(self.ticks);
            self.grants.restart(boot_time::now());
            self.lead = lead::Lead::new(self.ticks + self.check_ticks);
        }
        self.changed();
    }

    /// Tells everybody who watches that there is something new to read.
    fn changed(&self) {
        self.news.revision.send_modify(|revision| *revision += 1);
    }

    fn has_stopped(&mut self) -> bool {
        let Some(since) = self.stopping_at else { return false };
        match lead::leave(&self.driver.status(), self.ticks - since) {
            lead::Leave::End => true,
            lead::Leave::Wait => false,
            lead::Leave::HandOver(peer) => {
                if !self.lead.handing_over {
                    self.lead.handing_over = true;
                    let handed = self.driver.transfer_leader(peer);
                    tracing::info!(peer = %peer, ok = handed.is_ok(), "leadership is handed over");
                }
                false
            }
        }
    }
}
