//! A majority is lost for good, and the cluster begins anew from what one host has of it.

use blixard::agent::recovery::{self, RecoveryError};
use blixard_core::types::Level;
use blixard_core::unit::{ObservedVm, UnitPhase};

use super::removal::remove;
use super::support::{Agent, Api, Host, manifest, wait_for};
use super::{apply, cluster, instance, leader, no_vm_runs_twice, node, sees_running, sees_servers, sees_whole, start};

/// Makes a cluster of this host alone of what it has.
fn recover(host: &Host) -> u64 {
    recovery::examine(host.config(), Level::NEWEST).unwrap().recover().unwrap().number
}

fn units(host: &Host) -> Vec<String> {
    host.units.held().observed.vms.keys().map(ToString::to_string).collect()
}

async fn is_absent(agent: &Api, names: &[&str]) {
    agent
        .sees("who is absent", |status| {
            let is_absent = |name: &&str| node(status, name).role == "absent";
            let told =
                status.problems.iter().any(|problem| problem.contains("recovered") && problem.contains(names[0]));
            cluster(status).quorum && told && names.iter().all(is_absent)
        })
        .await;
}

/// Three hosts with a VM each, of which the first two end; the second of them is left to be recovered.
async fn lost() -> ([Host; 3], [Option<Agent>; 3]) {
    let hosts = Host::blank(["alpha", "beta", "gamma"]);
    let mut agents = start(&hosts).await.map(Some);
    apply(agents[0].as_ref().unwrap(), manifest(&[("a", ""), ("b", ""), ("c", "")])).await.unwrap();
    for agent in agents.iter().flatten() {
        sees_running(agent, 3).await;
    }
    for agent in &mut agents[..2] {
        agent.take().unwrap().stop().await;
    }
    (hosts, agents)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_survivor_goes_on_alone_and_starts_nothing_before_each_other_is_dead_or_has_rejoined() {
    let (hosts, [.., gamma]) = lost().await;
    assert_eq!(recover(&hosts[1]), 2);
    hosts[1].units.held().asked.clear();
    let beta = hosts[1].start();
    is_absent(&beta, &["alpha", "gamma"]).await;
    let before = units(&hosts[1]);
    assert_eq!(before.len(), 1);
    let declared = manifest(&[("a", ""), ("b", ""), ("c", ""), ("d", "")]);
    apply(&beta, declared).await.unwrap();
    let reason = |status: &blixard::api::proto::StatusReply| instance(status, "d-0").map(|d| d.reason.clone());
    let held = |status: &_| reason(status).is_some_and(|reason| reason.contains("alpha, gamma may run it"));
    beta.sees("why it waits", held).await;

    // An old member is refused, and what it runs is left alone.
    let old = units(&hosts[2]);
    let gamma = gamma.unwrap();
    let is_told = |status: &blixard::api::proto::StatusReply| {
        status.problems.iter().any(|problem| problem.contains("epoch 2-") && problem.contains("blixard cluster rejoin"))
    };
    let id = node(&gamma.sees("how to rejoin", is_told).await, "gamma").id;
    is_absent(&beta, &["gamma"]).await;
    gamma.stop().await;
    assert_eq!(units(&hosts[2]), old);

    remove(&beta, "alpha", true).await.unwrap();
    hosts[0].units.change(|held| held.observed.vms.clear());
    is_absent(&beta, &["gamma"]).await;
    assert_eq!(hosts[1].units.held().asked, Vec::<String>::new(), "gamma may run it");

    // It has a VM that the survivor has never heard of: that one is stopped, and what is placed there runs on.
    let stray = || "stray-0".parse().unwrap();
    hosts[2].units.change(|held| {
        let vm = held.observed.vms.values().next().unwrap().clone();
        held.observed.vms.insert(stray(), ObservedVm { phase: UnitPhase::Running, ..vm });
        held.asked.clear();
    });
    recovery::rejoin(&hosts[2].config()).unwrap();
    let gamma = hosts[2].start();
    sees_servers(&gamma, 1, 2).await;
    sees_running(&beta, 4).await;
    let asked = hosts[2].units.held().asked.clone();
    assert_eq!(asked[0], "stop stray-0", "{asked:?}");
    assert!(old.iter().all(|id| !asked.iter().any(|asked| asked.ends_with(id))), "{old:?} {asked:?}");
    assert!(before.iter().all(|id| !hosts[1].units.held().asked.iter().any(|asked| asked.ends_with(id))));
    no_vm_runs_twice(&hosts);
    let status = sees_servers(&beta, 1, 2).await;
    assert_eq!((cluster(&status).epoch, &*cluster(&status).renewal), (2, "recovered"));
    assert_eq!(node(&status, "gamma").id, id, "it is the node that it was");

    // A host that was made anew takes its name as ever.
    let mut hosts = hosts;
    hosts[0].dir = tempfile::tempdir().unwrap();
    let alpha = hosts[0].start();
    sees_whole(&alpha, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_an_earlier_epoch_is_told_how_to_rejoin_and_rejoins_as_often_as_there_is_a_new_one() {
    let (hosts, [.., gamma]) = lost().await;
    gamma.unwrap().stop().await;
    for epoch in 2..4 {
        assert_eq!(recover(&hosts[0]), epoch);
        let alpha = hosts[0].start();
        is_absent(&alpha, &["beta", "gamma"]).await;
        for host in &hosts[1..] {
            let kept = recovery::rejoin(&host.config()).unwrap();
            assert!(
                kept.ends_with(format!("raft.epoch-{}", epoch - 1)) && kept.join("state.redb").exists(),
                "{kept:?}"
            );
        }
        let (beta, gamma) = (hosts[1].start(), hosts[2].start());
        for agent in [&alpha, &beta, &gamma] {
            assert_eq!(cluster(&sees_whole(agent, 3).await).epoch, epoch);
            sees_running(agent, 3).await;
        }
        for agent in [alpha, beta, gamma] {
            agent.stop().await;
        }
    }
    // What it gave up is of this epoch: it may have given its vote there.
    recovery::rejoin(&hosts[2].config()).unwrap();
    let (_alpha, _beta, gamma) = (hosts[0].start(), hosts[1].start(), hosts[2].start());
    let mut client = gamma.client().await;
    wait_for("the reason", async || {
        let told = client.status(blixard::api::proto::StatusRequest::default()).await.unwrap_err();
        let is_told = told.message().contains("this very epoch") && told.message().contains("node replace");
        if is_told { Ok(()) } else { Err(told.message().to_owned()) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_the_survivors_log_is_kept() {
    let (hosts, at, alone, change) = super::quorum::left_alone().await;
    change.await.unwrap().unwrap_err();
    alone.stop().await;
    let survivor = recovery::examine(hosts[at].config(), Level::NEWEST).unwrap();
    let (last, uncommitted) = survivor.entries();
    assert!(uncommitted > 0 && last > uncommitted, "{uncommitted} of {last}");
    survivor.recover().unwrap();
    let agent = hosts[at].start();
    let status = agent.sees("the change", |status| instance(status, "lonely-0").is_some()).await;
    assert_eq!(leader(&agent.sees("a leader", |status| cluster(status).quorum).await, &hosts), at);
    assert!(cluster(&status).applied > last);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_recovered_is_refused_and_left_as_it_was() {
    let [mut alpha, beta] = Host::blank(["alpha", "beta"]);
    alpha.servers.pop();
    let refused = |host: &Host, understands| match recovery::examine(host.config(), understands) {
        Ok(_) => panic!("it was not refused"),
        Err(error) => blixard::error_chain(&error),
    };
    let raft = |host: &Host| host.dir.path().join("data/raft");
    assert!(refused(&alpha, Level::NEWEST).contains("there is no cluster's data in"));
    assert!(!raft(&alpha).exists());
    let agent = alpha.start();
    agent.is_healthy().await;
    let locked = refused(&alpha, Level::NEWEST);
    assert!(locked.contains("another agent has it open; stop that one first"), "{locked}");
    agent.stop().await;
    assert!(refused(&alpha, Level(0)).contains("the cluster is at feature level 1"));
    alpha.secret = "another secret of thirty-two bytes or more";
    let foreign = refused(&alpha, Level::NEWEST);
    assert!(foreign.contains("sealed with another cluster secret"), "{foreign}");
    alpha.secret = beta.secret;
    std::fs::create_dir(alpha.dir.path().join("data/raft.epoch-1")).unwrap();
    let kept = recovery::examine(alpha.config(), Level::NEWEST).unwrap().recover();
    assert!(
        matches!(&kept, Err(error @ RecoveryError::Kept { .. }) if error.to_string().contains("cut short")),
        "{kept:?}"
    );
    // A host that waits to become a member has nothing to recover.
    let waiting = beta.start();
    waiting.client().await;
    waiting.stop().await;
    assert!(refused(&beta, Level::NEWEST).contains("there is no cluster's data in"));
    let agent = alpha.start();
    assert_eq!(cluster(&agent.is_healthy().await).epoch, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recovery_that_a_crash_cut_short_leaves_the_old_cluster_or_the_new_one() {
    let [mut alpha, _] = Host::blank(["alpha", "beta"]);
    alpha.servers.pop();
    let agent = alpha.start();
    agent.is_healthy().await;
    agent.stop().await;
    // Cut short before it was whole; the exchange is one step.
    let unfinished = alpha.dir.path().join("data/raft.unfinished");
    std::fs::create_dir(&unfinished).unwrap();
    std::fs::write(unfinished.join("state.redb"), b"half a store").unwrap();
    let agent = alpha.start();
    assert_eq!(cluster(&agent.is_healthy().await).epoch, 1);
    agent.stop().await;
    assert_eq!(recover(&alpha), 2);
    assert!(!unfinished.exists());
    let agent = alpha.start();
    assert_eq!(cluster(&agent.is_healthy().await).epoch, 2);
}
