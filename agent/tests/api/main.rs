//! The API over its socket: what it answers, and with which code it refuses.

#[path = "../support/mod.rs"]
mod support;

use blixard::agent::Told;
use blixard::api::proto;
use blixard_core::manifest::MAX_BYTES;
use support::{Host, manifest, runner, wait_for};
use tokio_stream::StreamExt as _;
use tonic::Code;

fn request(json: impl Into<Vec<u8>>) -> proto::ManifestRequest {
    proto::ManifestRequest { json: json.into(), from: "a test".to_owned() }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_manifest_is_an_invalid_argument_with_its_json_path() {
    let [alpha] = Host::blank(["alpha"]);
    let agent = alpha.start();
    agent.is_healthy().await;
    let mut client = agent.client().await;
    let web = |more: &str| manifest(&[("web", more)]);
    for (json, told) in [
        (b"not json".to_vec(), "line 1"),
        (web(r#", "memory": 7"#), "vms.web.memory"),
        (web(r#", "diskMiB": "much""#), "vms.web.diskMiB"),
        (manifest(&[("../x", "")]), "../x"),
        (manifest(&[("web", ""), ("web", "")]), "web"),
        (br#"{ "version": 2, "vms": {} }"#.to_vec(), "version 2"),
        (web(&format!(r#", "memoryOverheadMiB": {}"#, u64::MAX)), "vms.web"),
    ] {
        for refused in [client.apply(request(json.clone())).await.err(), client.plan(request(json)).await.err()] {
            let refused = refused.expect(told);
            assert_eq!(refused.code(), Code::InvalidArgument, "{told}: {refused}");
            assert!(refused.message().contains(told), "{told}: {refused}");
        }
    }
    let heads = client.list_manifests(proto::ListManifestsRequest::default()).await.unwrap().into_inner().heads;
    assert_eq!(heads, [], "nothing of it was applied");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_too_large_is_refused_and_the_agent_goes_on() {
    let [alpha] = Host::blank(["alpha"]);
    let agent = alpha.start();
    agent.is_healthy().await;
    for bytes in [MAX_BYTES + 1, 50 << 20] {
        let refused = agent.client().await.apply(request(vec![b' '; bytes])).await.unwrap_err();
        assert!([Code::OutOfRange, Code::InvalidArgument].contains(&refused.code()), "{refused}");
        assert!(refused.message().contains("4194304") || refused.message().contains("limit"), "{refused}");
    }
    // The largest that the API takes: the state refuses it, not the log.
    let command = vec!["a".repeat(MAX_BYTES + 1000)];
    let task = proto::RunTaskRequest { command, cpus: 1, memory_mib: 1 };
    let refused = agent.client().await.run_task(task).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert!(refused.message().contains("65536 bytes"), "{refused}");
    agent.is_healthy().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_watches_is_told_again_after_a_change_and_until_the_agent_stops() {
    let [alpha] = Host::blank(["alpha"]);
    let agent = alpha.start();
    agent.is_healthy().await;
    let mut client = agent.client().await;
    let mut watched = client.watch_status(proto::StatusRequest::default()).await.unwrap().into_inner();
    let first = watched.next().await.expect("one at once").unwrap();
    assert_eq!((first.instances, first.cluster.unwrap().confirmed), (Vec::new(), true));
    client.apply(request(manifest(&[("web", "")]))).await.unwrap();
    for restarts in [0, 1] {
        wait_for("a reply in which web-0 runs", async || {
            let reply = watched.next().await.expect("the agent runs").unwrap();
            let runs = |vm: &proto::Instance| (&*vm.state, vm.restarts) == ("running", restarts);
            if reply.instances.iter().any(runs) { Ok(()) } else { Err(format!("{:?}", reply.instances)) }
        })
        .await;
        // A unit that changes by itself is told of, too.
        alpha.units.change(|held| held.observed.vms.values_mut().for_each(|vm| vm.restarts = 1));
    }
    assert_eq!(alpha.units.held().asked, ["start web-0"]);
    agent.stop().await;
    wait_for("the end of the stream", async || match watched.next().await {
        None | Some(Err(_)) => Ok(()),
        Some(Ok(_)) => Err("another reply".to_owned()),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_no_member_yet_says_for_what_it_waits() {
    let [alpha, beta, _gamma] = Host::blank(["alpha", "beta", "gamma"]);
    let agent = beta.start();
    let mut client = agent.client().await;
    let refused = wait_for("the servers that are missing", async || {
        let refused = client.status(proto::StatusRequest::default()).await.unwrap_err();
        let told = refused.message();
        if told.contains("alpha") && told.contains("gamma") { Ok(refused) } else { Err(told.to_owned()) }
    })
    .await;
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().contains("not a member yet"), "{refused}");
    assert_eq!(client.apply(request(manifest(&[]))).await.unwrap_err().code(), Code::Unavailable);
    // A reload has nothing to reload yet; it doesn't end the agent.
    agent.tell(Told::Reload).await;
    // With the first of the list there is a majority.
    let first = alpha.start();
    first.sees("both hosts", |status| status.nodes.len() == 2).await;
    agent.sees("both hosts", |status| status.nodes.len() == 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_not_found_and_what_cannot_be_done_says_why() {
    let [alpha] = Host::blank(["alpha"]);
    let agent = alpha.start();
    agent.is_healthy().await;
    let mut client = agent.client().await;
    let refused =
        client.explain(proto::ExplainRequest { vm: "nope".to_owned(), ..Default::default() }).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    assert!(refused.message().contains("nope") && refused.message().contains("vm ls"), "{refused}");

    for node in ["", "alpha"] {
        let accept = proto::AcceptManifestRequest { node: node.to_owned() };
        let refused = client.accept_manifest(accept).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert!(refused.message().contains("held"), "{refused}");
    }
    let back = proto::RollBackManifestRequest { from: "a test".to_owned() };
    let refused = client.roll_back_manifest(back).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("no earlier manifest"), "{refused}");

    let empty = proto::RunTaskRequest { command: vec![], cpus: 1, memory_mib: 1 };
    assert_eq!(client.run_task(empty).await.unwrap_err().code(), Code::FailedPrecondition);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_is_explained_by_its_name_and_by_that_of_an_instance() {
    let [alpha] = Host::blank(["alpha"]);
    let agent = alpha.start();
    agent.is_healthy().await;
    let mut client = agent.client().await;
    let vms = manifest(&[("we", ""), ("web", ""), ("web-0", ""), ("web-00", "")]);
    client.apply(request(vms)).await.unwrap();
    for (name, wanted) in [("web", vec!["web-0"]), ("web-0", vec!["web-0", "web-0-0"]), ("web-00-0", vec!["web-00-0"])]
    {
        let request = proto::ExplainRequest { vm: name.to_owned(), ..Default::default() };
        let explained = client.explain(request).await.unwrap().into_inner().instances;
        let told: Vec<_> = explained.into_iter().map(|one| one.instance.unwrap().name).collect();
        assert_eq!(told, wanted, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_says_what_would_change_and_changes_nothing() {
    let [alpha] = Host::blank(["alpha"]);
    let agent = alpha.start();
    agent.is_healthy().await;
    let mut client = agent.client().await;
    client.apply(request(manifest(&[("db", ""), ("mail", ""), ("web", "")]))).await.unwrap();
    agent.is_healthy().await;
    let next = manifest(&[("mail", r#", "diskMiB": 1"#), ("web", ""), ("wiki", "")]);
    let plan = client.plan(request(next.clone())).await.unwrap().into_inner();
    let planned: Vec<_> = plan.planned.iter().map(|planned| (&*planned.instance, &*planned.action)).collect();
    assert_eq!((planned, plan.unchanged), (vec![("db-0", "stop"), ("mail-0", "update"), ("wiki-0", "start")], 1));
    let running = |name: &str| {
        let held = alpha.units.held();
        held.observed.vms.keys().any(|instance| instance.to_string() == name)
    };
    assert!(running("db-0") && !running("wiki-0"));

    client.apply(request(next)).await.unwrap();
    agent.sees("three VMs", |status| status.problems.is_empty() && !running("db-0") && running("wiki-0")).await;
    let runners = alpha
        .units
        .held()
        .observed
        .vms
        .values()
        .map(|vm| vm.installed.clone().unwrap().runner.to_string())
        .collect::<Vec<_>>();
    assert_eq!(runners, ["mail-0", "web-0", "wiki-0"].map(runner));
}
