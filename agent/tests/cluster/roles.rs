//! Which hosts are servers, and what it is to be none.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use blixard::api::proto::{self, StatusReply};
use tonic::Code;

use super::removal::remove;
use super::support::{Agent, Api, Host, manifest, manifest_of, wait_for};
use super::{apply, cluster, instance, no_vm_runs_twice, node, sees_running, sees_servers, sees_whole, start};

/// A VM that only the host of this zone may run.
fn of_zone(name: &str, zone: &str) -> (String, String) {
    (name.to_owned(), format!(r#", "requires": {{ "zone": "{zone}" }}"#))
}

fn declared(cluster: &str, vms: &[(String, String)]) -> Vec<u8> {
    let vms: Vec<(&str, &str)> = vms.iter().map(|(name, more)| (name.as_str(), more.as_str())).collect();
    manifest_of(cluster, &vms)
}

/// Hosts of which the first three list each other, each in the zone of its name; the others are listed nowhere.
fn hosts<const N: usize>(names: [&'static str; N]) -> [Host; N] {
    let mut hosts = Host::blank(names);
    for host in &mut hosts {
        host.servers.truncate(3);
        host.zone = host.name;
    }
    hosts
}

async fn has_role(asked: &Api, name: &str, role: &str) -> StatusReply {
    let is_it = |status: &StatusReply| status.nodes.iter().any(|node| node.name == name && node.role == role);
    asked.sees(&format!("{name} as a {role}"), is_it).await
}

/// Three servers and a worker, which runs a VM of its own.
async fn three_and_one(cluster: &str) -> ([Host; 4], [Option<Agent>; 4]) {
    let hosts = hosts(["alpha", "beta", "gamma", "delta"]);
    let [alpha, beta, gamma] = [0, 1, 2].map(|at| hosts[at].start());
    for agent in [&alpha, &beta, &gamma] {
        sees_whole(agent, 3).await;
    }
    let delta = hosts[3].start();
    sees_servers(&delta, 3, 4).await;
    apply(&delta, declared(cluster, &[of_zone("own", "delta")])).await.unwrap();
    sees_running(&alpha, 1).await;
    (hosts, [Some(alpha), Some(beta), Some(gamma), Some(delta)])
}

fn asked_of(host: &Host) -> Vec<String> {
    host.units.held().asked.clone()
}

fn has_log(host: &Host) -> bool {
    host.dir.path().join("data/raft/log").exists()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fourth_host_is_a_worker_that_holds_no_log_runs_vms_and_answers_questions() {
    let (hosts, agents) = three_and_one("").await;
    let [alpha, .., delta] = agents.each_ref().map(|agent| agent.as_ref().unwrap());
    let status = has_role(delta, "delta", "worker").await;
    assert_eq!((instance(&status, "own-0").unwrap().node.as_str(), has_log(&hosts[3])), ("delta", false));
    assert_ne!(cluster(&status).answered_by, "delta");
    // Whatever is asked there is answered as a server answers it, streams and refusals too.
    let mut client = delta.client().await;
    let unknown = proto::ExplainRequest { vm: "nothing".to_owned(), ..Default::default() };
    assert_eq!(client.explain(unknown).await.unwrap_err().code(), Code::NotFound);
    let mut watched = client.watch_status(proto::StatusRequest::default()).await.unwrap().into_inner();
    let first = watched.message().await.unwrap().unwrap();
    apply(alpha, declared("", &[of_zone("own", "delta"), of_zone("more", "delta")])).await.unwrap();
    let mut seen = first;
    while seen.instances.len() < 2 {
        seen = watched.message().await.unwrap().unwrap();
    }
    sees_running(delta, 2).await;
    // What is no longer declared stops there.
    apply(delta, declared("", &[of_zone("more", "delta")])).await.unwrap();
    delta.sees("one VM", |status| status.instances.len() == 1).await;
    assert_eq!(asked_of(&hosts[3]), ["start own-0", "start more-0", "stop own-0"]);
    let second = hosts[3].start().ended().await.unwrap_err();
    assert!(second.contains("another agent has it open"), "{second}");
    no_vm_runs_twice(&hosts);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_takes_a_lost_servers_place_and_the_old_one_returns_as_a_worker() {
    let (hosts, mut agents) = three_and_one(r#""replaceServersAfterSeconds": 10"#).await;
    agents[2].take().unwrap().stop().await;
    let [alpha, _, _, delta] = agents.each_ref().map(Option::as_ref);
    let (alpha, delta) = (alpha.unwrap(), delta.unwrap());
    has_role(alpha, "delta", "follower").await;
    let replaced = |status: &StatusReply| cluster(status).servers == 3 && node(status, "gamma").role == "worker";
    let status = alpha.sees("gamma's vote gone", replaced).await;
    assert!(!node(&status, "gamma").alive);
    assert!(has_log(&hosts[3]));
    // Its VM has not noticed.
    assert_eq!(asked_of(&hosts[3]), ["start own-0"]);
    assert_eq!(
        instance(&delta.sees("its VM", |status| !status.instances.is_empty()).await, "own-0").unwrap().state,
        "running"
    );

    let gamma = hosts[2].start();
    let status = sees_servers(&gamma, 3, 4).await;
    assert_eq!(node(&status, "gamma").role, "worker");
    wait_for("its log to be gone", async || if has_log(&hosts[2]) { Err("it is there".to_owned()) } else { Ok(()) })
        .await;
    apply(&gamma, declared("", &[of_zone("own", "delta"), of_zone("third", "gamma")])).await.unwrap();
    sees_running(&gamma, 2).await;
    no_vm_runs_twice(&hosts);
}

#[tokio::test(flavor = "multi_thread")]
async fn from_one_host_to_five_servers_and_back_to_one_host_every_write_is_taken() {
    let names = ["alpha", "beta", "gamma", "delta", "epsilon"];
    let mut hosts = hosts(names);
    for host in &mut hosts {
        host.servers.truncate(1);
    }
    let alpha = hosts[0].start();
    sees_whole(&alpha, 1).await;
    let written = AtomicU32::new(0);
    let writes = async {
        let mut client = alpha.client().await;
        loop {
            let command = vec![format!("write-{}", written.load(Ordering::Relaxed))];
            // More than any host has: it waits for ever.
            client.run_task(proto::RunTaskRequest { command, cpus: 1_000_000, memory_mib: 1 }).await.unwrap();
            written.fetch_add(1, Ordering::Relaxed);
        }
    };
    let changes = async {
        let mut agents = Vec::new();
        for (at, servers) in (1..5).zip([1, 3, 3, 3]) {
            agents.push(hosts[at].start());
            sees_servers(&alpha, servers, at + 1).await;
        }
        let vms = names.map(|name| of_zone(&format!("vm-{name}"), name));
        for servers in [5, 3, 1, 3, 5, 3] {
            apply(&agents[3], declared(&format!(r#""servers": {servers}"#), &vms)).await.unwrap();
            let is_so = |status: &StatusReply| {
                let of_role = |role| status.nodes.iter().filter(|node| node.role == role).count();
                cluster(status).servers == servers && of_role("worker") == 5 - servers as usize
            };
            for agent in agents.iter().chain([&alpha]) {
                agent.sees(&format!("{servers} servers"), is_so).await;
            }
        }
        sees_running(&alpha, 5).await;
        for host in &hosts {
            assert_eq!(asked_of(host).len(), 1, "{}: {:?}", host.name, asked_of(host));
        }
        no_vm_runs_twice(&hosts);
        apply(&alpha, declared(r#""servers": 3"#, &[])).await.unwrap();
        for (at, servers) in (1..5).rev().zip([3, 3, 2, 1]) {
            remove(&alpha, hosts[at].name, false).await.unwrap();
            sees_servers(&alpha, servers, at).await;
        }
    };
    tokio::select! {
        () = writes => unreachable!("it goes on for ever"),
        () = changes => {}
    }
    let tasks = alpha.client().await.list_tasks(proto::ListTasksRequest::default()).await.unwrap().into_inner().tasks;
    let written = written.load(Ordering::Relaxed);
    assert!(
        tasks.len() >= written as usize && written > 100,
        "{written} writes were acknowledged, and {} are there",
        tasks.len()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_declared_a_worker_becomes_one_and_another_gets_its_vote() {
    let (mut hosts, mut agents) = three_and_one("").await;
    let before = has_role(agents[0].as_ref().unwrap(), "delta", "worker").await;
    agents[1].take().unwrap().stop().await;
    hosts[1].role = "worker";
    let beta = hosts[1].start();
    let status = has_role(&beta, "beta", "worker").await;
    assert_eq!(node(&status, "beta").id, node(&before, "beta").id);
    sees_servers(&beta, 3, 4).await;
    assert_eq!(asked_of(&hosts[3]), ["start own-0"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_comes_back_when_all_servers_that_it_knew_are_workers() {
    let mut hosts = hosts(["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta"]);
    hosts[6].role = "worker";
    let mut agents = Vec::from([0, 1, 2].map(|at| Some(hosts[at].start())));
    sees_whole(agents[0].as_ref().unwrap(), 3).await;
    agents.extend([3, 4, 5, 6].map(|at| Some(hosts[at].start())));
    sees_servers(agents[6].as_ref().unwrap(), 3, 7).await;
    agents[6].take().unwrap().stop().await;
    for at in [2, 1] {
        agents[at].take().unwrap().stop().await;
        hosts[at].role = "worker";
        agents[at] = Some(hosts[at].start());
        has_role(agents[3].as_ref().unwrap(), hosts[at].name, "worker").await;
        let three = |status: &StatusReply| cluster(status).servers == 3;
        agents[3].as_ref().unwrap().sees("three servers", three).await;
    }
    // The first of all can't be declared one; it leaves.
    let asked = agents[3].as_ref().unwrap();
    let request = proto::RemoveNodeRequest { name: "alpha".to_owned(), dead: false, abandon_volumes: false };
    asked.client().await.remove_node(request).await.unwrap();
    let gone =
        |status: &StatusReply| cluster(status).servers == 3 && status.nodes.iter().all(|node| node.name != "alpha");
    asked.sees("alpha gone", gone).await;

    let eta = hosts[6].start();
    sees_servers(&eta, 3, 6).await;
    apply(&eta, declared("", &[of_zone("own", "eta")])).await.unwrap();
    sees_running(&eta, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_to_which_none_of_the_servers_is_left_that_it_knew_comes_back_by_those_that_are_configured() {
    let [founder, mut other, mut worker] = Host::blank(["alpha", "beta", "gamma"]);
    (other.servers, worker.servers) = (founder.servers[..2].to_vec(), founder.servers[..1].to_vec());
    worker.role = "worker";
    let [founder] = [Host { servers: founder.servers[..1].to_vec(), ..founder }];
    let (alpha, gamma) = (founder.start(), worker.start());
    sees_servers(&gamma, 1, 2).await;
    gamma.stop().await;
    let beta = other.start();
    has_role(&beta, "beta", "learner").await;
    remove(&beta, "alpha", false).await.unwrap();
    alpha.ended().await.unwrap_err();
    worker.servers = other.servers[1..].to_vec();
    sees_servers(&worker.start(), 1, 2).await;
}

/// Six hosts, the third of which was a server and is off; another one has taken its place.
async fn without_gamma() -> ([Host; 6], [Agent; 5]) {
    let hosts = hosts(["alpha", "beta", "gamma", "delta", "epsilon", "zeta"]);
    let [alpha, beta, gamma] = [0, 1, 2].map(|at| hosts[at].start());
    sees_whole(&alpha, 3).await;
    let [delta, epsilon, zeta] = [3, 4, 5].map(|at| hosts[at].start());
    sees_servers(&delta, 3, 6).await;
    apply(&delta, declared(r#""replaceServersAfterSeconds": 10"#, &[of_zone("own", "gamma")])).await.unwrap();
    sees_running(&delta, 1).await;
    gamma.stop().await;
    has_role(&delta, "gamma", "worker").await;
    (hosts, [alpha, beta, delta, epsilon, zeta])
}

/// Until so many nodes are left, of which three are servers.
async fn are_left(asked: &Api, nodes: usize) {
    let is_left = |status: &StatusReply| cluster(status).servers == 3 && status.nodes.len() == nodes;
    asked.sees("those that are left", is_left).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_comes_back_as_a_worker_when_none_that_it_knew_is_a_server() {
    let (mut hosts, [_alpha, beta, delta, _epsilon, _zeta]) = without_gamma().await;
    beta.stop().await;
    hosts[1].role = "worker";
    let _beta = hosts[1].start();
    has_role(&delta, "beta", "worker").await;
    remove(&delta, "alpha", false).await.unwrap();
    are_left(&delta, 5).await;

    let gamma = hosts[2].start();
    sees_servers(&gamma, 3, 5).await;
    assert_eq!(asked_of(&hosts[2]), ["start own-0"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_comes_back_as_a_worker_when_none_that_it_knew_is_left_by_those_that_are_configured() {
    let (mut hosts, [alpha, beta, _delta, epsilon, _zeta]) = without_gamma().await;
    for (left, name, agent) in [(5, "beta", beta), (4, "alpha", alpha)] {
        remove(&epsilon, name, false).await.unwrap();
        are_left(&epsilon, left).await;
        agent.ended().await.unwrap_err();
    }
    hosts[2].servers = [3, 4].map(|at| format!("{}@{}", hosts[at].name, hosts[at].address)).to_vec();
    let gamma = hosts[2].start();
    sees_servers(&gamma, 3, 4).await;
    assert_eq!(asked_of(&hosts[2]), ["start own-0"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_removed_gives_up_what_it_runs_and_ends() {
    let (hosts, mut agents) = three_and_one("").await;
    let delta = agents[3].take().unwrap();
    let request = proto::RemoveNodeRequest { name: "delta".to_owned(), dead: false, abandon_volumes: false };
    agents[0].as_ref().unwrap().client().await.remove_node(request).await.unwrap();
    let ended = delta.ended().await.unwrap_err();
    assert!(ended.contains("was removed from the cluster"), "{ended}");
    assert_eq!(asked_of(&hosts[3]), ["start own-0", "stop own-0"]);
    let again = hosts[3].start().ended().await.unwrap_err();
    assert!(again.contains("was removed from the cluster"), "{again}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_a_worker_leaves_its_units_and_says_what_is_missing() {
    let (hosts, mut agents) = three_and_one("").await;
    for at in [0, 1] {
        agents[at].take().unwrap().stop().await;
    }
    let delta = agents[3].take().unwrap();
    let status = delta.sees("no quorum", |status| !cluster(status).quorum).await;
    assert_eq!(cluster(&status).answered_by, "gamma");
    let begin = Instant::now();
    let refused = apply(&delta, manifest(&[])).await.unwrap_err();
    assert!(refused.message().contains("majority"), "{refused}");
    agents[2].take().unwrap().stop().await;
    let question = proto::ExplainRequest { vm: "own".to_owned(), ..Default::default() };
    let refused = delta.client().await.explain(question).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert!(refused.message().contains("no server that can does") && refused.message().contains("node 1"), "{refused}");
    assert!(begin.elapsed() < Duration::from_secs(60), "{:?}", begin.elapsed());
    // Also one that starts now: it knows nothing, and touches nothing.
    delta.stop().await;
    let delta = hosts[3].start();
    assert_eq!(apply(&delta, manifest(&[])).await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(asked_of(&hosts[3]), ["start own-0"]);
    let back = [hosts[0].start(), hosts[1].start()];
    sees_servers(&delta, 3, 4).await;
    apply(&delta, manifest(&[])).await.unwrap();
    wait_for("the VM to stop", async || {
        let asked = asked_of(&hosts[3]);
        if asked.len() == 2 { Ok(()) } else { Err(format!("{asked:?}")) }
    })
    .await;
    drop(back);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_hosts_either_may_be_removed() {
    for goes in [0, 1] {
        let hosts = Host::blank(["alpha", "beta"]);
        let agents = hosts.each_ref().map(Host::start);
        for agent in &agents {
            sees_servers(agent, 1, 2).await;
        }
        let stays = &agents[1 - goes];
        let request =
            proto::RemoveNodeRequest { name: hosts[goes].name.to_owned(), dead: false, abandon_volumes: false };
        stays.client().await.remove_node(request).await.unwrap();
        sees_servers(stays, 1, 1).await;
    }
    let _ = start(&Host::blank(["alone"])).await;
}
