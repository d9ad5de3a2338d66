//! Nodes leave the cluster: alive, dead, or the leader itself.

use blixard::api::proto::{RemoveNodeReply, RemoveNodeRequest, StatusReply};
use tonic::{Code, Status};

use super::support::{Agent, Api, FakeUnits, Host, manifest};
use super::{apply, cluster, instance, leader, no_vm_runs_twice, node, sees_running, sees_whole, start};

pub async fn remove(asked: &Api, name: &str, dead: bool) -> Result<RemoveNodeReply, Status> {
    let request = RemoveNodeRequest { name: name.to_owned(), dead, abandon_volumes: false };
    asked.client().await.remove_node(request).await.map(tonic::Response::into_inner)
}

/// An agent whose host was removed ends, and says so.
async fn is_told(agent: Agent) {
    let ended = agent.ended().await.unwrap_err();
    assert!(
        ended.contains("was removed from the cluster") && ended.contains("move its data directory away"),
        "{ended}"
    );
}

pub async fn falls_silent(asked: &Api, name: &str) {
    asked.sees("that it is silent", |status| !node(status, name).alive).await;
}

/// Three hosts with a VM each, and where the leader is.
async fn three() -> ([Host; 3], [Option<Agent>; 3], usize) {
    let hosts = Host::blank(["alpha", "beta", "gamma"]);
    let agents = start(&hosts).await;
    apply(&agents[0], manifest(&[("a", ""), ("b", ""), ("c", "")])).await.unwrap();
    let status = sees_running(&agents[0], 3).await;
    let at = leader(&status, &hosts);
    (hosts, agents.map(Some), at)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_removed_gives_up_what_it_runs_and_its_vote_and_ends() {
    for of_leader in [false, true] {
        let (hosts, mut agents, at) = three().await;
        let (goes, stays) = if of_leader { (at, (at + 1) % 3) } else { ((at + 1) % 3, at) };
        let gone = agents[goes].take().unwrap();
        let asked = agents[stays].as_ref().unwrap();
        let id = remove(asked, hosts[goes].name, false).await.unwrap().node;
        is_told(gone).await;
        let status = sees_whole(asked, 2).await;
        assert!(status.nodes.iter().all(|node| node.id != id));
        sees_running(asked, 3).await;
        no_vm_runs_twice(&hosts);
        assert!(hosts[goes].units.held().observed.vms.is_empty());
        // It is told again as often as it comes back.
        is_told(hosts[goes].start()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_node_is_removed_and_its_vms_start_elsewhere_at_a_persons_word() {
    let (mut hosts, mut agents, at) = three().await;
    let dead = (at + 1) % 3;
    let name = hosts[dead].name;
    agents[dead].take().unwrap().stop().await;
    let asked = agents[at].as_ref().unwrap();
    let answers = remove(asked, name, true).await;
    // It may have fallen silent by now.
    if let Err(refused) = answers {
        assert!(refused.message().contains("answers, so it isn't dead"), "{refused}");
        falls_silent(asked, name).await;
        let refused = remove(asked, name, false).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        assert!(refused.message().contains("--dead"), "{refused}");
        remove(asked, name, true).await.unwrap();
    }
    sees_whole(asked, 2).await;
    sees_running(asked, 3).await;
    is_told(hosts[dead].start()).await;

    // The host is made anew, and takes its name again.
    hosts[dead].dir = tempfile::tempdir().unwrap();
    hosts[dead].units = FakeUnits::default();
    let again = hosts[dead].start();
    let status = sees_whole(&again, 3).await;
    assert_eq!(node(&status, name).id, 4, "ids are fresh");
    no_vm_runs_twice(&hosts);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_that_would_cost_the_quorum_is_refused() {
    let (hosts, mut agents, at) = three().await;
    let [silent, other] = [(at + 1) % 3, (at + 2) % 3];
    agents[silent].take().unwrap().stop().await;
    let asked = agents[at].as_ref().unwrap();
    falls_silent(asked, hosts[silent].name).await;
    for name in [hosts[other].name, hosts[at].name] {
        let refused = remove(asked, name, false).await.unwrap_err();
        let says = |part: &str| refused.message().contains(part);
        assert!(says(&format!("without {name} only 1 of 2 servers")) && says(hosts[silent].name), "{refused}");
    }
    let nobody = remove(asked, "delta", false).await.unwrap_err();
    assert!(nobody.code() == Code::NotFound && nobody.message().contains("blixard node ls"), "{nobody}");
    let _silent = hosts[silent].start();
    let all = |status: &StatusReply| cluster(status).servers == 3 && instance(status, "a-0").is_some();
    asked.sees("that all are there still", all).await;
}
