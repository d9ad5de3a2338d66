//! `kill -9`, again and again, of servers that clients write to: what was acknowledged is there, and was done once.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Instant;

use blixard::api::proto::StatusReply;
use blixard::cli;

use crate::agreement::agree;
use crate::member::{MAX_WAIT, Member, POLL};
use crate::random::Random;
use crate::start;
use crate::writer::Writers;

/// Clients that write meanwhile.
const CLIENTS: u32 = 6;
/// Kills where `BLIXARD_KILLS` doesn't say how many.
const KILLS: u64 = 20;
/// Most writes that are waited for between two kills.
const WRITES: usize = 150;

/// When the next kill comes.
enum Moment {
    /// Whatever was started last hasn't come far.
    AtOnce,
    /// What was started last has opened its log and its store.
    Opened,
    /// So many more writes are acknowledged: a server that starts meanwhile is anywhere on its way.
    After(u64),
}

struct Cluster {
    members: [Member; 3],
    random: Random,
    /// The server that was started last.
    latest: usize,
}

impl Cluster {
    /// Which servers are next.
    async fn victims(&mut self) -> Vec<usize> {
        match self.random.below(10) {
            0 => vec![0, 1, 2],
            1 | 2 => vec![self.latest],
            3..=5 => self.leader().await.into_iter().collect(),
            _ => vec![self.random.below(3)],
        }
    }

    /// Where the leader is, as far as one of them says.
    async fn leader(&self) -> Option<usize> {
        for member in &self.members {
            let Ok(StatusReply { cluster: Some(cluster), .. }) = member.status().await else { continue };
            if let Some(leader) = self.members.iter().position(|member| member.name == cluster.leader) {
                return Some(leader);
            }
        }
        None
    }

    fn moment(&mut self) -> Moment {
        match self.random.below(8) {
            0 => Moment::AtOnce,
            1 => Moment::Opened,
            2 | 3 => Moment::After(self.random.below(10) as u64),
            _ => Moment::After(self.random.below(WRITES) as u64),
        }
    }

    async fn wait(&self, moment: Moment, writers: &mut Writers) {
        match moment {
            Moment::AtOnce => {}
            Moment::Opened => opened(&self.members[self.latest]).await,
            Moment::After(more) => writers.acknowledge(more).await,
        }
    }

    fn start(&mut self, server: usize) {
        start(&mut self.members[server]);
        self.latest = server;
    }
}

/// Returns once this server has opened its log and its store: then there is its socket.
async fn opened(member: &Member) {
    let (begun, mut polls) = (Instant::now(), tokio::time::interval(POLL));
    while let Err(seen) = cli::connect(&member.dir.join("run/api.sock")).await {
        assert!(begun.elapsed() < MAX_WAIT, "{} doesn't open its data; last seen: {seen}", member.name);
        polls.tick().await;
    }
}

/// Of the cluster and its nodes.
fn ids(status: &StatusReply) -> (&str, BTreeMap<&str, u64>) {
    let cluster = status.cluster.as_ref().expect("a status is of a cluster");
    (&cluster.id, status.nodes.iter().map(|node| (node.name.as_str(), node.id)).collect())
}

fn from_environment(variable: &str, otherwise: impl FnOnce() -> u64) -> u64 {
    match std::env::var(variable) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")),
        Err(_) => otherwise(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_are_killed_again_and_again_lose_nothing_and_do_nothing_twice() {
    let kills = from_environment("BLIXARD_KILLS", || KILLS);
    let seed = from_environment("BLIXARD_SEED", || u64::from_be_bytes(blixard::identity::random()));
    println!("{kills} kills, seed {seed}");
    let place = tempfile::tempdir().unwrap();
    kill(place.path(), kills, seed).await;
}

async fn kill(place: &Path, kills: u64, seed: u64) {
    let begun = Instant::now();
    let mut members = Member::write(place, ["alpha", "beta", "gamma"]);
    let identity = Member::found(&mut members, start).await;
    let before = agree(&members, &BTreeSet::new()).await;
    let mut writers = Writers::start(CLIENTS, &members, &identity);
    writers.acknowledge(1).await;
    let mut cluster = Cluster { members, random: Random(seed), latest: 2 };
    let mut killed = 0;
    while killed < kills {
        let moment = cluster.moment();
        cluster.wait(moment, &mut writers).await;
        let mut victims = cluster.victims().await;
        for victim in &victims {
            cluster.members[*victim].process = None;
            killed += 1;
            if killed % 100 == 0 {
                println!("{killed} kills, {} writes acknowledged, {:?}", writers.acknowledged(), begun.elapsed());
            }
        }
        if victims.len() == 1 && cluster.random.below(2) == 0 {
            // The others go on without it.
            let more = cluster.random.below(WRITES) as u64;
            writers.acknowledge(more).await;
        }
        while !victims.is_empty() {
            let next = cluster.random.below(victims.len());
            cluster.start(victims.swap_remove(next));
        }
    }
    writers.acknowledge(WRITES as u64).await;
    let acknowledged = writers.acknowledged();
    let (expected, counts) = writers.end().await;
    for member in &mut cluster.members {
        member.process = None;
    }
    cluster.members.iter_mut().for_each(start);
    let after = agree(&cluster.members, &expected).await;
    assert_eq!(ids(&after), ids(&before), "they aren't the same servers any more");
    println!("seed {seed}: {killed} kills, {acknowledged} writes acknowledged, {counts:?}, {:?}", begun.elapsed());
    for member in &mut cluster.members {
        let ended = member.process.take().expect("all run").stop();
        assert!(ended.success(), "{}: {ended}", member.name);
    }
}
