//! The verbs about the cluster as a whole, which are for where no agent runs.

use std::io::Write as _;
use std::process::Stdio;

use super::ask::Asked;
use super::{blixard, refusal, run, told};

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
