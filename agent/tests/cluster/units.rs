//! What units do is what the cluster shows.

use blixard::api::proto::{ListTasksRequest, RunTaskRequest, StatusReply, Task};
use blixard_core::types::{Exit, Generation};
use blixard_core::unit::{ExitRecord, UnitPhase};

use super::support::{Api, FakeUnits, Host, manifest, wait_for};
use super::{apply, instance, sees_running, start};

impl FakeUnits {
    /// A VM's process ends, and systemd doesn't start it again.
    fn end_vm(&self, name: &str, exit: Exit) {
        self.change(|held| {
            let vm = held.observed.vms.get_mut(&name.parse().unwrap()).expect("it runs");
            let generation = vm.installed.as_ref().expect("it was installed").generation;
            vm.phase = UnitPhase::Inactive;
            vm.last_exit = Some(ExitRecord { generation, exit });
        });
    }

    /// A task is said to run before it does.
    async fn end_task(&self, name: &str, exit: Exit) {
        let id = name.parse().unwrap();
        wait_for("the task's unit", async || {
            let observed = self.held().observed.clone();
            observed.tasks.contains_key(&id).then_some(()).ok_or_else(|| format!("{observed:?}"))
        })
        .await;
        self.change(|held| {
            let task = held.observed.tasks.get_mut(&id).expect("nothing else ends it");
            task.phase = UnitPhase::Inactive;
            task.last_exit = Some(ExitRecord { generation: Generation(0), exit });
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_cannot_be_started_is_shown_failed_with_the_reason_and_tried_again() {
    let hosts = Host::blank(["alpha"]);
    let [agent] = start(&hosts).await;
    hosts[0].units.held().broken = Some("no such kernel".to_owned());
    apply(&agent, manifest(&[("web", "")])).await.unwrap();
    let failed = |status: &StatusReply| instance(status, "web-0").is_some_and(|vm| vm.state == "failed");
    let status = agent.sees("a failed VM", failed).await;
    let vm = instance(&status, "web-0").unwrap();
    assert!(vm.reason.contains("no such kernel"), "{}", vm.reason);
    assert!(status.problems.iter().any(|problem| problem.contains("web-0") && problem.contains("no such kernel")));

    hosts[0].units.held().broken = None;
    let status = sees_running(&agent, 1).await;
    assert_eq!((&*instance(&status, "web-0").unwrap().reason, status.problems.len()), ("", 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_ends_by_a_policy_that_lets_it_is_shown_with_its_exit_and_not_started_again() {
    let hosts = Host::blank(["alpha"]);
    let [agent] = start(&hosts).await;
    let json = manifest(&[("bad", r#", "restart": "never""#), ("good", r#", "restart": "on-failure""#)]);
    apply(&agent, json.clone()).await.unwrap();
    sees_running(&agent, 2).await;
    hosts[0].units.end_vm("bad-0", Exit::Exited(3));
    hosts[0].units.end_vm("good-0", Exit::Exited(0));
    let ended = |status: &StatusReply| {
        let state = |name| instance(status, name).map(|vm| vm.state.as_str());
        (state("bad-0"), state("good-0")) == (Some("failed"), Some("stopped"))
    };
    let status = agent.sees("both ended", ended).await;
    assert_eq!(instance(&status, "bad-0").unwrap().reason, "exit status 3");
    assert_eq!(instance(&status, "good-0").unwrap().reason, "it ended by itself");
    assert_eq!(status.problems, ["bad-0 is failed: exit status 3"], "one that ended well is no problem");

    // Nor does an agent that starts again start them.
    agent.stop().await;
    let agent = hosts[0].start();
    agent.sees("both ended", ended).await;
    apply(&agent, manifest(&[("bad", r#", "restart": "never""#)])).await.unwrap();
    agent.sees("one VM", |status| status.instances.len() == 1).await;
    let mut asked = hosts[0].units.held().asked.clone();
    // They are started side by side.
    asked.sort();
    assert_eq!(asked, ["start bad-0", "start good-0", "stop good-0"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn restarts_that_systemd_makes_are_counted_and_a_restarting_vm_is_starting() {
    let hosts = Host::blank(["alpha"]);
    let [agent] = start(&hosts).await;
    apply(&agent, manifest(&[("web", "")])).await.unwrap();
    sees_running(&agent, 1).await;
    let shown = |phase, restarts| {
        hosts[0].units.change(|held| {
            let vm = held.observed.vms.values_mut().next().unwrap();
            (vm.phase, vm.restarts) = (phase, restarts);
        });
    };
    let sees = async |state, restarts| {
        let wanted = |status: &StatusReply| {
            instance(status, "web-0").is_some_and(|vm| vm.state == state && vm.restarts == restarts)
        };
        agent.sees(state, wanted).await;
    };
    shown(UnitPhase::Starting, 1);
    sees("starting", 1).await;
    shown(UnitPhase::Running, 1);
    sees("running", 1).await;
    assert_eq!(hosts[0].units.held().asked, ["start web-0"]);
}

async fn run_task(api: &Api, command: &str, cpus: u32) -> String {
    let request = RunTaskRequest { command: vec![command.to_owned()], cpus, memory_mib: 100 };
    api.client().await.run_task(request).await.unwrap().into_inner().task
}

async fn sees_task(api: &Api, name: &str, state: &str) -> Task {
    let mut client = api.client().await;
    wait_for(&format!("{name} to be {state}"), async || {
        let tasks =
            client.list_tasks(ListTasksRequest::default()).await.map_err(|status| status.message().to_owned())?;
        let task = tasks.into_inner().tasks.into_iter().find(|task| task.name == name);
        task.clone().filter(|task| task.state == state).ok_or_else(|| format!("{task:?}"))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_runs_once_and_its_exit_status_is_kept() {
    let hosts = Host::blank(["alpha"]);
    let [agent] = start(&hosts).await;
    let units = &hosts[0].units;
    let (good, bad) = (run_task(&agent, "true", 1).await, run_task(&agent, "false", 1).await);
    for (name, exit, state, status) in
        [(&good, Exit::Exited(0), "done", Some(0)), (&bad, Exit::Exited(7), "failed", Some(7))]
    {
        sees_task(&agent, name, "running").await;
        units.end_task(name, exit).await;
        assert_eq!(sees_task(&agent, name, state).await.status, status);
    }
    let killed = run_task(&agent, "sleep", 1).await;
    sees_task(&agent, &killed, "running").await;
    units.end_task(&killed, Exit::Killed(9)).await;
    let task = sees_task(&agent, &killed, "failed").await;
    assert_eq!((&*task.exit, task.status), ("killed by signal 9", None));
    wait_for("the units to be gone", async || {
        if units.held().observed.tasks.is_empty() { Ok(()) } else { Err(format!("{:?}", units.held().observed)) }
    })
    .await;

    let too_large = run_task(&agent, "true", 5).await;
    let waiting = sees_task(&agent, &too_large, "pending").await;
    assert!(waiting.reason.contains("CPU"), "{}", waiting.reason);

    agent.stop().await;
    let agent = hosts[0].start();
    assert_eq!(sees_task(&agent, &bad, "failed").await.status, Some(7));
    let starts = units.held().asked.iter().filter(|asked| asked.starts_with("start")).count();
    assert_eq!(starts, 3, "{:?}", units.held().asked);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_cannot_be_started_has_failed_with_the_reason() {
    let hosts = Host::blank(["alpha"]);
    let [agent] = start(&hosts).await;
    hosts[0].units.held().broken = Some("no such template".to_owned());
    let name = run_task(&agent, "true", 1).await;
    let task = sees_task(&agent, &name, "failed").await;
    assert!(task.reason.contains("no such template"), "{task:?}");
}
