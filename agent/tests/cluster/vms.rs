//! VMs that are made by hand, beside those of a manifest.

use blixard::api::proto::{Presence, PutVmRequest, RemoveVmRequest, SetVmRunningRequest, StatusReply};
use tonic::Code;

use super::support::{Agent, Api, Host, manifest, runner, wait_for};
use super::{apply, instance, no_vm_runs_twice, sees_running, start};

fn scratch(must: Presence) -> PutVmRequest {
    let json = format!(
        r#"{{ "runners": ["{}"], "system": "{}", "hypervisor": "qemu", "vcpus": 1, "memoryMiB": 100, "kvm": false }}"#,
        runner("scratch-0"),
        blixard::probe::system()
    );
    PutVmRequest { name: "scratch".to_owned(), json: json.into_bytes(), running: true, must: must.into() }
}

async fn set_running(api: &Api, running: bool) {
    let request = SetVmRunningRequest { name: "scratch".to_owned(), running };
    api.client().await.set_vm_running(request).await.unwrap();
}

/// What the units of all hosts were asked to do with it, in any order of hosts.
fn asked<const N: usize>(hosts: &[Host; N]) -> Vec<String> {
    let all = hosts.iter().flat_map(|host| host.units.held().asked.clone());
    all.filter(|asked| asked.ends_with(" scratch-0")).collect()
}

async fn is_nowhere<const N: usize>(hosts: &[Host; N]) {
    wait_for("its unit to be gone", async || {
        let name = "scratch-0".parse().unwrap();
        let where_it_is = hosts.iter().find(|host| host.units.held().observed.vms.contains_key(&name));
        where_it_is.map_or(Ok(()), |host| Err(format!("it is on {}", host.name)))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_made_by_hand_runs_stops_runs_again_and_goes_whatever_is_applied() {
    let hosts = Host::blank(["alpha", "beta", "gamma"]);
    let agents: [Agent; 3] = start(&hosts).await;
    agents[0].client().await.put_vm(scratch(Presence::Absent)).await.unwrap();
    sees_running(&agents[1], 1).await;
    for vms in [&[("web", "")] as &[_], &[("db", "")]] {
        apply(&agents[2], manifest(vms)).await.unwrap();
        let status = sees_running(&agents[0], 2).await;
        let scratch = instance(&status, "scratch-0").expect("no manifest touches it");
        assert_eq!((&*scratch.owner, scratch.generation), ("cli", 1));
    }
    assert_eq!(asked(&hosts), ["start scratch-0"]);

    set_running(&agents[1], false).await;
    let stopped = |status: &StatusReply| {
        status.problems.is_empty() && instance(status, "scratch-0").is_some_and(|vm| vm.state == "stopped")
    };
    agents[2].sees("a stopped VM and no problem", stopped).await;
    is_nowhere(&hosts).await;
    apply(&agents[2], manifest(&[("web", "")])).await.unwrap();
    agents[2].sees("a stopped VM and no problem", stopped).await;

    set_running(&agents[2], true).await;
    sees_running(&agents[0], 2).await;
    no_vm_runs_twice(&hosts);
    let remove = RemoveVmRequest { name: "scratch".to_owned() };
    agents[0].client().await.remove_vm(remove.clone()).await.unwrap();
    sees_running(&agents[1], 1).await;
    is_nowhere(&hosts).await;
    let mut asked = asked(&hosts);
    asked.sort();
    assert_eq!(asked, ["start scratch-0", "start scratch-0", "stop scratch-0", "stop scratch-0"]);
    let refused = agents[1].client().await.remove_vm(remove).await.unwrap_err();
    assert!(refused.code() == Code::FailedPrecondition && refused.message().contains("no VM scratch"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_that_create_the_same_vm_at_once_one_succeeds() {
    let hosts = Host::blank(["alpha", "beta", "gamma"]);
    let agents = start(&hosts).await;
    let mut attempts = tokio::task::JoinSet::new();
    for agent in agents.iter().chain(&agents) {
        let mut client = agent.client().await;
        attempts.spawn(async move { client.put_vm(scratch(Presence::Absent)).await.map_err(|refused| refused.code()) });
    }
    let results = attempts.join_all().await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1, "{results:?}");
    let refused = |result: &&Result<_, _>| matches!(result, Err(Code::FailedPrecondition));
    assert_eq!(results.iter().filter(refused).count(), 5, "{results:?}");
    agents[0].client().await.put_vm(scratch(Presence::Present)).await.unwrap();
    sees_running(&agents[0], 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_vm_is_an_invalid_argument_with_its_field() {
    let hosts = Host::blank(["alpha"]);
    let [agent] = start(&hosts).await;
    let mut client = agent.client().await;
    let good = scratch(Presence::Any);
    let text = String::from_utf8(good.json.clone()).unwrap();
    for (from, to, told) in [("vcpus", "vcpu", "vcpu"), ("\"vcpus\": 1", "\"vcpus\": -1", "vcpus"), ("{", "", "line 1")]
    {
        let json = text.replacen(from, to, 1).into_bytes();
        let refused = client.put_vm(PutVmRequest { json, ..good.clone() }).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert!(refused.message().contains("the VM is wrong at") && refused.message().contains(told), "{refused}");
    }
    let refused = client.put_vm(PutVmRequest { name: "../x".to_owned(), ..good }).await.unwrap_err();
    assert!(refused.code() == Code::InvalidArgument && refused.message().contains("../x"), "{refused}");
}
