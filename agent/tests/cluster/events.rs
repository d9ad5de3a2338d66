//! What has happened is the same whoever is asked.

use blixard::api::proto;

use super::support::{Api, Host, manifest};
use super::{apply, instance, leader, sees_running, sees_servers};

/// All that has happened behind an event.
async fn history(api: &Api, after: u64) -> Vec<proto::Event> {
    let request = proto::EventsRequest { after, ..proto::EventsRequest::default() };
    let mut replies = api.client().await.events(request).await.unwrap().into_inner();
    let mut events = Vec::new();
    while let Some(reply) = replies.message().await.unwrap() {
        events.extend(reply.events);
    }
    events
}

fn of(events: &[proto::Event], instance: &str) -> Vec<String> {
    let of_it = events.iter().filter(|event| event.instance == instance);
    of_it.map(|event| format!("{} {}", event.kind, event.node)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_host_tells_the_same_history_and_a_worker_goes_on_with_it_at_another_server() {
    let mut hosts = Host::blank(["alpha", "beta", "gamma", "delta"]);
    for host in &mut hosts {
        host.servers.truncate(3);
    }
    let mut agents = hosts.each_ref().map(|host| Some(host.start()));
    let delta = agents[3].take().unwrap();
    sees_servers(&delta, 3, 4).await;
    apply(&delta, manifest(&[("web", "")])).await.unwrap();
    let status = sees_running(&delta, 1).await;
    let home = instance(&status, "web-0").unwrap().node.clone();
    let told = history(&delta, 0).await;
    assert_eq!(told.iter().filter(|event| event.kind == "joined").count(), 4);
    assert_eq!(of(&told, "web-0"), [format!("placed {home}"), format!("started {home}")]);
    for agent in agents.iter().flatten() {
        assert_eq!(history(agent, 0).await[..told.len()], told);
    }

    let after = told.last().unwrap().number;
    let request = proto::EventsRequest { after, follow: true, vm: "more".to_owned(), ..Default::default() };
    let mut followed = delta.client().await.events(request).await.unwrap().into_inner();
    apply(&delta, manifest(&[("web", ""), ("more", "")])).await.unwrap();
    let (mut events, mut until) = (Vec::new(), after);
    while of(&events, "more-0").len() < 2 {
        let reply = followed.message().await.unwrap().expect("it goes on");
        assert!(reply.until > until, "it is told how far it was looked");
        until = reply.until;
        events.extend(reply.events);
    }
    assert!(events.iter().all(|event| event.instance == "more-0"), "{events:?}");

    // The leader is asked first, so it is likely the one that told.
    let stopped = leader(&status, &hosts);
    agents[stopped].take().unwrap().stop().await;
    drop(followed);
    delta.sees("its silence", |status| status.nodes.iter().any(|node| !node.alive)).await;
    let rest = history(&delta, until).await;
    assert_eq!(rest.first().map(|event| event.number), Some(until + 1));
    let silent = rest.iter().find(|event| event.kind == "silent").expect("it is silent");
    assert_eq!(silent.node, hosts[stopped].name);
}
