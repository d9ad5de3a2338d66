//! Agents that are one cluster, over real TLS, with real logs and stores; only their units are made up.

#[path = "../support/mod.rs"]
mod support;

mod backup;
mod certificates;
mod copies;
mod damage;
mod dead;
mod declared;
mod drain;
mod equality;
mod events;
mod forming;
mod levels;
mod manifests;
mod quorum;
mod recovery;
mod refusals;
mod removal;
mod restarts;
mod roles;
mod secrets;
mod tokens;
mod units;
mod vms;

use std::collections::BTreeMap;
use std::time::Duration;

use blixard::api::proto;
use blixard_core::unit::UnitPhase;
use support::{Agent, Api, Host, wait_for};
use tonic::Code;

/// How long a proposal or a read may wait, as their errors say.
const PATIENCE: Duration = Duration::from_secs(5);

/// Starts them, and waits until each sees all of them as servers, and nothing wrong.
async fn start<const N: usize>(hosts: &[Host; N]) -> [Agent; N] {
    let agents = hosts.each_ref().map(Host::start);
    for agent in &agents {
        sees_whole(agent, N).await;
    }
    agents
}

async fn sees_whole(agent: &Api, servers: usize) -> proto::StatusReply {
    sees_servers(agent, servers, servers).await
}

/// So many servers that vote, of so many nodes, and nothing wrong.
async fn sees_servers(agent: &Api, servers: usize, nodes: usize) -> proto::StatusReply {
    let whole = |status: &proto::StatusReply| {
        let voters = status.cluster.as_ref().is_some_and(|cluster| cluster.servers as usize == servers);
        voters && status.nodes.len() == nodes && status.problems.is_empty()
    };
    agent.sees("a whole and healthy cluster", whole).await
}

/// What a host that is no member waits for, once it says all of that.
async fn waits_for(api: &Api, words: &[&str]) -> String {
    let mut client = api.client().await;
    wait_for(&format!("{words:?}"), async || match client.status(proto::StatusRequest::default()).await {
        Ok(reply) => panic!("it became a member: {:?}", reply.into_inner()),
        Err(status) if status.code() != Code::Unavailable => panic!("{status}"),
        Err(status) if words.iter().all(|word| status.message().contains(word)) => Ok(status.message().to_owned()),
        Err(status) => Err(status.message().to_owned()),
    })
    .await
}

/// A manifest, made the head by way of this agent.
async fn apply(agent: &Api, json: Vec<u8>) -> Result<proto::ApplyReply, tonic::Status> {
    let request = proto::ManifestRequest { json, from: "a test".to_owned() };
    agent.client().await.apply(request).await.map(tonic::Response::into_inner)
}

/// A status in which this many instances run, and no others are.
async fn sees_running(agent: &Api, count: usize) -> proto::StatusReply {
    let run = |status: &proto::StatusReply| {
        status.instances.len() == count && status.instances.iter().all(|vm| vm.state == "running")
    };
    agent.sees("running VMs", run).await
}

fn cluster(status: &proto::StatusReply) -> &proto::Cluster {
    status.cluster.as_ref().expect("a status is of a cluster")
}

fn node<'a>(status: &'a proto::StatusReply, name: &str) -> &'a proto::Node {
    status.nodes.iter().find(|node| node.name == name).expect("the node is shown")
}

fn instance<'a>(status: &'a proto::StatusReply, name: &str) -> Option<&'a proto::Instance> {
    status.instances.iter().find(|instance| instance.name == name)
}

/// Where the leader is among these hosts.
fn leader<const N: usize>(status: &proto::StatusReply, hosts: &[Host; N]) -> usize {
    let leader = &cluster(status).leader;
    hosts.iter().position(|host| host.name == *leader).expect("the leader is one of them")
}

/// How many hosts run each instance.
fn no_vm_runs_twice<const N: usize>(hosts: &[Host; N]) {
    let mut running: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for host in hosts {
        for (instance, vm) in &host.units.held().observed.vms {
            if vm.phase != UnitPhase::Inactive {
                running.entry(instance.to_string()).or_default().push(host.name);
            }
        }
    }
    assert!(running.values().all(|hosts| hosts.len() == 1), "{running:?}");
}
