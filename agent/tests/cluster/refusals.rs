//! Hosts that may not take part, or not yet.

use std::net::TcpListener;

use blixard::api::proto;

use super::support::Host;
use super::{cluster, node, sees_servers, start, waits_for};

#[tokio::test(flavor = "multi_thread")]
async fn a_reinstalled_host_is_refused_its_old_name_and_founds_nothing() {
    let hosts = Host::blank(["alpha", "beta", "gamma"]);
    let [alpha, beta, gamma] = start(&hosts).await;
    // The first of the list: it is the one that may found.
    alpha.stop().await;
    std::fs::remove_dir_all(hosts[0].dir.path().join("data")).unwrap();
    let again = hosts[0].start();
    waits_for(&again, &["alpha", "taken by another host", "blixard node replace alpha"]).await;
    // Nor while it reaches nobody.
    again.stop().await;
    beta.stop().await;
    gamma.stop().await;
    let again = hosts[0].start();
    waits_for(&again, &["1 of 3", "beta", "gamma"]).await;
    assert!(hosts[0].units.held().asked.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_with_data_of_another_cluster_is_refused_with_both_named() {
    let [one] = Host::blank(["alpha"]);
    let [mut other] = Host::blank(["beta"]);
    let (alpha, beta) = (one.start(), other.start());
    let ids = [cluster(&alpha.is_healthy().await).id.clone(), cluster(&beta.is_healthy().await).id.clone()];
    assert_ne!(ids[0], ids[1]);
    beta.stop().await;
    other.servers.insert(0, one.servers[0].clone());
    let refused = other.start().ended().await.unwrap_err();
    let path = other.dir.path().join("data").display().to_string();
    for word in [&*ids[0], &*ids[1], "alpha@", &path, "move that directory away"] {
        assert!(refused.contains(word), "{word}: {refused}");
    }
    // As it was, it goes on.
    other.servers.remove(0);
    assert_eq!(cluster(&other.start().is_healthy().await).id, ids[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_with_data_of_another_name_is_refused_with_both_named() {
    let [mut alpha] = Host::blank(["alpha"]);
    let agent = alpha.start();
    agent.is_healthy().await;
    agent.stop().await;
    alpha.name = "delta";
    alpha.servers = vec![format!("delta@{}", alpha.address)];
    let refused = alpha.start().ended().await.unwrap_err();
    assert!(refused.contains("alpha") && refused.contains("set node.name"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_with_another_secret_neither_founds_nor_joins_and_names_the_secret_file() {
    let mut hosts = Host::blank(["alpha", "beta"]);
    hosts[1].secret = "another secret of thirty-two bytes";
    let agents = hosts.each_ref().map(Host::start);
    for agent in &agents {
        waits_for(agent, &["cluster.secret_file"]).await;
    }
    let [alpha, beta] = agents;
    beta.stop().await;
    hosts[1].secret = hosts[0].secret;
    let beta = hosts[1].start();
    for agent in [&alpha, &beta] {
        sees_servers(agent, 1, 2).await;
    }
    // One that joins later is no better off.
    beta.stop().await;
    let [mut gamma] = Host::blank(["gamma"]);
    gamma.servers.splice(0..0, hosts[0].servers.clone());
    gamma.secret = "another secret of thirty-two bytes";
    let agent = gamma.start();
    waits_for(&agent, &["cluster.secret_file", "alpha"]).await;
    agent.stop().await;
    assert_eq!(alpha.client().await.status(proto::StatusRequest::default()).await.unwrap().into_inner().nodes.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_file_that_is_missing_or_too_short_is_named() {
    let [mut alpha] = Host::blank(["alpha"]);
    alpha.secret = "short";
    let refused = alpha.start().ended().await.unwrap_err();
    let path = alpha.dir.path().join("secret").display().to_string();
    assert!(refused.contains(&path) && refused.contains("5 bytes") && refused.contains("openssl"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_lists_other_servers_is_told_so() {
    let mut hosts = Host::blank(["alpha", "beta", "gamma"]);
    hosts[1].servers.swap(0, 1);
    let (alpha, beta) = (hosts[0].start(), hosts[1].start());
    for agent in [&alpha, &beta] {
        waits_for(agent, &["lists other servers", "same order"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_named_with_its_setting() {
    let [alpha] = Host::blank(["alpha"]);
    let taken = TcpListener::bind(alpha.address).unwrap();
    let refused = alpha.start().ended().await.unwrap_err();
    assert!(refused.contains(&alpha.address.to_string()) && refused.contains("node.listen"), "{refused}");
    drop(taken);
    assert_eq!(node(&alpha.start().is_healthy().await, "alpha").id, 1);
}
