//! Hosts that join with a token.

use blixard::api::proto;
use blixard::identity::JoinToken;
use blixard_core::types::Timestamp;

use super::support::{Agent, Api, Host};
use super::{cluster, sees_servers, sees_whole, waits_for};

const HOUR_MS: u64 = 3_600_000;

pub async fn create_token(agent: &Api) -> proto::CreateTokenReply {
    let request = proto::CreateTokenRequest { ttl_ms: HOUR_MS, role: String::new() };
    agent.client().await.create_token(request).await.unwrap().into_inner()
}

/// Hosts that have this token, and join by way of `by`.
pub fn with_token<const N: usize>(names: [&'static str; N], by: &Host, token: &str) -> [Host; N] {
    let mut hosts = Host::blank(names);
    for host in &mut hosts {
        let own = host.servers.iter().find(|server| server.starts_with(host.name)).cloned();
        host.servers = by.servers.iter().take(1).cloned().chain(own).collect();
        host.token = Some(token.to_owned());
    }
    hosts
}

/// A founder that runs, and hosts that have one token of its.
pub async fn founder_of<const N: usize>(names: [&'static str; N]) -> (Host, Agent, [Host; N]) {
    let [founder] = Host::blank(["alpha"]);
    let alpha = founder.start();
    alpha.is_healthy().await;
    let hosts = with_token(names, &founder, &create_token(&alpha).await.token);
    (founder, alpha, hosts)
}

async fn states(agent: &Api) -> Vec<(String, String)> {
    let request = proto::ListTokensRequest::default();
    let tokens = agent.client().await.list_tokens(request).await.unwrap().into_inner().tokens;
    tokens.into_iter().map(|token| (token.state, token.node)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_with_a_token_joins_and_needs_it_no_more() {
    let (_founder, alpha, [host]) = founder_of(["beta"]).await;
    let beta = host.start();
    sees_servers(&beta, 1, 2).await;
    assert_eq!(states(&alpha).await, [("used".to_owned(), "beta".to_owned())]);
    beta.stop().await;
    // Whatever is in its place now.
    let [host] = [Host { token: Some("nothing".to_owned()), ..host }];
    sees_servers(&host.start(), 1, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_hosts_with_one_token_one_joins_and_the_other_is_told_which() {
    let (founder, alpha, hosts) = founder_of(["beta", "gamma"]).await;
    let agents = hosts.each_ref().map(Host::start);
    let status = sees_servers(&alpha, 1, 2).await;
    let joined = hosts.iter().position(|host| status.nodes.iter().any(|node| node.name == host.name)).unwrap();
    waits_for(&agents[1 - joined], &["was used already, by", hosts[joined].name, "blixard token create"]).await;
    assert_eq!(sees_servers(&agents[joined], 1, 2).await.nodes.len(), 2);
    // With one of its own it joins at once: the file is read again.
    let [other] = with_token([hosts[1 - joined].name], &founder, &create_token(&alpha).await.token);
    std::fs::write(hosts[1 - joined].dir.path().join("token"), other.token.unwrap()).unwrap();
    sees_whole(&agents[1 - joined], 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_no_good_is_refused_with_what_is_wrong_with_it() {
    let [founder] = Host::blank(["alpha"]);
    let [other] = Host::blank(["omega"]);
    let (alpha, omega) = (founder.start(), other.start());
    let id = cluster(&alpha.is_healthy().await).id.clone();
    omega.is_healthy().await;
    let revoked = create_token(&alpha).await;
    let request = proto::RevokeTokenRequest { id: revoked.id.clone() };
    alpha.client().await.revoke_token(request).await.unwrap();
    let good = create_token(&alpha).await.token;
    let [mut expired, mut guessed]: [JoinToken; 2] = [&good, &good].map(|text| text.parse().ok().unwrap());
    // As one that the cluster has forgotten since.
    expired.id.0 ^= 1;
    expired.expires = Timestamp(1);
    guessed.id = expired.id;
    let foreign = create_token(&omega).await.token;
    for (token, words) in [
        (revoked.token, [&revoked.id, "was revoked"]),
        (expired.to_string(), ["has expired", "blixard token create"]),
        (guessed.to_string(), ["knows no token", "blixard token create"]),
        (good[..good.len() - 1].to_owned(), ["/token", "an error in it"]),
        (foreign, [&id, "cluster.token_file"]),
    ] {
        let [host] = with_token(["beta"], &founder, &token);
        let beta = host.start();
        waits_for(&beta, &words).await;
    }
    assert_eq!(sees_whole(&alpha, 1).await.nodes.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_joined_with_a_token_vouches_for_nobody() {
    let (founder, alpha, [host]) = founder_of(["beta"]).await;
    let beta = host.start();
    sees_servers(&beta, 1, 2).await;
    let unused = create_token(&beta).await.token;
    let [mut late] = with_token(["gamma"], &founder, &unused);
    late.servers[0] = format!("beta@{}", host.address);
    let gamma = late.start();
    waits_for(&gamma, &["beta", "has no cluster secret"]).await;
    assert_eq!(states(&alpha).await.last().unwrap().0, "unused", "it is not used up by that");
    gamma.stop().await;
    late.servers.insert(0, founder.servers[0].clone());
    sees_whole(&late.start(), 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_with_a_workers_token_is_no_server_whatever_it_is_configured_as() {
    let [founder] = Host::blank(["alpha"]);
    let alpha = founder.start();
    alpha.is_healthy().await;
    let request = |role: &str| proto::CreateTokenRequest { ttl_ms: HOUR_MS, role: role.to_owned() };
    let refused = alpha.client().await.create_token(request("king")).await.unwrap_err();
    assert!(refused.message().contains("auto, server or worker"), "{refused}");
    let token = alpha.client().await.create_token(request("worker")).await.unwrap().into_inner().token;
    let [mut host] = with_token(["beta"], &founder, &token);
    host.role = "server";
    let beta = host.start();
    let registered =
        |status: &proto::StatusReply| status.nodes.iter().any(|node| node.name == "beta" && node.worker.is_some());
    let status = beta.sees("it to register", registered).await;
    assert_eq!(status.nodes.iter().map(|node| node.role.as_str()).collect::<Vec<_>>(), ["leader", "worker"]);
}
