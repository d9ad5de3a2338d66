//! Agents that end, well or badly, and come back with their data.

use blixard::api::proto::{RunTaskRequest, StatusReply};

use super::support::{Host, manifest};
use super::{apply, cluster, instance, leader, no_vm_runs_twice, node, sees_running, sees_whole, start};

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_starts_again_with_its_data_is_the_same_node_and_leaves_its_vms_alone() {
    let hosts = Host::blank(["alpha", "beta", "gamma"]);
    let mut agents = start(&hosts).await.map(Some);
    let first = agents[0].as_ref().unwrap();
    apply(first, manifest(&[("a", ""), ("b", ""), ("c", "")])).await.unwrap();
    let before = sees_running(first, 3).await;
    let placed = |status: &StatusReply| {
        status.instances.iter().map(|vm| (vm.name.clone(), vm.node.clone(), vm.generation)).collect::<Vec<_>>()
    };
    for (host, agent) in hosts.iter().zip(&mut agents) {
        agent.take().unwrap().stop().await;
        let again = agent.insert(host.start());
        let after = sees_whole(again, 3).await;
        assert_eq!(cluster(&after).id, cluster(&before).id);
        assert_eq!(node(&after, host.name).id, node(&before, host.name).id);
        assert_eq!(placed(&after), placed(&before));
        assert_eq!(host.units.held().asked.len(), 1, "{:?}", host.units.held().asked);
    }
    no_vm_runs_twice(&hosts);
}

/// Whether the log of a host still begins where it once began.
fn has_its_first_segment(host: &Host) -> bool {
    host.dir.path().join("data/raft/log/0000000000000001.log").exists()
}

/// A task that no host has room for, almost as large as one may be.
fn large() -> RunTaskRequest {
    RunTaskRequest { command: vec!["x".repeat(60_000)], cpus: 1_000_000, memory_mib: 1 }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_was_away_for_longer_than_the_log_reaches_back_gets_a_snapshot() {
    let hosts = Host::blank(["alpha", "beta", "gamma"]);
    let [alpha, beta, gamma] = start(&hosts).await;
    gamma.stop().await;
    let (mut client, mut tasks) = (alpha.client().await, 0);
    while has_its_first_segment(&hosts[0]) || has_its_first_segment(&hosts[1]) {
        client.run_task(large()).await.unwrap();
        tasks += 1;
        assert!(tasks < 1_000, "the log is never cut");
    }
    let head = apply(&alpha, manifest(&[("web", "")])).await.unwrap().hash;
    let gamma = hosts[2].start();
    sees_running(&gamma, 1).await;
    let all_alive = |status: &StatusReply| status.nodes.iter().filter(|node| node.alive).count() == 3;
    gamma.sees("that all are alive", all_alive).await;
    let heads = gamma.client().await.list_manifests(super::proto::ListManifestsRequest::default()).await.unwrap();
    assert_eq!(heads.into_inner().heads.last().unwrap().hash, head);
    assert!(!has_its_first_segment(&hosts[2]), "it was brought there entry by entry");

    // It is as good as any other: with it and one more the cluster goes on, and it comes back by itself.
    beta.stop().await;
    apply(&gamma, manifest(&[("web", ""), ("db", "")])).await.unwrap();
    gamma.stop().await;
    let (_beta, gamma) = (hosts[1].start(), hosts[2].start());
    sees_running(&gamma, 2).await;
    no_vm_runs_twice(&hosts);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_capacity_and_changed_labels_are_taken_over_after_a_restart() {
    let mut hosts = Host::blank(["alpha"]);
    let [agent] = start(&hosts).await;
    apply(&agent, manifest(&[("web", r#", "requires": { "zone": "b" }, "diskMiB": 1000"#)])).await.unwrap();
    let lacks_label = |status: &StatusReply| status.problems.iter().any(|problem| problem.contains("zone"));
    agent.sees("that no node has the label", lacks_label).await;
    agent.stop().await;

    hosts[0].zone = "b";
    hosts[0].cpus = 9;
    let agent = hosts[0].start();
    let status = sees_running(&agent, 1).await;
    let worker = node(&status, "alpha").worker.as_ref().unwrap();
    assert_eq!(worker.labels["zone"], "b");
    let amounts = [worker.cpus, worker.memory_mib, worker.disk_mib].map(|amount| amount.map(|a| (a.free, a.total)));
    assert_eq!(amounts, [Some((8, 9)), Some((4000 - 228, 4000)), Some((1000, 2000))]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_starts_again_rejoins_without_an_election_of_its_own() {
    let hosts = Host::blank(["alpha", "beta", "gamma"]);
    let mut agents = start(&hosts).await.map(Some);
    let status = sees_whole(agents[0].as_ref().unwrap(), 3).await;
    let (at, term) = (leader(&status, &hosts), cluster(&status).term);
    for back in [(at + 1) % 3, (at + 2) % 3] {
        agents[back].take().unwrap().stop().await;
        let name = format!("vm{back}");
        apply(agents[at].as_ref().unwrap(), manifest(&[(&name, "")])).await.unwrap();
        let again = hosts[back].start();
        sees_whole(&again, 3).await;
        let status = sees_running(&again, 1).await;
        assert!(instance(&status, &format!("{name}-0")).is_some(), "it has what it missed");
        assert_eq!((leader(&status, &hosts), cluster(&status).term), (at, term));
        agents[back] = Some(again);
    }
}
