//! What both systems can do, and what every part of the bench does with them.

use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Pid;

use crate::load::{PATIENCE, RETRY, fill};
use crate::member::MAX_WAIT;
use crate::probe::pause;
use crate::process::Process;

/// What members are called, those that join included.
pub const NAMES: [&str; 5] = ["alpha", "beta", "gamma", "delta", "epsilon"];

/// What members are started with.
#[derive(Clone, Copy, Default)]
pub struct Setup {
    /// How much longer each of their fsyncs takes.
    pub slow: Option<Duration>,
    /// Where they don't have the defaults of their system.
    pub timers: Option<Timers>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timers {
    /// How long a member waits for its leader before it stands for election: one of etcd's up to twice as long, one of
    /// Blixard's up to half as long more.
    pub election: Duration,
    pub heartbeat: Duration,
}

/// Members of one of the systems: three, and those that join.
pub trait Cluster: Sized {
    type Client: Client;

    /// A new cluster that has a leader.
    async fn start(dir: &Path, setup: Setup) -> Self;

    /// Those of all members, in the order in which they are numbered everywhere else; none of one that was ended.
    fn processes(&mut self) -> impl Iterator<Item = &mut Option<Process>>;

    fn start_member(&mut self, member: usize);

    /// Which member leads, once one does.
    async fn leader(&self) -> usize;

    async fn term(&self) -> u64;

    /// Clients of one member, over so many connections.
    fn clients(&self, member: usize, clients: usize, connections: usize) -> Vec<Self::Client>;

    /// How long it takes to declare so many VMs, as fast as these clients can; `revision` makes each of them another.
    async fn declare(&self, clients: Vec<Self::Client>, count: u32, revision: u32) -> Duration;

    /// Starts one more, blank, which is to become a member: its number, and when it was started.
    async fn join(&mut self) -> (usize, Instant);

    /// One client of one member.
    fn client(&self, member: usize) -> Self::Client {
        self.clients(member, 1, 1).pop().expect("it was asked for")
    }

    /// Clients of the leader, over so many connections.
    async fn writers(&self, clients: usize, connections: usize) -> Vec<Self::Client> {
        self.clients(self.leader().await, clients, connections)
    }

    /// Writes all VMs with these numbers, whoever leads meanwhile.
    async fn fill(&self, mut keys: Range<u32>) {
        while !keys.is_empty() {
            keys.start = fill(self.writers(64, 8).await, keys.clone()).await;
        }
    }

    /// Returns once this member itself has the VM of this number.
    async fn holds(&self, member: usize, key: u32) {
        let (begun, mut client) = (Instant::now(), self.client(member));
        loop {
            let seen = tokio::time::timeout(PATIENCE, client.read(key)).await;
            if matches!(seen, Ok(Ok(true))) {
                return;
            }
            assert!(begun.elapsed() < MAX_WAIT, "member {member} has no VM {key}; last answer: {seen:?}");
            pause(RETRY).await;
        }
    }

    fn process(&mut self, member: usize) -> &mut Option<Process> {
        self.processes().nth(member).expect("it is one of them")
    }

    fn pid(&mut self, member: usize) -> Pid {
        self.process(member).as_ref().expect("it runs").pid()
    }

    fn kill(&mut self, member: usize) {
        *self.process(member) = None;
    }

    fn stop(&mut self, member: usize) {
        self.process(member).take().expect("it runs").stop();
    }
}

/// Somebody who asks one member, one thing at a time.
pub trait Client: Send + 'static {
    /// Returns once the write is durable on a quorum and applied.
    fn write(&mut self, key: u32) -> impl Future<Output = Result<(), String>> + Send;

    /// Whether the member has it, by what it knows without asking the others.
    fn read(&mut self, key: u32) -> impl Future<Output = Result<bool, String>> + Send;
}
