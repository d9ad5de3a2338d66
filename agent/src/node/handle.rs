//! What the rest of the agent holds of the node: proposals with an outcome, reads, and news.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use blixard_core::command::{self, Answer, Command, Entry, Reply, Request};
use blixard_core::driver::{Message, Position};
use blixard_core::state::{Assignment, State, WINDOW};
use blixard_core::types::{ClientId, Level, NodeId, RaftId, Timestamp};
use futures_util::StreamExt as _;
use futures_util::stream;
use tokio::sync::mpsc::Sender;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::Instant;

use super::followers::{LEADERLESS, is_leaderless};
use super::known::{Shared, Standing};
use super::leases::Renewed;
use super::relay::Serving;
use super::snapshot::Serve;
use super::{Attempt, BY_NO_ENTRY, Common, Input, Introduced, News, Proposal, Waiting};
use crate::transport::{
    ApiResponse, Certificate, Directory, ForwardError, Member, PassError, SnapshotRows, Told, Transport, WholeRequest,
};

/// How long a proposal or a read waits before it ends in an error.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Why a proposal or a read has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ProposeError {
    #[error(
        "no leader took it within {seconds} s, so nothing was changed: a majority of the servers has to be up and reach \
         each other{}",
        behind(way_out.as_deref())
    )]
    NoLeader { seconds: u64, way_out: Option<String> },
    #[error(
        "no answer came within {seconds} s, or before this agent stopped: the outcome is unknown, so look before you try \
         again"
    )]
    OutcomeUnknown { seconds: u64 },
    #[error(
        "no quorum confirmed the read within {seconds} s: a majority of the servers has to be up and reach each other{}",
        behind(way_out.as_deref())
    )]
    NotConfirmed { seconds: u64, way_out: Option<String> },
    #[error("the command has {bytes} bytes; at most {max} fit in one log entry", max = command::MAX_BYTES)]
    TooLarge { bytes: usize },
    #[error("this agent has too much to do: try again")]
    Busy,
    #[error("this agent is stopping: try again on another host")]
    Stopped,
    #[error("this host is no server, so it knows only what it has to do itself: ask a server")]
    NoServer,
}

fn behind(way_out: Option<&str>) -> String {
    way_out.map_or_else(String::new, |way_out| format!("; {way_out}"))
}

/// Cheap to clone; all clones reach the same node.
#[derive(Clone)]
pub struct Handle {
    node: NodeId,
    understands: Level,
    inbox: Sender<Input>,
    known: Shared,
    revisions: watch::Receiver<u64>,
    assignments: watch::Receiver<u64>,
    pub(super) leaders: watch::Receiver<Option<RaftId>>,
    pub(super) followed: watch::Receiver<Option<NodeId>>,
    pub(super) renewed: watch::Sender<Renewed>,
    pub(super) transport: Arc<Transport>,
    pub(super) directory: watch::Receiver<Arc<Directory>>,
    client: Arc<Client>,
    applied: Arc<AtomicU64>,
    /// Nothing on a node that is no server.
    pub(super) serving: Option<Serving>,
}

impl Handle {
    pub(super) fn new(
        common: &Common,
        inbox: Sender<Input>,
        known: Shared,
        news: &News,
        serving: Option<Serving>,
    ) -> Self {
        Self {
            node: common.node,
            understands: common.understands,
            serving,
            inbox,
            known,
            revisions: news.revision.subscribe(),
            assignments: news.assignment.subscribe(),
            leaders: news.leader.subscribe(),
            followed: news.followed.subscribe(),
            renewed: news.renewed.clone(),
            transport: common.transport.clone(),
            directory: common.directory.subscribe(),
            client: Arc::new(Client { id: common.client, open: Mutex::default(), answered: Notify::new() }),
            applied: Arc::default(),
        }
    }

    /// Where the loop tells what it has applied.
    pub(super) fn applied(&self) -> Arc<AtomicU64> {
        self.applied.clone()
    }

    pub fn node(&self) -> NodeId {
        self.node
    }

    /// The newest level that this agent understands.
    pub fn understands(&self) -> Level {
        self.understands
    }

    /// Proposes on whichever node leads, and answers with what `apply` answered there.
    ///
    /// It is carried out once at most, however often it is sent on the way.
    ///
    /// # Errors
    /// Within [`PATIENCE`], always. Only `OutcomeUnknown` leaves open whether the command took effect.
    pub async fn propose(&self, command: Command) -> Result<Answer, ProposeError> {
        let deadline = Instant::now() + PATIENCE;
        let asked = self.client.ask(self.applied.load(Ordering::Relaxed));
        let encoded = encode(&command, asked.request);
        if encoded.len() > command::MAX_BYTES {
            return Err(ProposeError::TooLarge { bytes: encoded.len() });
        }
        let seconds = PATIENCE.as_secs();
        let mut leaders = self.leaders.clone();
        let mut may_be_done = false;
        loop {
            let leader = *leaders.borrow_and_update();
            let attempt = match self.propose_here(command.clone(), Some(asked.request), deadline).await {
                Ok(Err(Attempt::NotLeader(Some(leader)))) => self.forward(leader, &encoded, deadline).await,
                Ok(attempt) => attempt,
                // That nothing comes of this attempt says nothing of those before it.
                Err(_) if may_be_done => return Err(ProposeError::OutcomeUnknown { seconds }),
                Err(error) => return Err(error),
            };
            match attempt {
                Ok(Answer { index: BY_NO_ENTRY, .. }) if may_be_done => {
                    return Err(ProposeError::OutcomeUnknown { seconds });
                }
                Ok(Answer { reply: Reply::Expired, .. }) => return Err(ProposeError::OutcomeUnknown { seconds }),
                Ok(answer) => return Ok(answer),
                Err(Attempt::Unknown) => may_be_done = true,
                Err(Attempt::NotLeader(_) | Attempt::Lost) => {}
            }
            if Instant::now() >= deadline {
                let unknown = ProposeError::OutcomeUnknown { seconds };
                return Err(if may_be_done {
                    unknown
                } else {
                    ProposeError::NoLeader { seconds, way_out: self.way_out() }
                });
            }
            // Until another leader is known, or the same one has had time to find out that it leads.
            let pause = deadline.min(Instant::now() + Duration::from_millis(50));
            let news = leaders.wait_for(|known| known.is_some() && *known != leader);
            let _ = tokio::time::timeout_at(pause, news).await;
        }
    }

    /// One attempt on this node; only a leader makes it.
    pub(crate) async fn propose_on_leader(
        &self,
        command: Command,
        request: Option<Request>,
        deadline: Instant,
    ) -> Result<Answer, ForwardError> {
        match self.propose_here(command, request, deadline).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(Attempt::Unknown)) => Err(ForwardError::OutcomeUnknown { to: self.node }),
            Ok(Err(Attempt::NotLeader(_) | Attempt::Lost)) => {
                Err(ForwardError::NotLeader { to: self.node, leader: None })
            }
            // Another will lead.
            Err(ProposeError::Stopped) => Err(ForwardError::NotLeader { to: self.node, leader: None }),
            Err(error) => Err(ForwardError::Refused { to: self.node, reason: error.to_string() }),
        }
    }

    async fn propose_here(
        &self,
        command: Command,
        request: Option<Request>,
        deadline: Instant,
    ) -> Result<Result<Answer, Attempt>, ProposeError> {
        let (answer, answered) = oneshot::channel();
        let waiting = Waiting { deadline: deadline.into_std(), answer };
        self.send(Input::Propose(Box::new(Proposal { command, request, waiting })))?;
        // The loop answers at the deadline at the latest; if it is gone, nobody knows how far it got.
        Ok(answered.await.unwrap_or(Err(Attempt::Unknown)))
    }

    async fn forward(&self, leader: RaftId, encoded: &[u8], deadline: Instant) -> Result<Answer, Attempt> {
        let directory = self.directory.borrow().clone();
        let to = directory.node_of(leader);
        let Some(to) = to else { return Err(Attempt::NotLeader(None)) };
        match self.transport.forward(to, encoded.to_vec(), deadline).await {
            Ok(answer) => postcard::from_bytes(&answer).map_err(|_| Attempt::Unknown),
            Err(ForwardError::OutcomeUnknown { .. }) => Err(Attempt::Unknown),
            Err(ForwardError::NotLeader { .. } | ForwardError::Unreachable { .. }) => Err(Attempt::NotLeader(None)),
            Err(ForwardError::Refused { reason, .. }) => {
                Ok(Answer { index: BY_NO_ENTRY, reply: Reply::Refused(reason) })
            }
        }
    }

    /// Why this node can't reach a member, for each that it can't.
    pub(super) fn faults(&self) -> BTreeMap<NodeId, String> {
        self.transport.faults()
    }

    /// The certificate that this node shows.
    pub fn certificate(&self) -> Option<Certificate> {
        self.transport.certificate()
    }

    /// Reads the state of this node as it is; nothing is applied meanwhile. `read` must not read again.
    ///
    /// # Errors
    /// `Stopped`.
    pub fn read<T>(&self, read: impl FnOnce(&State, &Standing) -> T) -> Result<T, ProposeError> {
        let known = self.known.look();
        if known.has_ended { Err(ProposeError::Stopped) } else { Ok(read(&known.state, &known.standing)) }
    }

    /// Whether the loop takes what comes in; waits for that as long as it takes.
    pub async fn responds(&self) -> bool {
        let (answer, answered) = oneshot::channel();
        self.send(Input::Respond(answer)).is_ok() && answered.await.is_ok()
    }

    /// Returns once this node has applied everything that was acknowledged anywhere before the call (a `ReadIndex`).
    ///
    /// # Errors
    /// `NotConfirmed` after [`PATIENCE`] without a quorum.
    pub async fn barrier(&self) -> Result<(), ProposeError> {
        let (answer, answered) = oneshot::channel();
        self.send(Input::Barrier(Waiting { deadline: (Instant::now() + PATIENCE).into_std(), answer }))?;
        match answered.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(ProposeError::NotConfirmed { seconds: PATIENCE.as_secs(), way_out: self.way_out() }),
            Err(_) => Err(ProposeError::Stopped),
        }
    }

    /// Returns once this node's state holds the cluster: at once after a restart, soon after founding or joining.
    ///
    /// # Errors
    /// `Stopped`.
    pub async fn founded(&self) -> Result<(), ProposeError> {
        let mut changes = self.changes();
        while !self.read(|state, _| state.cluster().is_some())? {
            changes.changed().await.map_err(|_| ProposeError::Stopped)?;
        }
        Ok(())
    }

    /// A number that grows whenever the state, the leader or the servers have changed.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.revisions.clone()
    }

    /// A number that grows whenever what is placed on this node has changed.
    pub fn assignments(&self) -> watch::Receiver<u64> {
        self.assignments.clone()
    }

    /// Raft's messages from another node; dropped when the inbox is full, since raft sends them again.
    pub fn step(&self, messages: Vec<Message>) {
        if self.inbox.try_send(Input::Step(messages)).is_err() {
            tracing::debug!("messages were dropped: the inbox is full");
        }
    }

    pub fn unreachable(&self, peer: RaftId) {
        // Only a hint: raft finds out by itself.
        let _ = self.inbox.try_send(Input::Unreachable(peer));
    }

    pub fn called(&self) {
        // Only to be faster: the next heartbeat is due soon.
        let _ = self.inbox.try_send(Input::Called);
    }

    /// A member that isn't in the directory says who it is; returns once it is, or won't be.
    pub async fn introduce(&self, node: NodeId, member: Member) {
        let (done, is_done) = oneshot::channel();
        if self.send(Input::Introduced(Box::new(Introduced { node, member, done }))).is_ok() {
            // The loop may end instead.
            let _ = is_done.await;
        }
    }

    /// A member says that this node is none any more.
    pub fn removed(&self, by: NodeId) {
        // It is told again.
        let _ = self.inbox.try_send(Input::Removed { by });
    }

    /// A member says that this node is no server any more.
    pub fn dismissed(&self, by: NodeId) {
        tracing::info!(peer = %by, "this node is no server any more, says another one");
        // It is told again.
        let _ = self.inbox.try_send(Input::Dismissed);
    }

    /// A member says that another process speaks for this node, and that both run.
    pub fn superseded(&self, by: NodeId) {
        // It is told again.
        let _ = self.inbox.try_send(Input::Superseded { by });
    }

    /// What `node`, which is no server, has to do: as of no earlier than this call, and again whenever it changes.
    ///
    /// # Errors
    /// `NotConfirmed`, `NoServer`.
    pub async fn assignments_of(&self, node: NodeId) -> Result<Told, ProposeError> {
        let serving = self.serving.as_ref().ok_or(ProposeError::NoServer)?;
        // Before it is looked at: nothing is missed.
        let changes = serving.followers.watch(node);
        self.barrier().await?;
        let (handle, last) = (self.clone(), None);
        Ok(stream::unfold((handle, changes, last), move |(handle, mut changes, last)| async move {
            loop {
                changes.mark_unchanged();
                let now = handle.read(|state, standing| state.assignment(node, standing.applied)).ok()?;
                if last.as_ref().is_none_or(|last: &Assignment| !last.is_same(&now)) {
                    return Some((now.encode(), (handle, changes, Some(now))));
                }
                tokio::select! {
                    news = changes.changed() => news.ok()?,
                    // It hears of nothing new: another server may.
                    () = is_leaderless(handle.leaders.clone(), LEADERLESS) => return None,
                }
            }
        })
        .boxed())
    }

    /// The servers that this node knows, in the order in which they are to be asked: the leader first.
    pub fn servers(&self) -> Vec<NodeId> {
        let leader = *self.leaders.borrow();
        let directory = self.directory.borrow();
        let servers = directory.servers().filter(|(id, _)| *id != self.node);
        let mut servers: Vec<_> = servers.map(|(id, member)| (member.raft != leader, id)).collect();
        servers.sort_unstable();
        servers.into_iter().map(|(_, id)| id).collect()
    }

    /// What another node's API answers.
    ///
    /// # Errors
    /// As [`Transport::pass_on`].
    pub async fn pass_on(&self, to: NodeId, question: WholeRequest) -> Result<ApiResponse, PassError> {
        self.transport.pass_on(to, question).await
    }

    /// The rows of the snapshot at this position, if it was announced to node `from`.
    pub async fn snapshot(&self, from: NodeId, position: Position) -> Option<Arc<dyn SnapshotRows>> {
        let peer = self.directory.borrow().get(from)?.raft?;
        let (answer, answered) = oneshot::channel();
        self.send(Input::Serve(Serve { peer, position, answer })).ok()?;
        answered.await.ok()?
    }

    /// Returns once nobody waits for the answer to a proposal any more, or for as long as one waits.
    pub async fn settled(&self) {
        let settled = async {
            loop {
                let answered = self.client.answered.notified();
                if self.client.open.lock().expect("nothing panics while it holds this lock").waiting.is_empty() {
                    return;
                }
                answered.await;
            }
        };
        // Each has its own deadline.
        let _ = tokio::time::timeout(PATIENCE, settled).await;
    }

    /// Whether this node leads, as far as it knows.
    pub fn leads(&self) -> bool {
        let known = self.known.look();
        known.standing.leader.is_some() && known.standing.leader == known.standing.raft
    }

    /// Hands leadership to a node, or to the one that lacks least; returns once that one leads.
    ///
    /// # Errors
    /// Why it isn't so, for a person to read.
    pub async fn transfer(&self, to: Option<NodeId>) -> Result<NodeId, String> {
        let mut leaders = self.leaders.clone();
        let (answer, answered) = oneshot::channel();
        self.send(Input::Transfer { to, answer }).map_err(|error| error.to_string())?;
        let raft = answered.await.map_err(|_| ProposeError::Stopped.to_string())??;
        let leads = tokio::time::timeout(PATIENCE, leaders.wait_for(|leader| *leader == Some(raft))).await;
        let node = self.directory.borrow().node_of(raft);
        match (leads, node) {
            (Ok(Ok(_)), Some(node)) => Ok(node),
            _ => Err(format!(
                "it has not taken over within {} s, and may yet: see `blixard status` for who leads",
                PATIENCE.as_secs()
            )),
        }
    }

    /// Asks the loop to hand leadership over and end.
    pub async fn stop(&self) {
        // A full inbox is being worked off: this is the one message that waits for its place.
        let _ = self.inbox.send(Input::Stop).await;
    }

    pub(super) fn send(&self, input: Input) -> Result<(), ProposeError> {
        self.inbox.try_send(input).map_err(|error| match error {
            TrySendError::Full(_) => ProposeError::Busy,
            TrySendError::Closed(_) => ProposeError::Stopped,
        })
    }
}

/// A command on its way to the leader, who stamps it.
fn encode(command: &Command, request: Request) -> Vec<u8> {
    Entry { at: Timestamp(0), decided_in: None, request: Some(request), command: command.clone() }.encode()
}

/// The numbers of this agent's requests.
struct Client {
    id: ClientId,
    open: Mutex<Open>,
    /// Somebody has an answer.
    answered: Notify,
}

#[derive(Default)]
struct Open {
    last: u64,
    /// Requests whose answers are waited for.
    waiting: BTreeSet<u64>,
}

/// A request whose answer is waited for, until this is dropped.
struct Asked<'a> {
    client: &'a Client,
    request: Request,
}

impl Client {
    fn ask(&self, applied: u64) -> Asked<'_> {
        let mut open = self.open.lock().expect("nothing panics while it holds this lock");
        open.last += 1;
        let sequence = open.last;
        open.waiting.insert(sequence);
        let answered = *open.waiting.first().expect("it was put there just now");
        Asked {
            client: self,
            request: Request { client: self.id, sequence, answered, until: applied.saturating_add(WINDOW) },
        }
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        let mut open = self.client.open.lock().expect("nothing panics while it holds this lock");
        open.waiting.remove(&self.request.sequence);
        self.client.answered.notify_waiters();
    }
}
