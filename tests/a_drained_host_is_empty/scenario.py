"""A host is emptied before somebody works on it, and nothing comes back before it is used again."""

hosts = [alpha, beta, gamma]
instances = ["web-0", "web-1", "web-2"]

with subtest("three hosts with a replica each"):
    start_all()
    wait_for_cluster(hosts)
    where = {instance: wait_for_vm(hosts, instance) for instance in instances}
    assert len({host.name for host in where.values()}) == 3, where
    emptied = where["web-0"]
    [first, other] = [host for host in hosts if host is not emptied]
    kept = {instance: process(where[instance], instance) for instance in ["web-1", "web-2"]}

with subtest("one is drained, and the others' replicas never notice"):
    said = first.succeed(f"blixard node drain {emptied.name}", timeout=MAX_WAIT)
    assert said.endswith(f"{emptied.name} is empty\n"), said
    assert not any(is_active(emptied, instance) for instance in instances)
    assert wait_for_vm(hosts, "web-0") is not emptied
    assert kept == {instance: process(where[instance], instance) for instance in kept}

with subtest("it is powered off and on, and nothing is placed on it"):
    epoch = row(status(first)["nodes"], "name", emptied.name)["epoch"]
    emptied.shutdown()
    emptied.start()
    wait_for_cluster(hosts)
    wait_for(
        "it to answer again, with a lease of this boot",
        lambda: row(status(first)["nodes"], "name", emptied.name),
        lambda node: node["alive"]
        and (node["availability"], node["held"]) == ("draining", 0)
        and node["epoch"] > epoch,
    )
    said = first.fail(f"blixard vm move web-1 --to {emptied.name} 2>&1")
    assert f"blixard node uncordon {emptied.name}" in said, said

with subtest("it is used again, and takes what a person moves there"):
    first.succeed(f"blixard node uncordon {emptied.name}")
    said = first.succeed(f"blixard vm move web-0 --to {emptied.name}", timeout=MAX_WAIT)
    assert said.endswith(f"web-0 runs on {emptied.name}\n"), said
    assert wait_for_vm(hosts, "web-0") is emptied
    wait_for_health(other)
