//! A backup of a cluster that goes on, and a cluster that begins anew of it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use blixard::agent::recovery;
use blixard::api::proto;
use blixard_core::types::Level;

use super::removal::remove;
use super::support::{Api, Host, manifest, runner};
use super::{apply, cluster, no_vm_runs_twice, node, sees_running, sees_servers, start};

/// Written by this agent to a file in the directory.
pub async fn backup(agent: &Api, dir: &Path, name: &str) -> PathBuf {
    let mut client = agent.client().await;
    let mut pieces = client.backup(proto::BackupRequest::default()).await.unwrap().into_inner();
    let mut bytes = Vec::new();
    while let Some(piece) = pieces.message().await.unwrap() {
        bytes.extend(piece.bytes);
    }
    let file = dir.join(name);
    std::fs::write(&file, bytes).unwrap();
    recovery::verify(&file).unwrap();
    file
}

/// Makes a cluster of this host alone of a backup.
pub fn restore(host: &Host, file: &Path, replaces: bool) -> Result<u64, String> {
    let examined = recovery::examine_backup(file, host.config(), Level::NEWEST);
    let restored = examined.and_then(|restorable| restorable.restore(replaces));
    restored.map(|epoch| epoch.number).map_err(|error| blixard::error_chain(&error))
}

/// A stopped VM of the command line's.
fn vm(name: &str) -> proto::PutVmRequest {
    let json = format!(
        r#"{{ "runners": ["{}"], "system": "{}", "hypervisor": "qemu", "vcpus": 1, "memoryMiB": 100, "kvm": false }}"#,
        runner(name),
        blixard::probe::system()
    );
    proto::PutVmRequest { name: name.to_owned(), json: json.into_bytes(), running: false, must: 0 }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_of_any_server_has_all_that_was_acknowledged_before_and_nothing_out_of_order() {
    let hosts = Host::blank(["alpha", "beta", "gamma"]);
    let agents = start(&hosts).await;
    let dir = tempfile::tempdir().unwrap();
    let written = Arc::new(AtomicUsize::new(0));
    let writing = {
        let (mut client, written) = (agents[0].client().await, written.clone());
        tokio::spawn(async move {
            loop {
                let count = written.load(Ordering::SeqCst);
                client.put_vm(vm(&format!("vm-{count:04}x"))).await.unwrap();
                written.store(count + 1, Ordering::SeqCst);
            }
        })
    };
    for (at, agent) in agents.iter().enumerate() {
        let begun = written.load(Ordering::SeqCst);
        let file = backup(agent, dir.path(), &format!("{at}")).await;
        let ended = written.load(Ordering::SeqCst);
        let [delta] = Host::blank(["delta"]);
        let restorable = recovery::examine_backup(&file, delta.config(), Level::NEWEST).unwrap();
        assert_eq!(restorable.head().by.as_str(), hosts[at].name);
        let names: Vec<String> = restorable.state().instances().keys().map(ToString::to_string).collect();
        let expected: Vec<String> = (0..names.len()).map(|count| format!("vm-{count:04}x-0")).collect();
        assert_eq!(names, expected, "one after the other was acknowledged");
        // One more may have been under way.
        assert!((begun..=ended + 1).contains(&names.len()), "{begun} {} {ended}", names.len());
    }
    writing.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_restored_onto_new_hosts_that_start_nothing_before_the_old_ones_are_dead() {
    let old = Host::blank(["alpha", "beta"]);
    let agents = old.each_ref().map(Host::start);
    for agent in &agents {
        sees_servers(agent, 1, 2).await;
    }
    // By way of the one that is no server.
    apply(&agents[0], manifest(&[("a", ""), ("b", "")])).await.unwrap();
    sees_running(&agents[0], 2).await;
    let dir = tempfile::tempdir().unwrap();
    let file = backup(&agents[1], dir.path(), "backup").await;
    for agent in agents {
        agent.stop().await;
    }

    // New hosts, of which one has an old one's name.
    let mut new = Host::blank(["alpha", "delta"]);
    new[1].role = "worker";
    let refused = restore(&new[1], &file, false).unwrap_err();
    assert!(refused.contains("configured as a worker") && refused.contains("node.role"), "{refused}");
    new[1].role = "auto";
    let refused = restore(&new[0], &file, false).unwrap_err();
    assert!(refused.contains("alpha is taken by a member") && refused.contains("--replace"), "{refused}");
    assert_eq!(restore(&new[0], &file, true).unwrap(), 2);
    let (alpha, delta) = (new[0].start(), new[1].start());
    let is_back = |status: &proto::StatusReply| cluster(status).renewal == "restored" && status.nodes.len() == 3;
    let status = delta.sees("the cluster", is_back).await;
    assert_eq!((node(&status, "alpha").id, &*node(&status, "beta").role), (3, "absent"));
    assert!(status.instances.iter().all(|vm| vm.state != "running"), "{:?}", status.instances);
    assert!(new.iter().all(|host| host.units.held().asked.is_empty()));
    for host in &old {
        host.units.change(|held| held.observed.vms.clear());
    }
    remove(&delta, "beta", true).await.unwrap();
    sees_servers(&alpha, 1, 2).await;
    sees_running(&alpha, 2).await;
    no_vm_runs_twice(&new);

    // Over what is there, nothing is restored.
    delta.stop().await;
    let refused = restore(&new[1], &file, true).unwrap_err();
    assert!(refused.contains("a backup is restored on a host that is in none"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_is_not_whole_or_needs_another_agent_or_secret_is_refused_and_nothing_is_left_of_it() {
    let [mut alpha, mut beta] = Host::blank(["alpha", "beta"]);
    alpha.servers.pop();
    beta.servers.remove(0);
    let agent = alpha.start();
    agent.is_healthy().await;
    let dir = tempfile::tempdir().unwrap();
    let file = backup(&agent, dir.path(), "backup").await;
    let whole = std::fs::read(&file).unwrap();

    let half = dir.path().join("half");
    std::fs::write(&half, &whole[..whole.len() / 2]).unwrap();
    let refused = restore(&beta, &half, false).unwrap_err();
    assert!(refused.contains("half") && refused.contains("cut short"), "{refused}");
    let missing = restore(&beta, &dir.path().join("missing"), false).unwrap_err();
    assert!(missing.contains("missing"), "{missing}");
    let newer = recovery::examine_backup(&file, beta.config(), Level(0)).err().expect("it is refused").to_string();
    assert!(newer.contains("feature level 1, and this agent understands 0 at most"), "{newer}");
    beta.secret = "another secret of thirty-two bytes or more";
    let foreign = restore(&beta, &file, false).unwrap_err();
    assert!(foreign.contains("sealed with another cluster secret"), "{foreign}");
    beta.secret = alpha.secret;

    // A blank host whose agent has waited for others is a blank one still.
    beta.servers.insert(0, "alpha@127.0.0.1:1".to_owned());
    let waiting = beta.start();
    waiting.client().await;
    waiting.stop().await;
    assert_eq!(restore(&beta, &file, false).unwrap(), 2);
    assert!(!beta.dir.path().join("data/raft.blank").exists());
    let restored = beta.start();
    let status = restored.sees("the cluster", |status| cluster(status).quorum).await;
    assert_eq!((cluster(&status).epoch, &*node(&status, "alpha").role), (2, "absent"));
    // The other goes on in its own epoch, and neither is the other's member.
    assert_eq!(cluster(&agent.is_healthy().await).epoch, 1);
}
