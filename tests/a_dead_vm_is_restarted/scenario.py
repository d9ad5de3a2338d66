"""A VM whose hypervisor is killed comes back if its policy says so, and stays down, with a reason, if it says not."""

hosts = [alpha]


def kill(instance):
    alpha.succeed(f"systemctl kill --signal=KILL --kill-who=main {unit(alpha, instance)}")


with subtest("two VMs run, one to be restarted always, one never"):
    start_all()
    wait_for_cluster(hosts)
    policies = {name: vm.get("restart", "always") for name, vm in manifest(alpha)["vms"].items()}
    assert policies == {"web": "always", "db": "never"}, policies
    for instance in ["web-0", "db-0"]:
        wait_for_vm(hosts, instance)
    first = answer(alpha, "web-0")
    untouched = process(alpha, "db-0")

with subtest("the one that is always restarted comes back"):
    kill("web-0")
    wait_for("a guest that booted anew", lambda: answer(alpha, "web-0"), lambda text: "web-0" in text and text != first)
    wait_for_state(alpha, "web-0", "running")
    assert process(alpha, "db-0") == untouched

with subtest("its restart is counted"):
    wait_for(
        "one restart",
        lambda: row(status(alpha)["vms"], "instance", "web-0").get("restarts"),
        lambda restarts: restarts == 1,
    )

with subtest("the one that is never restarted has failed, and status says why"):
    kill("db-0")
    failed = wait_for_state(alpha, "db-0", "failed")
    assert failed["reason"], failed
    assert not is_active(alpha, "db-0")
    code, shown = alpha.execute("blixard status")
    assert code == 1, shown
