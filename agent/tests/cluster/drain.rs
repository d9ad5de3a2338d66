//! Nodes that are emptied for a time, and instances that are moved.

use blixard::api::proto;
use blixard_core::unit::UnitPhase;

use super::support::{Api, Host, manifest};
use super::{apply, instance, no_vm_runs_twice, node, sees_running, start};

async fn set(agent: &Api, name: &str, availability: proto::Availability) -> Result<(), tonic::Status> {
    let (name, availability) = (name.to_owned(), availability.into());
    let request = proto::SetAvailabilityRequest { name, availability, abandon_volumes: false };
    agent.client().await.set_availability(request).await.map(|_| ())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_node_is_emptied_and_nothing_comes_back_before_it_is_used_again() {
    let hosts = Host::blank(["alpha", "beta", "gamma"]);
    let agents = start(&hosts).await;
    let names = ["a", "b", "c", "d", "e", "f"];
    apply(&agents[0], manifest(&names.map(|name| (name, "")))).await.unwrap();
    sees_running(&agents[0], 6).await;
    set(&agents[2], "beta", proto::Availability::Draining).await.unwrap();
    let is_empty = |status: &proto::StatusReply| {
        let beta = node(status, "beta");
        beta.held == 0 && status.instances.iter().all(|vm| vm.state == "running" && vm.node != "beta")
    };
    let status = agents[1].sees("an empty node and six VMs elsewhere", is_empty).await;
    assert_eq!(node(&status, "beta").availability, "draining");
    no_vm_runs_twice(&hosts);
    assert!(hosts[1].units.held().observed.vms.values().all(|vm| vm.phase == UnitPhase::Inactive));
    // Of each that has left, the stop came before the start elsewhere.
    let stopped = hosts[1].units.held().asked.iter().filter(|asked| asked.starts_with("stop")).count();
    assert_eq!(stopped, 2, "{:?}", hosts[1].units.held().asked);

    apply(&agents[0], manifest(&[("a", ""), ("g", ""), ("h", "")])).await.unwrap();
    let status = sees_running(&agents[0], 3).await;
    assert_eq!(node(&status, "beta").held, 0);
    set(&agents[0], "beta", proto::Availability::Active).await.unwrap();
    apply(&agents[0], manifest(&[("a", ""), ("g", ""), ("h", ""), ("i", "")])).await.unwrap();
    assert_eq!(instance(&sees_running(&agents[0], 4).await, "i-0").unwrap().node, "beta", "the emptiest again");
    let unknown = set(&agents[0], "delta", proto::Availability::Cordoned).await.unwrap_err();
    assert!(unknown.message().contains("there is no node delta"), "{unknown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_is_moved_to_where_a_person_wants_it() {
    let hosts = Host::blank(["alpha", "beta", "gamma"]);
    let agents = start(&hosts).await;
    apply(&agents[0], manifest(&[("web", "")])).await.unwrap();
    let from = instance(&sees_running(&agents[0], 1).await, "web-0").unwrap().node.clone();
    let [to, other]: [&str; 2] =
        hosts.iter().map(|host| host.name).filter(|name| *name != from).collect::<Vec<_>>().try_into().unwrap();
    let go = async |to: &str, instance: &str| {
        let request = proto::MoveRequest { instance: instance.to_owned(), to: to.to_owned(), abandon_volumes: false };
        agents[0].client().await.r#move(request).await
    };
    go(to, "web-0").await.unwrap();
    let is_there = |status: &proto::StatusReply| {
        instance(status, "web-0").is_some_and(|vm| vm.node == to && vm.state == "running" && vm.generation == 2)
    };
    agents[1].sees("it to run there", is_there).await;
    no_vm_runs_twice(&hosts);
    for (to, instance, says) in [
        (to, "web-0", "already"),
        ("delta", "web-0", "no node delta"),
        (other, "db-0", "no instance db-0"),
        (other, "web", "web"),
    ] {
        let error = go(to, instance).await.unwrap_err();
        assert!(error.message().contains(says), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_are_not_given_up_for_a_node_that_will_not_do() {
    let mut hosts = Host::blank(["alpha", "beta", "gamma"]);
    hosts[1].zone = "b";
    let agents = start(&hosts).await;
    let zone = hosts[0].zone;
    let volumes = format!(r#", "diskMiB": 1, "requires": {{ "zone": "{zone}" }}"#);
    apply(&agents[0], manifest(&[("db", &volumes)])).await.unwrap();
    sees_running(&agents[0], 1).await;
    let request = proto::MoveRequest { instance: "db-0".to_owned(), to: "beta".to_owned(), abandon_volumes: true };
    let error = agents[0].client().await.r#move(request).await.unwrap_err();
    assert!(error.message().contains("beta won't do for db-0") && error.message().contains("label zone"), "{error}");
    assert_eq!(instance(&sees_running(&agents[0], 1).await, "db-0").unwrap().generation, 1);
}
