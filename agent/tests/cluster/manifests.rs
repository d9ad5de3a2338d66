//! The manifest that a host carries: offered at start and on reload, held when it is an old one.

use blixard::agent::Told;
use blixard::api::proto::{AcceptManifestRequest, RollBackManifestRequest, StatusReply};

use super::support::{Agent, Host, manifest, manifest_of, wait_for};
use super::{apply, sees_whole, start};

/// The declared VMs, by name, and how many manifests are held, once that is so.
async fn sees(agent: &Agent, vms: &[&str], held: usize) -> StatusReply {
    let wanted = |status: &StatusReply| {
        let declared = status.instances.iter().filter(|vm| vm.state != "stopping").map(|vm| vm.vm.as_str());
        declared.eq(vms.iter().copied()) && status.held.len() == held
    };
    agent.sees(&format!("{vms:?} and {held} held"), wanted).await
}

fn carry(host: &Host, vm: &str) {
    std::fs::write(host.manifest(), manifest(&[(vm, "")])).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_carried_manifest_is_applied_at_start_and_a_changed_one_on_reload() {
    let hosts = Host::blank(["alpha", "beta", "gamma"]);
    carry(&hosts[1], "a");
    let agents = start(&hosts).await;
    sees(&agents[0], &["a"], 0).await;
    carry(&hosts[1], "b");
    agents[1].tell(Told::Reload).await;
    sees(&agents[2], &["b"], 0).await;
    // The same again changes nothing.
    agents[1].tell(Told::Reload).await;
    sees_whole(&agents[1], 3).await;
    sees(&agents[1], &["b"], 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_carried_manifest_that_was_head_before_is_held_until_a_person_decides() {
    let hosts = Host::blank(["alpha"]);
    carry(&hosts[0], "a");
    let [agent] = start(&hosts).await;
    sees(&agent, &["a"], 0).await;
    apply(&agent, manifest_of(r#""servers": 1"#, &[("b", "")])).await.unwrap();
    agent.tell(Told::Reload).await;
    let status = sees(&agent, &["b"], 1).await;
    let held = &status.held[0];
    assert_eq!(held.node, "alpha");
    for expected in ["servers 1 → 3", "a-0"] {
        assert!(held.diff.iter().any(|line| line.contains(expected)), "{:?}", held.diff);
    }
    assert!(status.problems.iter().any(|problem| problem.contains("manifest accept") || problem.contains("held")));

    let mut client = agent.client().await;
    let wrong = AcceptManifestRequest { node: "beta".to_owned() };
    let refused = client.accept_manifest(wrong).await.unwrap_err();
    assert!(refused.message().contains("beta"), "{refused}");
    client.accept_manifest(AcceptManifestRequest { node: "alpha".to_owned() }).await.unwrap();
    sees(&agent, &["a"], 0).await;
    client.roll_back_manifest(RollBackManifestRequest { from: "a test".to_owned() }).await.unwrap();
    sees(&agent, &["b"], 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_brings_an_old_manifest_back_on_reload_but_not_at_boot() {
    let [mut alpha] = Host::blank(["alpha"]);
    alpha.authority = true;
    carry(&alpha, "a");
    let agent = alpha.start();
    sees(&agent, &["a"], 0).await;
    apply(&agent, manifest(&[("b", "")])).await.unwrap();
    sees(&agent, &["b"], 0).await;
    agent.stop().await;
    for boots in [false, true] {
        if boots {
            std::fs::remove_file(alpha.dir.path().join("run/offered")).expect("the mark of what was offered");
        }
        let agent = alpha.start();
        sees(&agent, &["b"], 1).await;
        agent.stop().await;
    }
    let agent = alpha.start();
    sees(&agent, &["b"], 1).await;
    agent.tell(Told::Reload).await;
    sees(&agent, &["a"], 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_carried_manifest_changes_nothing_and_the_next_good_one_is_taken() {
    let hosts = Host::blank(["alpha"]);
    carry(&hosts[0], "a");
    let [agent] = start(&hosts).await;
    sees(&agent, &["a"], 0).await;
    std::fs::write(hosts[0].manifest(), r#"{ "version": 1, "vms": { "b": { "runers": [] } } }"#).unwrap();
    agent.tell(Told::Reload).await;
    sees(&agent, &["a"], 0).await;
    std::fs::remove_file(hosts[0].manifest()).unwrap();
    agent.tell(Told::Reload).await;
    sees(&agent, &["a"], 0).await;
    carry(&hosts[0], "c");
    agent.tell(Told::Reload).await;
    sees(&agent, &["c"], 0).await;
    wait_for("the units to follow", async || {
        let running: Vec<_> = hosts[0].units.held().observed.vms.keys().map(ToString::to_string).collect();
        if running == ["c-0"] { Ok(()) } else { Err(format!("{running:?}")) }
    })
    .await;
}
