//! The verbs about the cluster as a whole, most of which are for where no agent runs.

use std::io::Write as _;
use std::process::Stdio;

use blixard_core::types::TrustAnchor;

use super::ask::Asked;
use super::support::Host;
use super::{blixard, refusal, run, told};

#[tokio::test(flavor = "multi_thread")]
async fn a_member_prints_by_what_a_host_with_a_key_knows_the_cluster_and_nothing_else() {
    let asked = Asked::start().await;
    let cluster = asked.agent.is_healthy().await.cluster.unwrap();
    let printed = asked.ok(&["cluster", "authority"]);
    let anchor: TrustAnchor = printed.trim_end().parse().unwrap();
    assert_eq!((anchor.cluster.to_string(), printed), (cluster.id, format!("{anchor}\n")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recovery_says_what_it_does_and_is_done_only_where_the_cluster_is_named() {
    let Asked { host, agent, .. } = Asked::start().await;
    let status = agent.is_healthy().await;
    let cluster = &status.cluster.unwrap().id[..8];
    let config = host.dir.path().join("config.toml").display().to_string();
    let locked = refusal(&["cluster", "recover", "--config", &config], 1);
    assert!(locked.contains("another agent has it open; stop that one first"), "{locked}");
    agent.stop().await;

    for given in ["", "1", &cluster[..7], "00000000"] {
        let (code, out, err) = run(&["cluster", "recover", "--config", &config, "--confirm", given]);
        assert_eq!(code, 1, "{given}: {err}");
        assert!(out.contains(&format!("This makes a cluster of alpha alone, of what it has of cluster {cluster}")));
        assert!(out.contains("raft.epoch-1"), "{out}");
        assert!(err.contains("nothing was changed") && err.contains(cluster), "{err}");
    }
    let mut asked = blixard();
    asked.args(["cluster", "recover", "--config", &config]);
    let mut asked = asked.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    asked.stdin.take().unwrap().write_all(format!("{cluster}\n").as_bytes()).unwrap();
    let (code, out, err) = told(&asked.wait_with_output().unwrap());
    assert_eq!((code, &*err), (0, ""), "{out}");
    assert!(out.contains(&format!("Type {cluster}")) && out.contains("is in epoch 2: start the agent"), "{out}");
    let agent = host.start();
    let status = agent.is_healthy().await;
    assert_eq!(status.cluster.unwrap().epoch, 2);
    agent.stop().await;

    let secret = host.dir.path().join("another");
    std::fs::rename(host.dir.path().join("secret"), &secret).unwrap();
    let missing = refusal(&["cluster", "recover", "--config", &config, "--confirm", cluster], 1);
    assert!(missing.contains("--secret-file"), "{missing}");
    let secret = secret.display().to_string();
    let named = ["cluster", "recover", "--config", &config, "--confirm", cluster, "--secret-file", &secret];
    assert_eq!(run(&named).0, 0);
    let (code, out, err) = run(&["cluster", "rejoin", "--config", &config]);
    assert_eq!((code, &*err), (0, ""));
    assert!(out.contains("raft.epoch-3") && out.contains("it rejoins"), "{out}");
    let blank = refusal(&["cluster", "rejoin", "--config", &config], 1);
    assert!(blank.contains("there is no cluster's data in"), "{blank}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_written_whole_over_nothing_and_restored_where_the_cluster_is_named() {
    let asked = Asked::start().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("backup").display().to_string();
    let told = asked.ok(&["backup", &file]);
    assert!(
        told.starts_with(&format!("{file}: all up to log entry ")) && told.contains("read back and whole"),
        "{told}"
    );
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let taken = asked.fails(&["backup", &file]);
    assert!(taken.contains("is there already"), "{taken}");
    let nowhere = asked.fails(&["backup", &dir.path().join("no/backup").display().to_string()]);
    assert!(nowhere.contains("see that its directory is there"), "{nowhere}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing unfinished is left");

    let [host] = Host::blank(["delta"]);
    host.config();
    let config = host.dir.path().join("config.toml").display().to_string();
    let status = asked.agent.is_healthy().await;
    let cluster = &status.cluster.unwrap().id[..8];
    let restore = |confirm| run(&["restore", &file, "--config", &config, "--confirm", confirm]);
    let (code, out, err) = restore("");
    assert_eq!(code, 1, "{out}");
    assert!(out.contains(&format!("of delta alone, of a backup of cluster {cluster} that alpha made")), "{out}");
    assert!(out.contains("alpha at ") && out.contains("blixard node remove NAME --dead"), "{out}");
    assert!(err.contains("nothing was changed"), "{err}");
    let (code, out, err) = restore(cluster);
    assert_eq!((code, &*err), (0, ""), "{out}");
    assert!(out.contains("is in epoch 2: start the agent"), "{out}");
    let again = refusal(&["restore", &file, "--config", &config, "--confirm", cluster], 1);
    assert!(again.contains("a backup is restored on a host that is in none"), "{again}");
}
