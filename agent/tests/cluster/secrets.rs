//! The cluster secret is rotated while everything runs.

use blixard::agent::recovery;
use blixard::api::proto;
use blixard_core::types::Level;
use tonic::Code;

use super::backup::{backup, restore};
use super::support::{Agent, Api, Host};
use super::{sees_servers, start, waits_for};

const NEW: &str = "a new secret of thirty-two bytes, at least";

async fn rotate(agent: &Api) -> Result<u64, tonic::Status> {
    let rotated = agent.client().await.rotate_secret(proto::RotateSecretRequest {}).await?;
    Ok(rotated.into_inner().index)
}

async fn is_refused(agent: &Api, words: &[&str]) {
    let refused = rotate(agent).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert!(words.iter().all(|word| refused.message().contains(word)), "{}", refused.message());
}

/// All that a person is to do, each with its words.
async fn says<const N: usize>(agent: &Api, problems: [&[&str]; N]) {
    let is_it = |problem: &String, words: &[&str]| words.iter().all(|word| problem.contains(word));
    agent
        .sees(&format!("{problems:?}"), |status| {
            status.problems.len() == N && status.problems.iter().zip(problems).all(|(seen, words)| is_it(seen, words))
        })
        .await;
}

/// A host that is no server, with this secret.
fn joiner(name: &'static str, secret: &'static str, servers: &[Host]) -> Host {
    let [mut host] = Host::blank([name]);
    host.servers.clone_from(&servers[0].servers);
    (host.secret, host.role) = (secret, "worker");
    host
}

/// It is switched to its new configuration.
async fn switch(host: &Host, agent: &mut Option<Agent>) {
    agent.take().unwrap().stop().await;
    *agent = Some(host.start());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_is_rotated_host_by_host_and_hosts_join_at_each_stage() {
    let mut hosts = Host::blank(["alpha", "beta", "gamma"]);
    let old = hosts[0].secret;
    let mut agents = start(&hosts).await.map(Some);
    is_refused(agents[0].as_ref().unwrap(), &["has no next cluster secret", "nextClusterSecretFile"]).await;
    for at in 0..3 {
        hosts[at].next_secret = Some(NEW);
        switch(&hosts[at], &mut agents[at]).await;
        let agent = agents[at].as_ref().unwrap();
        match at {
            0 => says(agent, [&["can't be rotated yet: alpha has", "beta", "gamma", " lacks it"]]).await,
            1 => says(agent, [&["can't be rotated yet", "and gamma lacks it"]]).await,
            _ => says(agent, [&["can be rotated, by `blixard cluster rotate-secret`"]]).await,
        }
        if at < 2 {
            is_refused(agent, &["not every server has said that it has this next cluster secret", "gamma"]).await;
        }
    }

    // Whoever has either joins. One of them won't be able to sign, the other isn't yet.
    let alpha = || agents[0].as_ref().unwrap();
    let (mut delta, epsilon) = (joiner("delta", old, &hosts), joiner("epsilon", NEW, &hosts));
    let mut workers = [Some(delta.start()), Some(epsilon.start()), None];
    says(alpha(), [&["epsilon can't sign"], &["can be rotated", "delta lacks it, and can't sign from then on"]]).await;
    rotate(alpha()).await.unwrap();
    says(alpha(), [&["delta can't sign", "cluster.secret_file"], &["was rotated", "alpha", "beta", "gamma"]]).await;
    is_refused(alpha(), &["that is done", "make it the current one"]).await;
    // Another authority's key is sealed with what opens the cluster's, which isn't this host's current one yet.
    let request = proto::RotateAuthorityRequest { given: None };
    alpha().client().await.rotate_authority(request).await.unwrap();
    says(alpha(), [&["delta can't sign", "cluster.secret_file"], &["was rotated", "alpha", "beta", "gamma"]]).await;

    // Nobody joins any more by the one that may be known to others.
    let mut late = joiner("zeta", old, &hosts);
    let refused = late.start();
    waits_for(&refused, &["the cluster secret was rotated", "cluster.secret_file"]).await;
    refused.stop().await;
    late.secret = NEW;
    for at in 0..3 {
        (hosts[at].secret, hosts[at].next_secret) = (NEW, None);
        switch(&hosts[at], &mut agents[at]).await;
        let agent = agents[at].as_ref().unwrap();
        match at {
            0 => says(agent, [&["delta can't sign"], &["was rotated", "beta", "gamma"]]).await,
            1 => says(agent, [&["delta can't sign"], &["was rotated", "on gamma"]]).await,
            _ => says(agent, [&["delta can't sign"]]).await,
        }
        // By a server that has been switched, or one that hasn't.
        if at == 0 {
            workers[2] = Some(late.start());
            agent.sees("zeta", |status| status.nodes.len() == 6).await;
        }
    }
    let refused = joiner("eta", old, &hosts);
    waits_for(&refused.start(), &["did not prove the cluster secret", "after it was rotated"]).await;

    // One that was away all the time has no more to do than to be given the secret.
    delta.secret = NEW;
    switch(&delta, &mut workers[0]).await;
    for agent in agents.iter().chain(&workers).flatten() {
        sees_servers(agent, 3, 6).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_begins_anew_by_the_secret_of_its_data_whichever_that_is() {
    let [mut alpha] = Host::blank(["alpha"]);
    let old = alpha.secret;
    alpha.next_secret = Some(NEW);
    let agent = alpha.start();
    agent.sees("that it can be rotated", |status| status.problems.len() == 1).await;
    let file = backup(&agent, alpha.dir.path(), "backup").await;
    rotate(&agent).await.unwrap();
    agent.stop().await;
    let examine = |host: &Host| match recovery::examine(host.config(), Level::NEWEST) {
        Ok(_) => String::new(),
        Err(error) => blixard::error_chain(&error),
    };
    assert_eq!(examine(&alpha), "", "it has both");
    alpha.next_secret = None;
    assert!(examine(&alpha).contains("sealed with another cluster secret"), "it has the old one alone");
    alpha.secret = NEW;
    assert_eq!(examine(&alpha), "");

    let [mut beta] = Host::blank(["beta"]);
    beta.secret = NEW;
    let refused = restore(&beta, &file, false).unwrap_err();
    assert!(refused.contains("sealed with another cluster secret"), "{refused}");
    (beta.secret, beta.next_secret) = (old, Some(NEW));
    restore(&beta, &file, false).unwrap();
    let agent = beta.start();
    says(&agent, [&["node alpha does not answer"], &["what alpha may run"], &["can be rotated"]]).await;
}
