//! What a host has of its cluster is copied, and started beside it or in its place.

use std::process::Command;

use blixard::agent::{Traits, recovery};
use blixard::probe::MachineId;
use blixard_core::types::Level;

use super::removal::{falls_silent, remove};
use super::support::{FakeUnits, Host, manifest};
use super::{apply, cluster, leader, no_vm_runs_twice, node, sees_running, sees_whole, start};

fn machine(last: char) -> Option<MachineId> {
    MachineId::of(&format!("4c4c4544-0042-4a10-8056-b3c04f4e353{last}"))
}

/// A host of this one's name and configuration, with a copy of its data.
fn copy_of(host: &Host) -> Host {
    let [copied] = Host::blank([host.name]);
    let [from, to] = [host, &copied].map(|host| host.dir.path().join("data"));
    assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
    Host { servers: host.servers.clone(), ..copied }
}

#[tokio::test(flavor = "multi_thread")]
async fn data_that_was_made_on_another_machine_is_refused_with_both_named() {
    let [mut alpha] = Host::blank(["alpha"]);
    alpha.traits.machine = machine('1');
    let agent = alpha.start();
    let id = cluster(&agent.is_healthy().await).id.clone();
    agent.stop().await;
    let mut copied = copy_of(&alpha);
    copied.traits.machine = machine('2');
    let refused = copied.start().ended().await.unwrap_err();
    let path = copied.dir.path().join("data/raft").display().to_string();
    let [made_on, this] = [&alpha, &copied].map(|host| host.traits.machine.clone().unwrap().to_string());
    for word in [&*made_on, &this, &path, "move that directory away", "remove"] {
        assert!(refused.contains(word), "{word}: {refused}");
    }
    assert_eq!(cluster(&alpha.start().is_healthy().await).id, id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_was_moved_goes_on_where_a_person_has_said_so() {
    let [mut alpha] = Host::blank(["alpha"]);
    alpha.traits.machine = machine('1');
    let agent = alpha.start();
    let id = cluster(&agent.is_healthy().await).id.clone();
    agent.stop().await;
    alpha.traits.machine = machine('2');
    alpha.start().ended().await.unwrap_err();
    std::fs::remove_file(alpha.dir.path().join("data/raft/machine")).unwrap();
    let agent = alpha.start();
    assert_eq!(cluster(&agent.is_healthy().await).id, id);
    agent.stop().await;
    alpha.traits.machine = machine('1');
    alpha.start().ended().await.unwrap_err();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_survivors_disk_begins_a_cluster_anew_in_whichever_machine_it_is() {
    let [mut alpha] = Host::blank(["alpha"]);
    alpha.traits.machine = machine('1');
    let agent = alpha.start();
    agent.is_healthy().await;
    agent.stop().await;
    alpha.traits.machine = machine('2');
    recovery::examine(alpha.config(), Level::NEWEST).unwrap().recover().unwrap();
    alpha.start().is_healthy().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_agents_from_one_disk_the_first_ends_and_stays_so_until_a_person_has_chosen() {
    for of_leader in [false, true] {
        let hosts = Host::blank(["alpha", "beta", "gamma"]);
        let mut agents = start(&hosts).await.map(Some);
        let at = leader(&sees_whole(agents[0].as_ref().unwrap(), 3).await, &hosts);
        let (twice, other) = if of_leader { (at, (at + 1) % 3) } else { ((at + 1) % 3, at) };
        agents[twice].take().unwrap().stop().await;
        let copied = copy_of(&hosts[twice]);
        let original = hosts[twice].start();
        sees_whole(&original, 3).await;
        let id = node(&sees_whole(agents[other].as_ref().unwrap(), 3).await, hosts[twice].name).id;

        let copy = copied.start();
        let ended = original.ended().await.unwrap_err();
        for word in [&format!("node {id}"), "copy of its data", "move one of the two data directories away"] {
            assert!(ended.contains(word), "{word}: {ended}");
        }
        let refused = hosts[twice].start().ended().await.unwrap_err();
        let file = hosts[twice].dir.path().join("data/raft/machine").display().to_string();
        assert!(refused.contains("in two places") && refused.contains(&format!("remove {file}")), "{refused}");

        // The others go on, and the one that a person chooses is heard again.
        apply(agents[other].as_ref().unwrap(), manifest(&[("a", "")])).await.unwrap();
        // It may lack what the other one has acknowledged since, and have ended for that.
        let _ = copy.end().await;
        std::fs::remove_file(file).unwrap();
        sees_whole(&hosts[twice].start(), 3).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_data_was_put_back_to_an_earlier_time_stops_and_a_host_made_anew_takes_its_place() {
    let mut hosts = Host::blank(["alpha", "beta", "gamma"]);
    for host in &mut hosts {
        // It is the leader that knows what was acknowledged to it: it is to lead on, however busy the machine is.
        host.traits = Traits { election_ticks: 300, ..host.traits.clone() };
    }
    let mut agents = start(&hosts).await.map(Some);
    let at = leader(&sees_whole(agents[0].as_ref().unwrap(), 3).await, &hosts);
    let back = (at + 1) % 3;
    agents[back].take().unwrap().stop().await;
    let earlier = copy_of(&hosts[back]);
    let agent = hosts[back].start();
    let id = node(&sees_whole(&agent, 3).await, hosts[back].name).id;
    apply(&agent, manifest(&[("a", ""), ("b", ""), ("c", "")])).await.unwrap();
    sees_running(&agent, 3).await;
    agent.stop().await;

    let [now, then] = [&hosts[back], &earlier].map(|host| host.dir.path().join("data"));
    std::fs::remove_dir_all(&now).unwrap();
    std::fs::rename(then, &now).unwrap();
    let asked = hosts[back].units.held().asked.clone();
    // Then it knows by itself, where nobody tells it, too.
    let dir = now.join("raft").display().to_string();
    for from in ["has this server's word", &*dir, &*dir] {
        let ended = hosts[back].start().ended().await.unwrap_err();
        for word in [from, "put back to an earlier time", "blixard node replace"] {
            assert!(ended.contains(word), "{word}: {ended}");
        }
    }
    assert_eq!(hosts[back].units.held().asked, asked, "what runs there was left alone");

    let leads = agents[at].as_ref().unwrap();
    apply(leads, manifest(&[("a", ""), ("b", ""), ("c", ""), ("d", "")])).await.unwrap();
    falls_silent(leads, hosts[back].name).await;
    // As `blixard node replace` does; then the host is made anew.
    remove(leads, hosts[back].name, true).await.unwrap();
    hosts[back].dir = tempfile::tempdir().unwrap();
    hosts[back].units = FakeUnits::default();
    let anew = hosts[back].start();
    assert!(node(&sees_whole(&anew, 3).await, hosts[back].name).id > id);
    sees_running(&anew, 4).await;
    no_vm_runs_twice(&hosts);
}
