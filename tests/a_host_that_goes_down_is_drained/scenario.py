"""A host that shuts down or reboots is emptied first, and used again once it has booted, unless a person has closed it."""

hosts = [alpha, beta, gamma]
instances = ["web-0", "web-1"]
DRAIN = "blixard-drain.service"


def node(host, name):
    return row(status(host)["nodes"], "name", name)


def wait_for_node(host, name, availability):
    wait_for(
        f"{name} to be up, empty and {availability}, with a lease",
        lambda: node(host, name),
        lambda seen: seen.get("alive")
        and (seen["availability"], seen["held"], seen["lease"]) == (availability, 0, "armed"),
    )


with subtest("three hosts with two replicas"):
    start_all()
    wait_for_cluster(hosts)
    where = {instance: wait_for_vm(hosts, instance) for instance in instances}
    [left, stays] = [where[instance] for instance in instances]
    [third] = [host for host in hosts if host not in (left, stays)]
    kept = process(stays, "web-1")

with subtest("that its unit is stopped or restarted moves nothing"):
    before = process(left, "web-0")
    left.succeed(f"systemctl restart {DRAIN}", f"systemctl stop {DRAIN}", f"systemctl start {DRAIN}")
    assert node(stays, left.name)["availability"] == "active"
    assert process(left, "web-0") == before

with subtest("a reboot moves what it runs, and leaves the other replica alone"):
    left.reboot()
    assert row(status(stays)["vms"], "instance", "web-0")["node"] == third.name
    wait_for_vm([stays, third], "web-0")
    assert process(stays, "web-1") == kept

with subtest("once it has booted it is used again"):
    wait_for_cluster(hosts)
    wait_for_node(stays, left.name, "active")
    stays.succeed(f"blixard vm move web-0 --to {left.name}", timeout=MAX_WAIT)
    assert wait_for_vm(hosts, "web-0") is left

with subtest("what a person has closed stays closed"):
    stays.succeed(f"blixard node cordon {left.name}")
    left.reboot()
    assert row(status(stays)["vms"], "instance", "web-0")["node"] == third.name
    wait_for_cluster(hosts)
    wait_for_node(stays, left.name, "draining")
    stays.succeed(f"blixard node uncordon {left.name}")

with subtest("without a quorum its VMs are stopped with it, and nobody waits for another host"):
    left.crash()
    third.crash()
    assert is_active(stays, "web-1")
    stays.shutdown()
    start_all()
    wait_for_cluster(hosts)
    for instance in instances:
        wait_for_vm(hosts, instance)
    wait_for_health(stays)
    assert node(stays, stays.name)["availability"] == "active"
