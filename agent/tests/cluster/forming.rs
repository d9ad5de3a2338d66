//! Blank hosts become a cluster.

use blixard::api::proto;
use blixard::api::proto::api_client::ApiClient;
use tonic::transport::Channel;

use super::support::{Host, manifest, manifest_of};
use super::{PATIENCE, apply, cluster, leader, no_vm_runs_twice, node, sees_running, sees_whole, start};

#[tokio::test(flavor = "multi_thread")]
async fn three_blank_hosts_become_one_cluster_whatever_order_they_start_in() {
    for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
        let hosts = Host::blank(["alpha", "beta", "gamma"]);
        let mut agents = Vec::new();
        for at in order {
            let agent = hosts[at].start();
            // Each has found out what it is to do before the next one comes.
            let mut client = agent.client().await;
            let _ = client.status(proto::StatusRequest::default()).await;
            agents.push(agent);
        }
        let mut ids = Vec::new();
        for agent in &agents {
            let status = sees_whole(agent, 3).await;
            ids.push(cluster(&status).id.clone());
            for host in &hosts {
                let shown = node(&status, host.name);
                let worker = shown.worker.as_ref().unwrap();
                assert_eq!(shown.address, host.address.to_string());
                assert_eq!(worker.cpus, Some(proto::Amount { free: 4, total: 4 }));
                assert_eq!(worker.memory_mib.unwrap().total, 4000, "what is reserved is not offered");
                assert_eq!(worker.system, blixard::probe::system());
                assert_eq!(worker.hypervisors, ["qemu"]);
                assert_eq!(worker.labels["zone"], "a");
                assert!(worker.no_fence.contains("does blixard-fence.service run?"), "{}", worker.no_fence);
            }
        }
        assert!(ids.iter().all(|id| id.len() == 32 && *id == ids[0]), "{ids:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_host_alone_founds_its_cluster_and_answers_a_proposal_at_once() {
    let hosts = Host::blank(["alpha"]);
    let [agent] = start(&hosts).await;
    let begin = std::time::Instant::now();
    assert_eq!(apply(&agent, manifest(&[("web", "")])).await.unwrap().result, "applied");
    let took = begin.elapsed();
    assert!(took < PATIENCE, "{took:?}");
    let status = sees_running(&agent, 1).await;
    assert_eq!(cluster(&status).servers, 1);
    assert_eq!(hosts[0].units.held().asked, ["start web-0"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proposal_on_any_node_is_answered_with_its_outcome() {
    let hosts = Host::blank(["alpha", "beta", "gamma"]);
    let agents = start(&hosts).await;
    for (agent, name) in agents.iter().zip(["a", "b", "c"]) {
        let json = manifest(&[(name, "")]);
        let applied = apply(agent, json.clone()).await.unwrap();
        assert_eq!(applied.result, "applied");
        assert_eq!(apply(agent, json).await.unwrap().result, "equal");
        // Acknowledged here is known everywhere.
        for other in &agents {
            let heads = other.client().await.list_manifests(proto::ListManifestsRequest::default()).await.unwrap();
            assert_eq!(heads.into_inner().heads.last().unwrap().hash, applied.hash);
        }
        // So is what comes of going back, which only the state knows.
        let mut client = agent.client().await;
        let back = async |client: &mut ApiClient<Channel>| {
            let request = proto::RollBackManifestRequest { from: "a test".to_owned() };
            client.roll_back_manifest(request).await.unwrap().into_inner().hash
        };
        if name != "a" {
            assert_ne!(back(&mut client).await, applied.hash);
            assert_eq!(back(&mut client).await, applied.hash);
        }
        let empty = proto::RunTaskRequest { command: vec![], cpus: 1, memory_mib: 1 };
        let refused = agent.client().await.run_task(empty).await.unwrap_err();
        assert!(refused.message().contains("no command"), "{refused}");
    }
    for agent in &agents {
        sees_whole(agent, 3).await;
    }
    no_vm_runs_twice(&hosts);
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_spread_over_the_hosts_and_each_runs_once() {
    let hosts = Host::blank(["alpha", "beta", "gamma"]);
    let agents = start(&hosts).await;
    apply(&agents[2], manifest(&[("a", ""), ("b", ""), ("c", "")])).await.unwrap();
    let status = sees_running(&agents[0], 3).await;
    no_vm_runs_twice(&hosts);
    for vm in &status.instances {
        let host = hosts.iter().find(|host| host.name == vm.node).unwrap();
        assert!(host.units.held().asked.contains(&format!("start {}", vm.name)));
    }
    // What is no longer declared is stopped, on whichever host it is.
    apply(&agents[1], manifest(&[("b", "")])).await.unwrap();
    agents[0].sees("one VM", |status| status.instances.len() == 1).await;
    let left: usize = hosts.iter().map(|host| host.units.held().observed.vms.len()).sum();
    assert_eq!(left, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_away_while_others_joined_follows_one_of_those_when_it_leads() {
    let mut hosts = Host::blank(["alpha", "beta", "gamma", "delta", "epsilon"]);
    for host in &mut hosts[..3] {
        host.servers.truncate(3);
    }
    let [alpha, beta, gone] = [0, 1, 2].map(|at| hosts[at].start());
    for agent in [&alpha, &beta, &gone] {
        sees_whole(agent, 3).await;
    }
    apply(&alpha, manifest_of(r#""servers": 5"#, &[])).await.unwrap();
    gone.stop().await;
    let mut agents = [Some(alpha), Some(beta), Some(hosts[3].start()), Some(hosts[4].start())];
    let at = [0, 1, 3, 4];
    let mut leads = 0;
    // A leader that stops hands over to any of the other three.
    for _ in 0..20 {
        let all_vote = |status: &proto::StatusReply| cluster(status).servers == 5 && !cluster(status).leader.is_empty();
        leads = leader(&agents[2].as_ref().unwrap().sees("a leader of five", all_vote).await, &hosts);
        let Some(leader) = at.iter().position(|at| *at == leads && leads < 3) else { break };
        agents[leader].take().unwrap().stop().await;
        agents[leader] = Some(hosts[leads].start());
    }
    assert!(leads >= 3, "one of the new ones leads sooner or later");
    sees_whole(&hosts[2].start(), 5).await;
}
