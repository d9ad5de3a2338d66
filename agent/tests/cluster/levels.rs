//! Agents of different builds in one cluster.

use blixard::agent::Traits;
use blixard::api::proto::StatusRequest;
use blixard::log::{Log, Replay};
use blixard_core::command::{Command, Entry, Origin};
use blixard_core::driver::LogStore as _;
use blixard_core::manifest::Manifest;
use blixard_core::types::{Level, Timestamp};
use raft::eraftpb::{self, HardState};

use super::support::{Agent, Host, manifest, wait_for};
use super::{apply, cluster, sees_running, sees_whole, start};

fn next() -> Traits {
    Traits { understands: Level(2), check_ticks: 1000, ..Traits::default() }
}

async fn sees_level(agent: &Agent, level: u64) {
    agent.sees("the level", |status| cluster(status).feature_level == level).await;
}

async fn is_told_to_upgrade(host: &Host) {
    let refused = host.start().ended().await.unwrap_err();
    assert!(refused.contains("the cluster is at feature level 2, and this agent understands 1 at most"), "{refused}");
    assert!(refused.contains("upgrade this one"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_level_rises_with_the_last_agent_that_is_upgraded_and_older_ones_stop() {
    let mut hosts = Host::blank(["alpha", "beta", "gamma"]);
    let older = hosts[0].traits.clone();
    let [alpha, beta, gamma] = start(&hosts).await;
    sees_level(&alpha, 1).await;

    beta.stop().await;
    hosts[1].traits = next();
    let beta = hosts[1].start();
    gamma.stop().await;
    hosts[2].traits = next();
    let gamma = hosts[2].start();
    for agent in [&beta, &gamma] {
        assert_eq!(cluster(&sees_whole(agent, 3).await).feature_level, 1, "alpha would not understand the next one");
    }
    gamma.stop().await;
    alpha.stop().await;
    hosts[0].traits = next();
    let alpha = hosts[0].start();
    for agent in [&alpha, &beta] {
        sees_level(agent, 2).await;
    }

    // First its log brings what it doesn't understand, later its store holds it.
    hosts[2].traits = older.clone();
    is_told_to_upgrade(&hosts[2]).await;
    hosts[2].traits = next();
    let gamma = hosts[2].start();
    sees_level(&gamma, 2).await;
    gamma.stop().await;
    hosts[2].traits = older;
    is_told_to_upgrade(&hosts[2]).await;

    apply(&alpha, manifest(&[("web", "")])).await.unwrap();
    sees_running(&beta, 1).await;
    hosts[2].traits = next();
    sees_whole(&hosts[2].start(), 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blank_host_with_an_older_agent_is_told_to_upgrade() {
    let [mut alpha, beta] = Host::blank(["alpha", "beta"]);
    alpha.servers.pop();
    alpha.traits = next();
    let running = alpha.start();
    sees_level(&running, 2).await;
    let waiting = beta.start();
    let mut client = waiting.client().await;
    wait_for("the reason", async || {
        let told = client.status(StatusRequest::default()).await.unwrap_err();
        let is_told = told.message().contains("the agent of beta is too old: the cluster is at feature level 2");
        if is_told { Ok(()) } else { Err(told.message().to_owned()) }
    })
    .await;
}

fn open_log(host: &Host) -> (Log, Replay) {
    Log::open(&host.dir.path().join("data/raft/log")).unwrap()
}

/// Writes two entries into a host's log, behind this index, as if a quorum had committed them.
fn commit(host: &Host, behind: u64, commands: [Vec<u8>; 2]) {
    let (mut log, replay) = open_log(host);
    let HardState { term, vote, .. } = replay.hard_state;
    let entry = |(index, data)| eraftpb::Entry { index, term, data, ..eraftpb::Entry::default() };
    let entries: Vec<_> = (behind + 1..).zip(commands).map(entry).collect();
    log.write(&entries, Some(&HardState { term, vote, commit: behind + 2 })).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_stops_at_a_log_entry_of_a_newer_one_and_applies_nothing_behind_it() {
    let [alpha] = Host::blank(["alpha"]);
    let agent = alpha.start();
    agent.is_healthy().await;
    agent.stop().await;
    let manifest = Manifest::parse(&manifest(&[("web", "")])).unwrap();
    let command = Command::OfferManifest { manifest, from: Origin::Person("a test".to_owned()) };
    let readable = Entry { at: Timestamp(0), decided_in: None, request: None, command }.encode();
    let mut newer = readable.clone();
    newer[0] = 2;
    let last = open_log(&alpha).1.entries.last().expect("it is not cut yet").index;
    commit(&alpha, last, [newer, readable.clone()]);
    for _ in 0..2 {
        let stopped = alpha.start().ended().await.unwrap_err();
        assert!(stopped.contains(&format!("cannot go on at log entry {}", last + 1)), "{stopped}");
        assert!(stopped.contains("written by a newer agent; upgrade this one"), "{stopped}");
    }
    assert_eq!(alpha.units.held().asked, Vec::<String>::new());
    // An empty one in its place, and what is behind it takes effect.
    commit(&alpha, last, [Vec::new(), readable]);
    sees_running(&alpha.start(), 1).await;
}
