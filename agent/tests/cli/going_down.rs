//! What a host does before its system goes down.

use std::os::unix::fs::PermissionsExt as _;

use blixard::api::proto::StatusReply;

use super::ask::{Asked, row};
use super::{blixard, told, write};

/// The verb, where systemd says this of the system.
fn go_down(asked: &Asked, system: &str) -> (i32, String, String) {
    let dir = asked.host.dir.path();
    let systemctl =
        write(dir, "systemctl", format!("#!/bin/sh\n[ \"$*\" = is-system-running ] && echo {system}\nexit 1\n"));
    std::fs::set_permissions(systemctl, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = blixard();
    command.env("PATH", format!("{}:/usr/bin:/bin", dir.display())).args(["going-down", "--timeout", "1s", "--config"]);
    told(&command.arg(dir.join("config.toml")).output().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_goes_down_is_emptied_and_one_that_does_not_is_left_alone() {
    let asked = Asked::start().await;
    asked.ok(&["apply", &asked.manifest(&[("web", "")])]);
    asked.agent.sees("a VM", |status| status.instances.iter().all(|vm| vm.state == "running")).await;
    let (code, out, err) = go_down(&asked, "running");
    assert_eq!((code, &*out, &*err), (0, "this host isn't going down: what it runs runs on\n", ""));
    asked.agent.is_healthy().await;

    let (code, out, err) = go_down(&asked, "stopping");
    assert_eq!((code, &*err), (0, ""), "{out}");
    assert!(out.ends_with("alpha is empty\n"), "{out}");
    assert_eq!(row(&asked.ok(&["node", "ls"]), "alpha")[2], "rebooting");
    let (code, out, _) = asked.run(&["status"]);
    assert!(code == 1 && out.contains("node alpha has not booted since it was drained for that"), "{out}");
    assert!(asked.ok(&["explain", "web"]).contains("alpha: is drained until its host has booted"));

    let asked = asked.restart(|_| {}).await;
    assert_eq!(row(&asked.ok(&["node", "ls"]), "alpha")[2], "rebooting", "its agent alone has started again");
    let asked = asked.restart(|host| std::fs::remove_file(host.dir.path().join("run/boot.json")).unwrap()).await;
    asked.agent.is_healthy().await;

    asked.ok(&["task", "run", "--cpu", "1", "--memory", "1", "--", "/bin/endless"]);
    let is_held = |status: &StatusReply| status.nodes.iter().all(|node| node.held == 2);
    asked.agent.sees("a task", is_held).await;
    let (code, _, err) = go_down(&asked, "stopping");
    assert!(code == 1 && err.contains("alpha is not empty after 1 s"), "{err}");
}
