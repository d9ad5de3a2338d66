//! The loop of a node that is no server. It holds no log: a server tells it what it has to do, and it tells that server
//! that it is there.
//!
//! ```text
//!             stream of any server: its assignment, whole, as of no earlier than it was asked for
//!  (nothing) ─────────────────────────────────────────────────────────────▶ known ──▶ directory, handle, worker
//!                 │ enlisted: the loop ends, and this node begins anew as a server
//!                 │ the stream ends, or says something older: the next server is asked
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use blixard_core::state::{Assignment, State};
use blixard_core::types::{NodeId, RaftId};
use tokio::sync::mpsc::{Receiver, channel};
use tokio::sync::{oneshot, watch};

use super::input;
use super::known::{self, Standing};
use super::{Attempt, Common, End, Ended, Handle, INBOX, Input, News, NodeError, Renewed, Waiting, directory_of};
use crate::transport::{Assignments, Beat, Directory, FollowError, Transport};

/// How long the leader hears nothing of this node before it is told that it is there; a worker that isn't heard for three
/// seconds does not answer.
const BEAT: Duration = Duration::from_millis(1500);
/// How long a server that was no help is not asked again, and how long the leader is sought in another place.
const PAUSE: Duration = Duration::from_millis(100);
/// After so many beats one after the other that nobody has answered, the configured servers are asked where the servers are.
const UNANSWERED: u32 = 30;
/// How often the deadlines of those that wait are looked at.
const LOOK: Duration = Duration::from_millis(100);

/// Starts the loop on the current tokio runtime; `spent` is the last raft id that this node had, which it never has again.
pub fn follow(common: Common, spent: RaftId) -> (Handle, Ended) {
    let (inbox, mut inputs) = channel(INBOX);
    let news = News::default();
    let known = known::Shared::new(State::default(), Standing::outside(common.node));
    let handle = Handle::new(&common, inbox, known.clone(), &news, None);
    let Common { node, transport, directory, .. } = common;
    let (is_told, _) = watch::channel(false);
    let applied = handle.applied();
    let joined = directory.borrow().clone();
    let follower =
        Follower { own: node, spent, known: known.clone(), applied, transport, joined, directory, news, is_told };
    let (end, ended) = oneshot::channel();
    tokio::spawn(async move {
        let result = tokio::select! {
            result = follower.follow() => result,
            result = follower.serve(&mut inputs) => result,
            () = follower.beat() => unreachable!("it goes on for ever"),
        };
        input::turn_away(&mut inputs);
        known.change().has_ended = true;
        // Nobody waits for the end of a node whose agent is gone.
        let _ = end.send(result);
    });
    (handle, ended)
}

struct Follower {
    own: NodeId,
    spent: RaftId,
    known: known::Shared,
    /// The last log entry that it has heard of, for the handles to read.
    applied: Arc<AtomicU64>,
    transport: Arc<Transport>,
    /// The servers as it heard of them before this start.
    joined: Arc<Directory>,
    directory: watch::Sender<Arc<Directory>>,
    news: News,
    /// Whether a server has told this node what it has to do since the agent started.
    is_told: watch::Sender<bool>,
}

impl Follower {
    /// Has one server after the other tell it what to do.
    async fn follow(&self) -> Result<End, NodeError> {
        for turn in 0.. {
            if let Some(server) = self.server(turn) {
                let reason = match self.transport.follow(server).await {
                    Ok(mut assignments) => {
                        let listened = self.listen(server, &mut assignments).await?;
                        self.news.followed.send_replace(None);
                        match listened {
                            Listened::End(end) => return Ok(end),
                            Listened::Broken(reason) => reason,
                        }
                    }
                    Err(error) => crate::error_chain(&error),
                };
                tracing::debug!(peer = %server, reason, "another server is asked what there is to do");
            }
            tokio::time::sleep(PAUSE).await;
        }
        unreachable!("there are more turns than time")
    }

    async fn listen(&self, server: NodeId, assignments: &mut Assignments) -> Result<Listened, NodeError> {
        let mut is_first = true;
        loop {
            let bytes = match assignments.next().await {
                Ok(bytes) => bytes,
                Err(FollowError::Removed { to }) => return Err(NodeError::Removed { own: self.own, by: to }),
                Err(error) => return Ok(Listened::Broken(crate::error_chain(&error))),
            };
            let known = self.known.look().standing.applied;
            let assignment = Assignment::decode(&bytes, known);
            let told = assignment.and_then(|assignment| Ok((assignment.applied, assignment.state()?)));
            let (applied, state) = match told {
                Ok(told) => told,
                Err(error) => {
                    let error = crate::error_chain(&error);
                    tracing::warn!(peer = %server, error, "what a server says is not listened to");
                    return Ok(Listened::Broken(error));
                }
            };
            if is_first {
                tracing::info!(peer = %server, applied, "this node follows a server");
                self.news.followed.send_replace(Some(server));
                is_first = false;
            }
            if state.is_removed(self.own) {
                return Err(NodeError::Removed { own: self.own, by: server });
            }
            if let Some(raft) = state.is_enlisted(self.own, self.spent) {
                return Ok(Listened::End(End::Enlisted(raft)));
            }
            self.take(applied, state);
        }
    }

    fn take(&self, applied: u64, state: State) {
        {
            let mut known = self.known.change();
            known.state = state;
            known.standing.applied = applied;
        }
        self.publish(self.told());
        self.applied.fetch_max(applied, Ordering::Relaxed);
        self.is_told.send_replace(true);
        self.news.assignment.send_modify(|revision| *revision += 1);
        self.news.revision.send_modify(|revision| *revision += 1);
    }

    /// Which server's turn it is.
    fn server(&self, turn: usize) -> Option<NodeId> {
        let directory = self.directory.borrow();
        let servers: Vec<NodeId> = directory.servers().map(|(node, _)| node).filter(|node| *node != self.own).collect();
        // Not all begin with the same one.
        let at = turn.wrapping_add(usize::try_from(self.own.0).unwrap_or_default());
        servers.get(at.checked_rem(servers.len())?).copied()
    }

    /// Says that this node is there to the server that it follows, or, where that one knows of no leader, to one after the
    /// other, and hears who leads.
    async fn beat(&self) {
        let (mut turn, mut unanswered, mut is_heard) = (0, 0, true);
        loop {
            let followed = *self.news.followed.borrow();
            let to = followed.filter(|_| is_heard).or_else(|| self.server(turn));
            let mut answer = match to {
                Some(to) => self.transport.beat(to).await.ok(),
                None => None,
            };
            is_heard = answer.as_ref().is_some_and(|beat| beat.leader.is_some());
            unanswered = if answer.is_some() { 0 } else { unanswered + 1 };
            if unanswered >= UNANSWERED {
                unanswered = 0;
                answer = self.transport.beat_configured().await;
            }
            self.note(answer);
            if !is_heard {
                turn = turn.wrapping_add(1);
                turn = turn.wrapping_add(usize::from(self.server(turn) == to));
            }
            if is_heard {
                rest(self.news.renewed.subscribe(), BEAT, |leader| self.meet_leader(leader)).await;
            } else {
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    fn note(&self, beat: Option<Beat>) {
        let Some(Beat { leader, servers, applied }) = beat else { return self.set_leader(None) };
        self.applied.fetch_max(applied, Ordering::Relaxed);
        if applied > self.known.look().standing.applied && servers.servers().next().is_some() {
            self.meet(&servers);
        }
        self.meet_leader(leader);
    }

    fn meet_leader(&self, leader: Option<NodeId>) {
        self.set_leader(leader.and_then(|node| self.directory.borrow().get(node)?.raft));
    }

    /// Servers that are newer than those that it was told of: it may not reach any of these any more. They are asked besides
    /// them, as it is one member's word, until one of either tells it what is so.
    fn meet(&self, newer: &Directory) {
        let told = self.told();
        let all = newer.members().chain(told.members());
        self.publish(Directory::of(all.map(|(node, member)| (node, member.clone()))));
    }

    /// The servers and this node, as it was told with its assignment, or before this start.
    fn told(&self) -> Directory {
        let state = &self.known.look().state;
        if state.cluster().is_some() { directory_of(state).servers_and(self.own) } else { (*self.joined).clone() }
    }

    fn publish(&self, directory: Directory) {
        if **self.directory.borrow() != directory {
            self.directory.send_replace(Arc::new(directory));
        }
    }

    fn set_leader(&self, leader: Option<RaftId>) {
        if *self.news.leader.borrow() != leader {
            let standing = &mut self.known.change().standing;
            standing.set_leader(leader, standing.term);
            self.news.leader.send_replace(leader);
            self.news.revision.send_modify(|revision| *revision += 1);
        }
    }

    /// Answers those that ask as a server's loop would.
    async fn serve(&self, inputs: &mut Receiver<Input>) -> Result<End, NodeError> {
        let (mut is_told, mut waiting) = (self.is_told.subscribe(), Vec::<Waiting<()>>::new());
        let mut looks = tokio::time::interval(LOOK);
        loop {
            let input = tokio::select! {
                Some(input) = inputs.recv() => Some(input),
                // The sender lives as long as this.
                _ = is_told.changed() => None,
                _ = looks.tick(), if !waiting.is_empty() => None,
            };
            match input {
                Some(Input::Stop) => return Ok(End::Stopped),
                Some(Input::Removed { by }) => return Err(NodeError::Removed { own: self.own, by }),
                Some(Input::Propose(proposal)) => {
                    proposal.waiting.fail(Attempt::NotLeader(*self.news.leader.borrow()));
                }
                Some(Input::Barrier(barrier)) => waiting.push(barrier),
                // Whoever asked may have gone.
                Some(Input::Respond(answer)) => _ = answer.send(()),
                // What servers say to each other.
                Some(_) | None => {}
            }
            if *is_told.borrow_and_update() {
                waiting.drain(..).for_each(|waiting| waiting.answer(()));
            }
            let now = Instant::now();
            waiting
                .extract_if(.., |waiting| waiting.deadline <= now)
                .for_each(|waiting| waiting.fail(Attempt::Unknown));
        }
    }
}

/// Returns once the leader has heard nothing of this node for so long. It has whenever it renews this node's lease; where
/// nobody does, it is time to look who leads.
async fn rest(mut renewed: watch::Receiver<Renewed>, time: Duration, meet_leader: impl Fn(Option<NodeId>)) {
    while let Ok(Ok(())) = tokio::time::timeout(time, renewed.changed()).await {
        let Renewed { leader, .. } = *renewed.borrow_and_update();
        if leader.is_none() {
            return;
        }
        meet_leader(leader);
    }
}

/// How listening to a server has ended.
enum Listened {
    End(End),
    Broken(String),
}

#[cfg(test)]
mod tests {
    use blixard_core::command::{Command, Entry, NewNode};
    use blixard_core::types::{ClusterId, Hash, Level, NodeRole, Term, Timestamp};
    use futures_util::FutureExt as _;

    use super::*;
    use crate::transport::Member;
    use crate::transport::tests::rig::{Cluster, node, wait_for};

    fn host(name: &str, role: NodeRole) -> NewNode {
        let (name, address) = (name.parse().unwrap(), "127.0.0.1:1".parse().unwrap());
        NewNode { key: Hash::of(b"its key"), understands: Level::NEWEST, name, address, role }
    }

    /// What node 2 is told in a cluster of one server.
    fn assignment() -> Vec<u8> {
        let (cluster, first) = (ClusterId::from_bytes([7; 16]), host("alpha", NodeRole::Auto));
        let found =
            Command::Found { cluster, ca_certificate: vec![1], sealed_ca_key: vec![2], first, listed_servers: 1 };
        let mut state = State::default();
        let commands = [(Some(Term(1)), found), (None, Command::Admit(host("beta", NodeRole::Worker)))];
        for (index, (decided_in, command)) in (1..).zip(commands) {
            state.apply(index, Term(1), &Entry { at: Timestamp(0), decided_in, request: None, command });
        }
        state.assignment(node(1), 9).encode()
    }

    #[tokio::test]
    async fn whose_lease_is_renewed_need_not_say_that_it_is_there_and_who_hears_of_no_leader_looks_for_it() {
        let (renewed, leaders) = (watch::Sender::new(Renewed::default()), watch::Sender::new(None));
        let meet = |leader| _ = leaders.send_replace(leader);
        let mut resting = Box::pin(rest(renewed.subscribe(), Duration::from_secs(3600), meet));
        let mut rests = |leader| {
            renewed.send_replace(Renewed { leader, ..Renewed::default() });
            (&mut resting).now_or_never().is_none()
        };
        for leader in [1, 2].map(|leader| Some(NodeId(leader))) {
            assert!(rests(leader) && *leaders.borrow() == leader, "the leader has renewed it");
        }
        assert!(!rests(None), "nobody has that leads");
        rest(renewed.subscribe(), Duration::from_millis(1), meet).await;
    }

    #[tokio::test]
    async fn a_list_of_servers_none_of_which_can_be_reached_keeps_nobody_from_those_that_it_knew() {
        let Cluster { nodes, .. } = Cluster::pair().await;
        let [server, own] = nodes.try_into().ok().unwrap();
        let nowhere = Member {
            address: "127.0.0.1:1".parse().unwrap(),
            ..server.directory.borrow().get(node(0)).unwrap().clone()
        };
        *server.recorder.servers.lock().unwrap() = Directory::of([0, 8].map(|at| (node(at), nowhere.clone())));
        let common = Common::of(node(1), &own);
        let directories = common.directory.subscribe();
        let (handle, _ended) = follow(common, RaftId(0));
        wait_for("the list", || (), || directories.borrow().get(node(8)).is_some()).await;
        *server.recorder.assignments.lock().unwrap() = Some(vec![assignment()]);
        let is_told = || handle.read(|state, _| state.cluster().is_some()).unwrap();
        wait_for("what it has to do", || (), is_told).await;
        wait_for("the list to be forgotten", || (), || directories.borrow().get(node(8)).is_none()).await;
    }
}
