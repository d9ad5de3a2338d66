//! Data that can't be what an agent left: it refuses to start, and says which file it is and what to do.

use std::path::PathBuf;

use blixard::api::proto::StatusRequest;

use super::support::{Host, manifest};
use super::{apply, cluster, sees_running};

/// A host that was a member, and had something to do.
async fn host_with_data() -> Host {
    let [alpha] = Host::blank(["alpha"]);
    let agent = alpha.start();
    agent.is_healthy().await;
    for name in ["a", "b", "c"] {
        apply(&agent, manifest(&[(name, "")])).await.unwrap();
        sees_running(&agent, 1).await;
    }
    agent.stop().await;
    alpha
}

/// The content of a file → what it is instead.
type Damage = fn(&[u8]) -> Vec<u8>;

fn store(host: &Host) -> PathBuf {
    host.dir.path().join("data/raft/state.redb")
}

/// The oldest segment of a host's log.
pub fn log(host: &Host) -> PathBuf {
    let files = std::fs::read_dir(host.dir.path().join("data/raft/log")).unwrap();
    let mut files = files.map(|file| file.unwrap().path());
    files.find(|path| path.extension().is_some_and(|end| end == "log")).expect("the log has a segment")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_store_or_log_is_named_with_the_fix_and_left_as_it_is() {
    let alpha = host_with_data().await;
    let (store, log) = (store(&alpha), log(&alpha));
    let flipped = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        bytes
    };
    let cut = |bytes: &[u8]| bytes[..bytes.len() / 2].to_vec();
    let emptied = |_: &[u8]| Vec::new();
    let foreign = |_: &[u8]| b"something else altogether, but long enough to be looked at in earnest".to_vec();
    let cases: [(&PathBuf, &str, Damage); 7] = [
        (&store, "cut short", cut),
        (&store, "emptied", emptied),
        (&store, "foreign", foreign),
        (&log, "a bit flipped", flipped),
        (&log, "cut short", cut),
        (&log, "emptied", emptied),
        (&log, "foreign", foreign),
    ];
    for (path, damage, make) in cases {
        let whole = std::fs::read(path).unwrap();
        std::fs::write(path, make(&whole)).unwrap();
        let refused = alpha.start().ended().await.expect_err(damage);
        // Where the log is cut at the end of a record, it is whole and only too short for the store: the directory is named.
        let named = refused.contains(&path.display().to_string())
            || refused.contains(&path.parent().unwrap().parent().unwrap().display().to_string());
        assert!(named, "{} {damage}: {refused}", path.display());
        let fix = ["move the data directory away", "cluster"].iter().any(|word| refused.contains(word));
        assert!(fix, "{} {damage}: {refused}", path.display());
        std::fs::write(path, &whole).unwrap();
    }
    // None of it was made worse.
    let agent = alpha.start();
    sees_running(&agent, 1).await;
    assert_eq!(alpha.units.held().asked.iter().filter(|asked| *asked == "start c-0").count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_or_log_that_is_gone_is_missed_and_no_second_cluster_is_founded() {
    let alpha = host_with_data().await;
    let id = {
        let agent = alpha.start();
        let id = cluster(&agent.is_healthy().await).id.clone();
        agent.stop().await;
        id
    };
    let away = alpha.dir.path().join("away");
    for path in [store(&alpha), log(&alpha)] {
        std::fs::rename(&path, &away).unwrap();
        let refused = alpha.start().ended().await.expect_err("half of its data is missing");
        assert!(refused.contains(&alpha.dir.path().join("data/raft").display().to_string()), "{refused}");
        assert!(refused.contains("put it back") || refused.contains("put back"), "{refused}");
        std::fs::rename(&away, &path).unwrap();
    }
    assert_eq!(cluster(&alpha.start().is_healthy().await).id, id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_agent_on_the_same_data_is_refused_and_the_first_goes_on() {
    let [mut alpha] = Host::blank(["alpha"]);
    let agent = alpha.start();
    let id = cluster(&agent.is_healthy().await).id.clone();
    let refused = alpha.start().ended().await.unwrap_err();
    assert!(refused.contains("another agent has it open"), "{refused}");
    assert!(refused.contains(&alpha.dir.path().join("data/raft").display().to_string()), "{refused}");
    // It has not taken the socket away, either.
    assert_eq!(cluster(&agent.is_healthy().await).id, id);
    agent.client().await.status(StatusRequest::default()).await.unwrap();
    alpha.cpus = 5;
    agent.stop().await;
    assert_eq!(cluster(&alpha.start().is_healthy().await).id, id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_or_run_directory_that_cannot_be_made_is_named() {
    for directory in ["data", "run"] {
        let [alpha] = Host::blank(["alpha"]);
        let path = alpha.dir.path().join(directory);
        std::fs::write(&path, "a file in its place").unwrap();
        let refused = alpha.start().ended().await.unwrap_err();
        assert!(refused.contains(&path.display().to_string()) && refused.contains("configuration"), "{refused}");
    }
}
