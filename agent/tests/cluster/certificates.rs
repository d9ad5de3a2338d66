//! Certificates that are renewed, or have expired.

use std::path::PathBuf;
use std::time::Duration;

use blixard::identity::Clock;

use super::support::{Agent, Host, wait_for};
use super::tokens::{create_token, with_token};
use super::{cluster, sees_servers, sees_whole, start};

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
async fn a_cluster_that_was_off_until_all_certificates_had_expired_starts_by_itself() {
    let [mut alpha] = Host::blank(["alpha"]);
    let agent = alpha.start();
    agent.is_healthy().await;
    // Who has no secret can't sign its own.
    let [mut beta] = with_token(["beta"], &alpha, &create_token(&agent).await.token);
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
