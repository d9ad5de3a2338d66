"""A host loses its disk: what it ran, which is manual, waits for a person's word, and the host that is made anew takes its place."""

hosts = [alpha, beta, gamma]
instances = ["web-0", "web-1", "web-2"]

with subtest("three hosts with a VM each"):
    start_all()
    founded = wait_for_cluster(hosts)
    where = {instance: wait_for_vm(hosts, instance) for instance in instances}
    assert len({host.name for host in where.values()}) == 3, where

with subtest("one is gone with its disk, and nothing that it ran starts elsewhere"):
    lost = named(hosts, next(host.name for host in hosts if host.name != founded["leader"]))
    others = [host for host in hosts if host is not lost]
    [orphan] = [instance for instance, host in where.items() if host is lost]
    kept = {instance: process(host, instance) for instance, host in where.items() if host is not lost}
    before = row(status(others[0])["nodes"], "name", lost.name)["id"]
    lost.succeed("rm -rf /var/lib/blixard/raft; sync")
    lost.crash()
    wait_for(
        "the lost host to be noticed",
        lambda: status(others[0]),
        lambda seen: row(seen["nodes"], "name", lost.name).get("alive") is False,
    )
    wait_for_state(others[0], orphan, "unknown")
    said = others[0].fail(f"blixard node remove {lost.name} 2>&1")
    assert orphan in said and "--dead" in said, said

with subtest("its name is not given to a blank host before"):
    lost.start()
    said = wait_for(
        "the blank host to say why it waits",
        lambda: status(lost).get("unreachable", ""),
        lambda said: f"blixard node replace {lost.name}" in said,
    )
    assert not any(is_active(lost, instance) for instance in instances), said

with subtest("at a person's word it is a new node of the same name"):
    others[0].wait_until_succeeds(f"blixard node replace {lost.name}", timeout=MAX_WAIT)
    assert wait_for_cluster(hosts)["id"] == founded["id"]
    seen = wait_for_health(lost)
    assert row(seen["nodes"], "name", lost.name)["id"] > max(before, 3), seen["nodes"]

with subtest("each VM runs once, and those of the other hosts were left alone"):
    for instance in instances:
        wait_for_vm(hosts, instance)
    for instance, earlier in kept.items():
        assert process(where[instance], instance) == earlier, instance
