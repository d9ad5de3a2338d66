//! Clients that write all the time, ask again until they have an answer, and know what must be there.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use blixard::api::proto::{Freshness, StatusReply, StatusRequest};
use blixard::cli;
use blixard::identity::NodeIdentity;
use blixard_core::command::{Answer, Command, Presence, Reply, Request};
use blixard_core::state::WINDOW;
use blixard_core::types::ClientId;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::transport::Channel;

use crate::channel::connect;
use crate::member::{MAX_WAIT, Member, POLL, credentials, encode, forward};
use crate::vm::{put, runner};

/// VMs that a client keeps: beyond that it removes its oldest, and each removal is a write like any other.
const KEPT: usize = 24;
/// Writes after which a client reads what is there.
const READ_EVERY: u64 = 20;

/// Clients at work, until they are told to end.
pub struct Writers {
    tasks: JoinSet<Writer>,
    ending: watch::Sender<bool>,
    shared: Arc<Shared>,
}

/// What all clients write down.
#[derive(Default)]
struct Shared {
    acknowledged: watch::Sender<u64>,
    /// Which write each log entry was: one entry is one write.
    entries: Mutex<BTreeMap<u64, (u32, u64)>>,
    counts: Mutex<Counts>,
}

/// What was done in all.
#[derive(Default, Clone, Copy, Debug)]
pub struct Counts {
    /// Attempts that came to nothing, or to nobody knows what; the same request was sent again.
    pub asked_again: u64,
    /// Linearizable reads that showed exactly what was acknowledged.
    pub reads: u64,
}

/// One client: one write at a time.
struct Writer {
    number: u32,
    channels: Vec<Channel>,
    sockets: Vec<PathBuf>,
    /// The server that is asked first.
    at: usize,
    request: Request,
    /// Index of the entry that its last write was.
    last: u64,
    /// Its VMs that are there, the oldest first, by when they were written.
    there: VecDeque<u64>,
    shared: Arc<Shared>,
}

impl Writers {
    /// So many clients, each of which asks whichever server answers.
    pub fn start(clients: u32, members: &[Member], identity: &NodeIdentity) -> Self {
        let (ending, is_ending) = watch::channel(false);
        let shared = Arc::<Shared>::default();
        let tls = credentials(identity);
        let mut tasks = JoinSet::new();
        for number in 0..clients {
            let client = ClientId(u128::from_be_bytes(blixard::identity::random()));
            let writer = Writer {
                number,
                channels: members.iter().map(|member| connect(member.address, tls.clone())).collect(),
                sockets: members.iter().map(|member| member.dir.join("run/api.sock")).collect(),
                at: 0,
                request: Request { client, sequence: 0, answered: 1, until: WINDOW },
                last: 0,
                there: VecDeque::new(),
                shared: shared.clone(),
            };
            tasks.spawn(writer.work(is_ending.clone()));
        }
        Self { tasks, ending, shared }
    }

    pub fn acknowledged(&self) -> u64 {
        *self.shared.acknowledged.borrow()
    }

    /// Returns once so many more writes are acknowledged.
    pub async fn acknowledge(&mut self, more: u64) {
        let wanted = self.acknowledged() + more;
        let mut acknowledged = self.shared.acknowledged.subscribe();
        let reached = async { acknowledged.wait_for(|count| *count >= wanted).await.is_ok() };
        tokio::select! {
            reached = tokio::time::timeout(MAX_WAIT, reached) => {
                let seen = self.acknowledged();
                assert_eq!(reached, Ok(true), "waited {MAX_WAIT:?} for {wanted} writes; last seen: {seen}");
            }
            Some(ended) = self.tasks.join_next() => panic!("a client has ended: {:?}", ended.err()),
        }
    }

    /// Lets each end the write that it is at; what must be there then, and what was done.
    pub async fn end(mut self) -> (BTreeSet<String>, Counts) {
        self.ending.send_replace(true);
        let mut there = BTreeSet::new();
        while let Some(writer) = self.tasks.join_next().await {
            there.extend(writer.expect("a client ends well").names());
        }
        let counts = *self.shared.counts.lock().unwrap();
        (there, counts)
    }
}

impl Writer {
    async fn work(mut self, is_ending: watch::Receiver<bool>) -> Self {
        while !*is_ending.borrow() {
            self.request.sequence += 1;
            let sequence = self.request.sequence;
            let oldest = self.there.front().filter(|_| self.there.len() >= KEPT).copied();
            let command = match oldest {
                Some(oldest) => Command::RemoveVm { name: self.name(oldest).parse().expect("a label") },
                None => put(&self.name(sequence), Some(Presence::Absent)),
            };
            let answer = self.write(&command).await;
            self.check(&command, &answer);
            match oldest {
                Some(_) => drop(self.there.pop_front()),
                None => self.there.push_back(sequence),
            }
            self.request.answered = sequence + 1;
            self.shared.acknowledged.send_modify(|count| *count += 1);
            if sequence.is_multiple_of(READ_EVERY) {
                self.read().await;
            }
        }
        self
    }

    /// Sends one request until it is answered, to one server after the other.
    async fn write(&mut self, command: &Command) -> Answer {
        let (begun, mut polls) = (Instant::now(), tokio::time::interval(POLL));
        loop {
            let seen = match forward(&self.channels[self.at], encode(self.request, command.clone())).await {
                // These clients give no reason for that.
                Ok(answer) => return answer.unwrap_or_else(|why| panic!("a write was refused: {why}")),
                Err(seen) => seen,
            };
            assert!(begun.elapsed() < MAX_WAIT, "{command:?} has no answer; last seen: {seen}");
            self.shared.counts.lock().unwrap().asked_again += 1;
            self.at = (self.at + 1) % self.channels.len();
            if self.at == 0 {
                polls.tick().await;
            }
        }
    }

    /// A second time, each of the commands would be refused; and a client's writes are carried out in its order.
    fn check(&mut self, command: &Command, answer: &Answer) {
        let own = (self.number, self.request.sequence);
        assert_eq!(answer.reply, Reply::Done, "{own:?} at {}: {command:?}", answer.index);
        assert!(answer.index > self.last, "{own:?} at {}, after a write at {}", answer.index, self.last);
        self.last = answer.index;
        self.request.until = answer.index + WINDOW;
        let other = self.shared.entries.lock().unwrap().insert(answer.index, own);
        assert_eq!(other, None, "{own:?} and another write have the same log entry {}", answer.index);
    }

    /// Reads by way of whichever server can; what is there must be what was acknowledged.
    async fn read(&mut self) {
        let (begun, mut polls) = (Instant::now(), tokio::time::interval(POLL));
        let status = loop {
            let seen = match confirmed(&self.sockets[self.at]).await {
                Ok(status) => break status,
                Err(seen) => seen,
            };
            assert!(begun.elapsed() < MAX_WAIT, "nobody confirms a read; last seen: {seen}");
            self.at = (self.at + 1) % self.sockets.len();
            polls.tick().await;
        };
        let own = format!("c{}-", self.number);
        let found: BTreeSet<_> = names(&status).filter(|name| name.starts_with(&own)).map(str::to_owned).collect();
        assert_eq!(found, self.names(), "client {} after its write {}", self.number, self.request.sequence);
        self.shared.counts.lock().unwrap().reads += 1;
    }

    fn name(&self, sequence: u64) -> String {
        format!("c{}-{sequence}", self.number)
    }

    fn names(&self) -> BTreeSet<String> {
        self.there.iter().map(|sequence| self.name(*sequence)).collect()
    }
}

/// The status as of all that was acknowledged before, or why there is none.
async fn confirmed(socket: &Path) -> Result<StatusReply, String> {
    let mut client = cli::connect(socket).await.map_err(|error| blixard::error_chain(&error))?;
    let request = StatusRequest { freshness: Freshness::Linearizable.into() };
    let status = client.status(request).await.map_err(|status| status.message().to_owned())?.into_inner();
    let is_confirmed = status.cluster.as_ref().is_some_and(|cluster| cluster.confirmed);
    if is_confirmed { Ok(status) } else { Err("no quorum confirms it".to_owned()) }
}

/// The VMs that it shows, which are what they were written as.
pub fn names(status: &StatusReply) -> impl Iterator<Item = &str> {
    status.instances.iter().map(|instance| {
        assert_eq!(instance.runner, runner(&instance.vm), "{instance:?}");
        instance.vm.as_str()
    })
}
