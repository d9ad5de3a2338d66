"""What doesn't fit is placed nowhere: a small host stays empty, and `explain` tells why a large VM waits."""

hosts = [alpha, beta, gamma]

with subtest("the VM runs on the one host with room"):
    start_all()
    wait_for_cluster(hosts)
    assert wait_for_vm(hosts, "web-0").name == "gamma"

with subtest("the small hosts have nothing"):
    for host in [alpha, beta]:
        used = row(status(alpha)["nodes"], "name", host.name)["memoryMiB"]
        assert used["free"] == used["total"], used
        assert host.succeed("systemctl list-units --no-legend 'blixard-auto@*' 'blixard-vm@*'").strip() == ""

with subtest("what fits nowhere is pending, with a reason"):
    pending = wait_for_state(alpha, "huge-0", "pending")
    assert pending["node"] is None, pending
    assert "memory" in pending["reason"], pending

with subtest("explain names every host and what it has"):
    explained = alpha.succeed("blixard explain huge")
    for node in status(alpha)["nodes"]:
        assert node["name"] in explained, explained
        assert str(node["memoryMiB"]["free"]) in explained, explained

with subtest("status is degraded, with exit status 1"):
    code, shown = alpha.execute("blixard status")
    assert code == 1, shown
    assert "huge" in shown, shown

with subtest("once it no longer asks for more than there is, it is placed"):
    wanted = manifest(alpha)
    wanted["vms"]["huge"]["memoryMiB"] = wanted["vms"]["web"]["memoryMiB"]
    apply(alpha, wanted)
    assert wait_for_vm(hosts, "huge-0").name == "gamma"
    wait_for_health(alpha)
