"""Restarting or killing the agent leaves the VM's process alone, and the new agent takes it as its own."""

hosts = [alpha, beta, gamma]

start_all()
wait_for_cluster(hosts)
where = wait_for_vm(hosts, "web-0")
running = process(where, "web-0")
restarts = wait_for_state(where, "web-0", "running")["restarts"]


def agent():
    return where.get_unit_property("blixard.service", "MainPID")


def wait_until_adopted():
    """The agent is back, knows the VM, and has got something else done since."""
    wait_for_cluster(hosts)
    wait_for_state(where, "web-0", "running")
    wait_for_task(where, run_task(where, "true"), "done")
    wait_for_health(where)


for how in ["systemctl restart blixard.service", "kill -9 $(systemctl show -P MainPID blixard.service)"]:
    with subtest(f"the VM outlives `{how}`"):
        before = agent()
        where.succeed(how)
        wait_for("a new agent", agent, lambda now: now not in ("0", before))
        wait_until_adopted()
        assert process(where, "web-0") == running
        assert wait_for_state(where, "web-0", "running")["restarts"] == restarts
        wait_for_answer(where, "web-0")

with subtest("stopping the agent stops no VM"):
    where.succeed("systemctl stop blixard.service")
    assert process(where, "web-0") == running
    wait_for_answer(where, "web-0")
    where.succeed("systemctl start blixard.service")
    wait_until_adopted()
    assert process(where, "web-0") == running

with subtest("the adopted VM is stopped when it leaves the manifest"):
    wanted = manifest(where)
    wanted["vms"] = {}
    apply(where, wanted)
    wait_for("web-0 to stop", lambda: is_active(where, "web-0"), lambda active: not active)
