//! VMs that are made, stopped, started and removed by hand.

use blixard::api::proto::StatusReply;
use blixard_core::types::RestartPolicy;

use super::ask::{Asked, row};
use super::run;
use super::support::runner;

/// A command line that makes this VM, and more of it.
fn create<'a>(name: &'a str, runner: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let all = ["vm", "create", name, "--runner", runner, "--vcpus", "1", "--memory", "100", "--no-kvm"];
    [&all, more].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_is_made_stopped_started_and_removed_and_each_list_says_whose_it_is() {
    let asked = Asked::start().await;
    asked.ok(&["apply", &asked.manifest(&[("web", "")])]);
    assert_eq!(asked.ok(&create("scratch", &runner("scratch-0"), &[])), "scratch is made\n");
    asked.agent.is_healthy().await;
    let listed = |state: &str| {
        let list = asked.ok(&["vm", "ls"]);
        assert_eq!(row(&list, "web-0")[1..3], ["running", "alpha"]);
        assert_eq!(row(&list, "web-0").last(), Some(&"manifest"));
        assert_eq!((row(&list, "scratch-0")[1], row(&list, "scratch-0").contains(&"cli")), (state, true), "{list}");
    };
    listed("running");
    let stopped =
        |status: &StatusReply| status.problems.is_empty() && status.instances.iter().any(|vm| vm.state == "stopped");
    assert_eq!(asked.ok(&["vm", "stop", "scratch"]), "scratch is to be stopped\n");
    asked.agent.sees("a stopped VM", stopped).await;
    listed("stopped");
    assert!(asked.ok(&["status"]).contains("healthy"), "one that is stopped is no problem");
    let told = asked.ok(&["explain", "scratch"]);
    assert!(told.starts_with("scratch-0 is stopped\n") && told.contains("`blixard vm start scratch`"), "{told}");
    let shown = asked.ok(&["vm", "show", "scratch"]);
    assert_eq!((row(&shown, "owner"), row(&shown, "runner")[1]), (vec!["owner", "cli"], &*runner("scratch-0")));
    assert_eq!(asked.ok(&["vm", "start", "scratch"]), "scratch is to run\n");
    asked.agent.is_healthy().await;
    listed("running");
    assert_eq!(asked.ok(&["vm", "rm", "scratch"]), "scratch is removed; what runs of it is being stopped\n");
    asked.agent.sees("one VM", |status| status.instances.len() == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_flag_of_create_reaches_the_unit() {
    let asked = Asked::start().await;
    let (first, second) = (runner("wide-0"), runner("wide-1"));
    let more = [
        &second,
        "--memory-overhead",
        "7",
        "--disk",
        "9",
        "--label",
        "zone=a",
        "--restart",
        "on-failure",
        "--hypervisor",
        "qemu",
        "--notifies",
        "--failover",
        "manual",
        "--priority",
        "900",
        "--min-available",
        "0",
    ];
    let all = ["vm", "create", "wide", "--vcpus", "2", "--memory", "100", "--no-kvm", "--runner", &first];
    asked.ok(&[&all as &[_], &more].concat());
    let both = |status: &StatusReply| status.instances.iter().filter(|vm| vm.state == "running").count() == 2;
    let status = asked.agent.sees("both replicas", both).await;
    assert!(status.instances.iter().all(|vm| vm.disk_mib == 9), "{:?}", status.instances);
    let shown = asked.ok(&["vm", "show", "wide-0"]);
    assert_eq!((row(&shown, "failover")[1], row(&shown, "priority")[1]), ("manual", "900"));
    let held = asked.host.units.held();
    for (vm, runner) in held.observed.vms.values().zip([first, second]) {
        let unit = vm.installed.as_ref().unwrap();
        assert_eq!((unit.cpus, unit.memory_max_mib, unit.notifies), (2, 107, true));
        assert_eq!((unit.restart, unit.runner.to_string()), (RestartPolicy::OnFailure, runner));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_label_that_no_host_has_keeps_it_waiting() {
    let asked = Asked::start().await;
    asked.ok(&create("far", &runner("far-0"), &["--label", "zone=b", "--label", "rack=1"]));
    let (code, out, _) = asked.run(&["status"]);
    assert!(code == 1 && out.contains("far-0 is pending: no node will do: alpha: has no label rack"), "{out}");
    let twice = create("twice", "/nix/store/0c6kzph7l0dcbfmjap64f0czdafn3b7x-t", &["--label", "a=1", "--label", "a=2"]);
    assert!(asked.fails(&twice).contains("label a is required twice"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_the_command_lines_or_not_there_is_refused_with_what_to_do() {
    let asked = Asked::start().await;
    asked.ok(&["apply", &asked.manifest(&[("web", "")])]);
    asked.ok(&create("scratch", &runner("scratch-0"), &[]));
    for verb in ["start", "stop", "rm"] {
        assert!(asked.fails(&["vm", verb, "web"]).contains("the manifest alone decides"), "{verb}");
        assert!(asked.fails(&["vm", verb, "nope"]).contains("there is no VM nope: see `blixard vm ls`"), "{verb}");
    }
    for (name, runner, told) in [
        ("web", runner("web-1"), "the manifest alone decides"),
        ("scratch", runner("scratch-1"), "there is a VM scratch already"),
        ("other", runner("web-0"), "is the runner of web"),
    ] {
        assert!(asked.fails(&create(name, &runner, &[])).contains(told), "{told}");
    }
    let none = asked.fails(&["vm", "create", "none", "--runner", &runner("n"), "--vcpus", "0", "--memory", "1"]);
    assert!(none.contains("the VM is wrong at vms.none.vcpus: 0 vCPUs"), "{none}");
    let stuck = asked.fails(&create("stuck", &runner("stuck-0"), &["--min-available", "1"]));
    assert!(stuck.contains("vms.stuck.minAvailable: 1 of 1 replicas: at most 0"), "{stuck}");

    let mine = asked.manifest(&[("scratch", ""), ("web", "")]);
    for verb in ["apply", "plan"] {
        let told = asked.fails(&[verb, &mine]);
        assert!(told.contains("the manifest declares scratch") && told.contains("blixard vm rm scratch"), "{told}");
    }
    let other = asked.manifest(&[("web", r#", "diskMiB": 1"#)]);
    let plan = asked.ok(&["plan", &other]);
    assert!(!plan.contains("scratch") && plan.ends_with("1 changed, 0 as they are\n"), "{plan}");
}

#[test]
fn what_is_no_vm_is_refused_by_the_command_line_itself() {
    let good = create("web", "/nix/store/0c6kzph7l0dcbfmjap64f0czdafn3b7x-web", &[]);
    for (wrong, told) in [
        (&["--hypervisor", "xen"] as &[_], "cloud-hypervisor"),
        (&["--restart", "sometimes"], "on-failure"),
        (&["--label", "zone"], "KEY=VALUE"),
        (&["--disk", "much"], "--disk"),
        (&["--runner", "/tmp/web"], "/tmp/web"),
    ] {
        let (code, _, err) = run(&[&good as &[_], wrong].concat());
        assert!(code == 2 && err.contains(told), "{wrong:?}: {err}");
    }
    for name in ["../x", "", "UP", "a.b"] {
        assert_eq!(run(&["vm", "start", name]).0, 2, "{name:?}");
    }
    assert_eq!(run(&["vm", "create", "web", "--vcpus", "1", "--memory", "1"]).0, 2, "without a runner");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_closed_emptied_and_opened_and_each_verb_says_what_is_so_then() {
    let asked = Asked::start().await;
    asked.ok(&["apply", &asked.manifest(&[("web", ""), ("db", r#", "diskMiB": 1"#)])]);
    asked.agent.sees("two VMs", |status| status.instances.iter().all(|vm| vm.state == "running")).await;
    let told = asked.ok(&["node", "cordon", "alpha"]);
    assert_eq!(told, "nothing is placed on alpha any more; what it runs runs on\n");
    assert_eq!(row(&asked.ok(&["node", "ls"]), "alpha")[2], "cordoned");
    assert!(asked.ok(&["status"]).contains("healthy"), "a person wants it so");
    let told = asked.fails(&["vm", "move", "web-0", "--to", "alpha"]);
    assert!(told.contains("web-0 is on alpha already"), "{told}");

    let told = asked.ok(&["node", "drain", "alpha"]);
    assert!(told.ends_with("alpha is empty\n"), "{told}");
    assert_eq!(row(&asked.ok(&["node", "ls"]), "alpha")[2], "drained");
    let told = asked.ok(&["explain", "web"]);
    assert!(told.contains("alpha: is being drained"), "{told}");
    assert_eq!(asked.ok(&["node", "uncordon", "alpha"]), "alpha is used again\n");
    asked.agent.is_healthy().await;

    // A task is waited for, and the waiting has an end.
    asked.ok(&["task", "run", "--cpu", "1", "--memory", "1", "--", "/bin/endless"]);
    let is_held = |status: &StatusReply| status.nodes.iter().all(|node| node.held == 3);
    asked.agent.sees("a task", is_held).await;
    let (code, out, err) = asked.run(&["node", "drain", "alpha", "--timeout", "1s"]);
    assert!(code == 1 && out.contains("and 1 task"), "{out}");
    assert!(err.contains("not empty after 1 s") && err.contains("blixard node uncordon alpha"), "{err}");
    asked.ok(&["node", "uncordon", "alpha"]);
    assert_eq!(asked.ok(&["node", "drain", "alpha", "--no-wait"]), "alpha is being drained\n");
}
