//! Certificates that are renewed, or have expired, or are of another authority.

use std::path::PathBuf;
use std::time::Duration;

use blixard::api::proto;
use blixard::identity::{Clock, NodeIdentity};

use super::support::{Agent, Api, Host, wait_for};
use super::tokens::{create_token, founder_of, with_token};
use super::{cluster, sees_servers, sees_whole, start, waits_for};

fn later(hosts: &mut [Host], days: u64) {
    for host in hosts {
        host.traits.clock = Clock { ahead: Duration::from_secs(days * 24 * 3600) };
    }
}

fn renewed(host: &Host) -> PathBuf {
    host.dir.path().join("data/raft/certificate")
}

async fn has_renewed(host: &Host) -> Vec<u8> {
    let read = async || std::fs::read(renewed(host)).map_err(|error| error.to_string());
    wait_for("a renewed certificate", read).await
}

async fn stop<const N: usize>(agents: [Agent; N]) {
    for agent in agents {
        agent.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_renewed_before_they_expire_and_nobody_notices() {
    let mut hosts = Host::blank(["alpha", "beta", "gamma"]);
    stop(start(&hosts).await).await;
    assert!(hosts.iter().all(|host| !renewed(host).exists()));
    later(&mut hosts, 62);
    let agents = start(&hosts).await;
    let before = cluster(&sees_whole(&agents[0], 3).await).clone();
    let mut certificates = Vec::new();
    for host in &hosts {
        certificates.push(has_renewed(host).await);
    }
    let after = cluster(&sees_whole(&agents[0], 3).await).clone();
    assert_eq!((before.leader, before.term), (after.leader, after.term));
    stop(agents).await;
    // The first ones have expired by now; what was kept is shown, and not renewed again before it is due.
    later(&mut hosts, 100);
    let agents = start(&hosts).await;
    for (host, certificate) in hosts.iter().zip(&certificates) {
        assert_eq!(has_renewed(host).await, *certificate);
    }
    stop(agents).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_cannot_be_renewed_is_a_problem_in_the_status_with_the_reason_until_it_is() {
    let (mut alpha, agent, [mut beta]) = founder_of(["beta"]).await;
    let other = beta.start();
    let first = cluster(&sees_servers(&other, 1, 2).await).certificate_expires;
    stop([agent, other]).await;
    for host in [&mut alpha, &mut beta] {
        later(std::slice::from_mut(host), 80);
    }
    let other = beta.start();
    let is_told = |status: &proto::StatusReply| {
        let is_of_it = |problem: &String| problem.contains("the certificate of beta expires in 9 days");
        status.problems.iter().any(|problem| is_of_it(problem) && problem.contains("no cluster secret"))
    };
    assert_eq!(cluster(&other.sees("why it can't be renewed", is_told).await).certificate_expires, first);
    let agent = alpha.start();
    let renewed = cluster(&sees_servers(&other, 1, 2).await).certificate_expires;
    assert!(renewed > first + 70 * 24 * 3600 * 1000, "{renewed} {first}");
    stop([agent, other]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_was_off_until_all_certificates_had_expired_starts_by_itself() {
    // Who has no secret can't sign its own.
    let (mut alpha, agent, [mut beta]) = founder_of(["beta"]).await;
    let other = beta.start();
    sees_servers(&other, 1, 2).await;
    stop([agent, other]).await;
    for host in [&mut alpha, &mut beta] {
        later(std::slice::from_mut(host), 1000);
    }
    let agents = [beta.start(), alpha.start()];
    for agent in &agents {
        sees_servers(agent, 1, 2).await;
    }
    // One that can't be read is as none.
    stop(agents).await;
    std::fs::write(renewed(&beta), "damaged").unwrap();
    let agents = [alpha.start(), beta.start()];
    sees_servers(&agents[1], 1, 2).await;
}

pub async fn rotate(agent: &Api, given: Option<proto::GivenAuthority>) -> Result<(), tonic::Status> {
    agent.client().await.rotate_authority(proto::RotateAuthorityRequest { given }).await.map(|_| ())
}

/// The authorities that a host trusts after a restart, once it is one alone, and not `but` this one.
async fn trusts_one(host: &Host, but: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let read = async || {
        let bytes = std::fs::read(renewed(host)).map_err(|error| error.to_string())?;
        let kept: NodeIdentity = postcard::from_bytes(&bytes).map_err(|error| error.to_string())?;
        let trusted = kept.issued.authorities;
        if trusted.len() == 1 && trusted != but { Ok(trusted) } else { Err(format!("{} of them", trusted.len())) }
    };
    wait_for("one other authority", read).await
}

#[tokio::test(flavor = "multi_thread")]
async fn another_authority_takes_the_place_of_the_clusters_and_nobody_notices() {
    let hosts = Host::blank(["alpha", "beta", "gamma"]);
    let [alpha, beta, gamma] = start(&hosts).await;
    let [worker] = with_token(["delta"], &hosts[0], &create_token(&alpha).await.token);
    let delta = worker.start();
    if cluster(&sees_servers(&alpha, 3, 4).await).leader != "alpha" {
        let request = proto::TransferLeaderRequest { name: "alpha".to_owned() };
        alpha.client().await.transfer_leader(request).await.unwrap();
    }
    let before = cluster(&sees_servers(&alpha, 3, 4).await).clone();
    let old_token = create_token(&alpha).await.token;
    // Only who has the secret can make one.
    let error = rotate(&delta, None).await.unwrap_err();
    assert!(error.message().contains("no cluster secret"), "{error}");

    // One that is away is waited for: it would trust nobody any more.
    beta.stop().await;
    rotate(&alpha, None).await.unwrap();
    let waits = "waits for beta to trust the new one";
    let said = |status: &proto::StatusReply| status.problems.iter().any(|problem| problem.contains(waits));
    gamma.sees("for whom it waits", said).await;
    let error = rotate(&alpha, None).await.unwrap_err();
    assert!(error.message().contains("being rotated"), "{error}");
    let beta = hosts[1].start();
    let mut trusted = Vec::new();
    for host in hosts.iter().chain([&worker]) {
        trusted.push(trusts_one(host, &[]).await);
    }
    assert!(trusted.iter().all(|one| *one == trusted[0]));
    let after = cluster(&sees_servers(&alpha, 3, 4).await).clone();
    assert_eq!((before.leader, before.term), (after.leader, after.term));

    // Everything goes on with what is on disk, and whoever joins is told of the new one only.
    stop([alpha, beta, gamma, delta]).await;
    let [alpha, beta, gamma] = hosts.each_ref().map(Host::start);
    let delta = worker.start();
    for agent in [&alpha, &beta, &gamma, &delta] {
        sees_servers(agent, 3, 4).await;
    }
    let [late] = with_token(["late"], &hosts[0], &old_token);
    waits_for(&late.start(), &["authority", "blixard token create"]).await;
    let [late] = with_token(["late"], &hosts[0], &create_token(&delta).await.token);
    sees_servers(&late.start(), 3, 5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_expired_while_the_authority_was_being_rotated_is_renewed_without_a_quorum() {
    let mut hosts = Host::blank(["alpha", "beta", "gamma"]);
    let [alpha, beta, gamma] = start(&hosts).await;
    gamma.stop().await;
    rotate(&alpha, None).await.unwrap();
    let waits = "waits for gamma to trust the new one";
    let is_said = |status: &proto::StatusReply| status.problems.iter().any(|problem| problem.contains(waits));
    for agent in [&alpha, &beta] {
        agent.sees("that only gamma is waited for", is_said).await;
    }
    stop([alpha, beta]).await;
    // Its state says that it is to trust both, and its certificate is the first one.
    std::fs::remove_file(renewed(&hosts[1])).unwrap();
    later(&mut hosts, 100);
    let [alpha, beta] = [hosts[0].start(), hosts[1].start()];
    for agent in [&alpha, &beta] {
        agent.sees("a quorum of the two", |status| cluster(status).quorum && is_said(status)).await;
    }
    has_renewed(&hosts[1]).await;
    stop([alpha, beta]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_that_a_person_has_made_issues_the_certificates() {
    let [host] = Host::blank(["alpha"]);
    let alpha = host.start();
    alpha.is_healthy().await;
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&key).unwrap();
    let other = rcgen::KeyPair::generate().unwrap();
    let given =
        |key: &rcgen::KeyPair| Some(proto::GivenAuthority { certificate: certificate.pem(), key: key.serialize_pem() });
    let error = rotate(&alpha, given(&other)).await.unwrap_err();
    assert!(error.message().contains("belong together"), "{error}");
    rotate(&alpha, given(&key)).await.unwrap();
    assert_eq!(trusts_one(&host, &[]).await, [certificate.der().to_vec()]);
    let error = rotate(&alpha, given(&key)).await.unwrap_err();
    assert!(error.message().contains("already"), "{error}");
    let [late] = with_token(["late"], &host, &create_token(&alpha).await.token);
    sees_servers(&late.start(), 1, 2).await;
}
