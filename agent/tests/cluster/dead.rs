//! A person says that a node is dead, and it comes back.

use blixard::api::proto::{ConfirmDeadRequest, ResumeTakeoverRequest, StatusReply};
use tonic::Code;

use super::removal::falls_silent;
use super::support::{Api, FakeUnits, Host, manifest};
use super::{apply, instance, leader, no_vm_runs_twice, node, sees_running, start};

async fn confirm_dead(asked: &Api, name: &str) -> Result<(), tonic::Status> {
    let request = ConfirmDeadRequest { name: name.to_owned(), abandon_volumes: false };
    asked.client().await.confirm_dead(request).await.map(|_| ())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_ran_starts_elsewhere_once_a_person_says_that_it_is_dead_and_stays_there_when_it_is_back() {
    let mut hosts = Host::blank(["alpha", "beta", "gamma"]);
    let mut agents = start(&hosts).await.map(Some);
    apply(agents[0].as_ref().unwrap(), manifest(&[("a", ""), ("b", ""), ("c", "")])).await.unwrap();
    let status = sees_running(agents[0].as_ref().unwrap(), 3).await;
    let at = leader(&status, &hosts);
    let (lost, name) = ((at + 1) % 3, hosts[(at + 1) % 3].name);
    let asked = agents[at].take().unwrap();
    let lives = confirm_dead(&asked, name).await.unwrap_err();
    assert!(lives.message().contains(&format!("{name} answers, so it isn't dead")), "{lives}");
    assert_eq!(confirm_dead(&asked, "delta").await.unwrap_err().code(), Code::NotFound);
    let free = asked.client().await.resume_takeover(ResumeTakeoverRequest {}).await.unwrap_err();
    assert!(free.message().contains("takeover is not frozen"), "{free}");

    // Its host is powered off.
    agents[lost].take().unwrap().stop().await;
    hosts[lost].units = FakeUnits::default();
    falls_silent(&asked, name).await;
    let unknown = |status: &StatusReply| status.instances.iter().filter(|vm| vm.state == "unknown").count() == 1;
    let status = asked.sees("an instance that may run", unknown).await;
    let its = status.instances.iter().find(|vm| vm.node == name).unwrap().name.clone();
    assert!(instance(&status, &its).unwrap().reason.contains(&format!("`blixard node confirm-dead {name}`")));
    confirm_dead(&asked, name).await.unwrap();
    let status = sees_running(&asked, 3).await;
    assert_ne!(instance(&status, &its).unwrap().node, name);
    assert_eq!(node(&status, name).lease, "dead");
    assert!(status.problems.contains(&format!(
        "node {name} is dead, as a person has said: `blixard node remove {name} --dead` forgets it"
    )));

    let back = hosts[lost].start();
    let status = back.is_healthy().await;
    assert_ne!(instance(&status, &its).unwrap().node, name);
    assert_eq!(hosts[lost].units.held().asked, [""; 0], "what it ran is others' now");
    no_vm_runs_twice(&hosts);
}
