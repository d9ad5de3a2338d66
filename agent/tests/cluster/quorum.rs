//! A majority is there, or it isn't.

use std::time::Instant;

use blixard::agent::Traits;
use blixard::api::proto;
use blixard_core::unit::{ObservedVm, UnitPhase};
use tokio::task::JoinHandle;
use tonic::Code;

use super::damage::log;
use super::support::{Agent, Host, manifest, wait_for};
use super::{PATIENCE, apply, cluster, instance, leader, no_vm_runs_twice, sees_running, sees_whole, start};

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_a_proposal_and_a_read_end_in_clear_errors_and_status_says_so() {
    let hosts = Host::blank(["alpha", "beta", "gamma"]);
    let [alpha, beta, gamma] = start(&hosts).await;
    beta.stop().await;
    gamma.stop().await;
    let status = alpha.sees("no quorum", |status| !cluster(status).quorum).await;
    assert_eq!((&*cluster(&status).leader, cluster(&status).servers), ("", 3));
    assert!(status.problems.iter().any(|problem| problem.contains("no leader")), "{:?}", status.problems);

    let begin = Instant::now();
    let refused = apply(&alpha, manifest(&[("web", "")])).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert!(refused.message().contains("majority") && refused.message().contains("nothing was changed"), "{refused}");
    let explain = proto::ExplainRequest { vm: "web".to_owned(), ..Default::default() };
    let refused = alpha.client().await.explain(explain).await.unwrap_err();
    assert_eq!(refused.code(), Code::DeadlineExceeded, "{refused}");
    assert!(refused.message().contains("no quorum"), "{refused}");
    assert!(begin.elapsed() < 4 * PATIENCE, "{:?}", begin.elapsed());
    // After a while, who has to be mended is named, and what to do where that can't be.
    let way_out = |text: &str| {
        let lost = ["beta (", "gamma ("].iter().all(|name| text.contains(name));
        lost && text.contains("of 3 servers alpha answers") && text.contains("`blixard cluster recover`")
    };
    alpha.sees("the way out", |status| status.problems.iter().any(|problem| way_out(problem))).await;
    let refused = apply(&alpha, manifest(&[("web", "")])).await.unwrap_err();
    assert!(way_out(refused.message()), "{refused}");
    assert!(!cluster(&status).confirmed, "nobody could confirm it");

    // What this node knows is answered all the same, for those who want that.
    let (mut client, freshness) = (alpha.client().await, proto::Freshness::Stale.into());
    let explain = proto::ExplainRequest { vm: "web".to_owned(), freshness };
    assert_eq!(client.explain(explain).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(client.list_tasks(proto::ListTasksRequest { freshness }).await.unwrap().into_inner().tasks, []);
    let manifests = client.list_manifests(proto::ListManifestsRequest { freshness }).await.unwrap();
    assert_eq!(manifests.into_inner().heads, []);
    let known = client.status(proto::StatusRequest { freshness }).await.unwrap().into_inner();
    assert_eq!((known.nodes.len(), cluster(&known).confirmed), (3, false));

    // One more makes a majority; what was refused has never taken effect.
    let beta = hosts[1].start();
    let status = beta.sees("a quorum", |status| cluster(status).quorum && cluster(status).confirmed).await;
    assert_eq!(status.instances, []);
    assert_eq!(apply(&beta, manifest(&[("web", "")])).await.unwrap().result, "applied");
    let gamma = hosts[2].start();
    for agent in [&alpha, &beta, &gamma] {
        sees_whole(agent, 3).await;
    }
    no_vm_runs_twice(&hosts);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_waits_for_a_quorum_stops_when_it_is_told_to() {
    let hosts = Host::blank(["alpha", "beta", "gamma"]);
    for agent in start(&hosts).await {
        agent.stop().await;
    }
    // Its worker waits for the cluster, and its registration, too.
    let alpha = hosts[0].start();
    alpha.sees("no quorum", |status| !cluster(status).quorum).await;
    alpha.stop().await;
}

pub type Change = JoinHandle<Result<tonic::Response<proto::ApplyReply>, tonic::Status>>;

/// A leader whose followers have ended, where it is among these hosts, and a change that is in its log alone. It leads on for
/// longer than a change waits.
pub async fn left_alone() -> ([Host; 3], usize, Agent, Change) {
    let traits = Traits { election_ticks: 3000, ..Traits::default() };
    let hosts = Host::blank(["alpha", "beta", "gamma"]).map(|host| Host { traits: traits.clone(), ..host });
    let mut agents = start(&hosts).await.map(Some);
    let at = leader(&sees_whole(agents[0].as_ref().unwrap(), 3).await, &hosts);
    let [alone, first, second] = [at, (at + 1) % 3, (at + 2) % 3].map(|at| agents[at].take().unwrap());
    tokio::join!(first.stop(), second.stop());
    let mut client = alone.client().await;
    let change = tokio::spawn(async move {
        let request = proto::ManifestRequest { json: manifest(&[("lonely", "")]), from: "a test".to_owned() };
        client.apply(request).await
    });
    wait_for("the change in the log", async || {
        let log = std::fs::read(log(&hosts[at])).unwrap();
        if log.windows(6).any(|bytes| bytes == b"lonely") { Ok(()) } else { Err(format!("{} bytes", log.len())) }
    })
    .await;
    (hosts, at, alone, change)
}

#[track_caller]
fn is_unknown(told: &tonic::Status) {
    assert_eq!(told.code(), Code::DeadlineExceeded, "{told}");
    assert!(told.message().contains("the outcome is unknown"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_no_follower_takes_in_time_has_an_unknown_outcome_and_may_be_done_later() {
    let (hosts, at, alone, change) = left_alone().await;
    is_unknown(&change.await.unwrap().unwrap_err());
    let _follower = hosts[(at + 1) % 3].start();
    alone.sees("the change", |status| instance(status, "lonely-0").is_some()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_is_under_way_when_its_agent_stops_has_an_unknown_outcome() {
    let (_hosts, _, alone, change) = left_alone().await;
    alone.stop().await;
    is_unknown(&change.await.unwrap().unwrap_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_told_to_stop_hands_leadership_over_first() {
    let hosts = Host::blank(["alpha", "beta", "gamma"]);
    let mut agents = start(&hosts).await.map(Some);
    let status = sees_whole(agents[0].as_ref().unwrap(), 3).await;
    let (at, term) = (leader(&status, &hosts), cluster(&status).term);
    let follower = (at + 1) % 3;
    agents[at].take().unwrap().stop().await;
    // By then somebody has stood for election because it was asked to, and not because it missed a leader.
    let mut terms = Vec::new();
    for agent in agents.iter().flatten() {
        let at_once = proto::StatusRequest { freshness: proto::Freshness::Stale.into() };
        let mut watched = agent.client().await.watch_status(at_once).await.unwrap();
        let status = watched.get_mut().message().await.unwrap().unwrap();
        terms.push(cluster(&status).term);
    }
    assert!(terms.iter().any(|seen| *seen > term), "{terms:?} after {term}");
    let agent = agents[follower].as_ref().unwrap();
    agent.sees("another leader", |status| cluster(status).quorum && leader(status, &hosts) != at).await;
    assert_eq!(apply(agent, manifest(&[("web", "")])).await.unwrap().result, "applied");
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_goes_to_whom_a_person_names_on_whichever_host_they_ask() {
    let hosts = Host::blank(["alpha", "beta", "gamma"]);
    let mut agents = start(&hosts).await.map(Some);
    let transfer = async |asked: &Agent, name: &str| {
        let request = proto::TransferLeaderRequest { name: name.to_owned() };
        asked.client().await.transfer_leader(request).await.map(|reply| reply.into_inner().leader)
    };
    let at = leader(&sees_whole(agents[0].as_ref().unwrap(), 3).await, &hosts);
    // Asked of the leader, of whom is to lead, and of neither.
    for (asks, leads) in [(at, (at + 1) % 3), ((at + 2) % 3, (at + 2) % 3), (at, (at + 1) % 3)] {
        let agent = agents[asks].as_ref().unwrap();
        assert_eq!(transfer(agent, hosts[leads].name).await.unwrap(), hosts[leads].name);
        agent.sees("the new leader", |status| cluster(status).leader == hosts[leads].name).await;
    }
    let (leads, stays, stops) = ((at + 1) % 3, at, (at + 2) % 3);
    let agent = agents[leads].as_ref().unwrap();
    let refused = transfer(agent, hosts[leads].name).await.unwrap_err();
    assert!(refused.message().contains("leads already"), "{refused}");
    assert_eq!(transfer(agent, "delta").await.unwrap_err().code(), Code::NotFound);
    agents[stops].take().unwrap().stop().await;
    let agent = agents[leads].as_ref().unwrap();
    agent
        .sees("its silence", |status| status.nodes.iter().any(|node| node.name == hosts[stops].name && !node.alive))
        .await;
    let refused = transfer(agent, hosts[stops].name).await.unwrap_err();
    assert!(refused.message().contains("does not answer"), "{refused}");
    assert_eq!(transfer(agents[stays].as_ref().unwrap(), "").await.unwrap(), hosts[stays].name, "the one that is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_no_unit_is_touched_before_the_cluster_has_answered() {
    let hosts = Host::blank(["alpha", "beta", "gamma"]);
    let [alpha, beta, gamma] = start(&hosts).await;
    apply(&gamma, manifest(&[("a", ""), ("b", ""), ("c", "")])).await.unwrap();
    let status = sees_running(&gamma, 3).await;
    let own = status.instances.iter().find(|vm| vm.node == "gamma").expect("replicas are spread").name.clone();
    gamma.stop().await;
    // Meanwhile the others decide something that gamma can't know.
    let declared: Vec<_> = ["a", "b", "c"].into_iter().filter(|name| format!("{name}-0") != own).collect();
    let declared: Vec<_> = declared.into_iter().map(|name| (name, "")).collect();
    apply(&alpha, manifest(&declared)).await.unwrap();
    alpha.stop().await;
    beta.stop().await;

    // By its own old state, gamma would stop the one and start the other.
    let held = || hosts[2].units.held();
    let stray = || "stray-0".parse().unwrap();
    let vm = held().observed.vms.remove(&own.parse().unwrap()).unwrap();
    held().observed.vms.insert(stray(), ObservedVm { phase: UnitPhase::Running, ..vm });
    held().asked.clear();
    let gamma = hosts[2].start();
    for _ in 0..2 {
        // Each answer takes as long as a read waits for a quorum.
        let status = gamma.sees("no quorum", |status| !cluster(status).quorum).await;
        assert!(instance(&status, &own).is_some(), "it knows no better");
        assert_eq!(held().asked, Vec::<String>::new());
    }
    let _alpha = hosts[0].start();
    gamma.sees("the decision", |status| instance(status, &own).is_none() && cluster(status).quorum).await;
    wait_for("the stray to be stopped", async || {
        if held().observed.vms.is_empty() { Ok(()) } else { Err(format!("{:?}", held().observed.vms)) }
    })
    .await;
    assert!(!held().asked.contains(&format!("start {own}")), "{:?}", held().asked);
}
