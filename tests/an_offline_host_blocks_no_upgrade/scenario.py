"""A host that is off keeps the feature level where it is, and nothing else; the level rises once a person says it is dead."""

hosts = [alpha, beta, gamma]
instances = ["web-0", "web-1", "web-2"]


def levels():
    return [view.get("featureLevel") for view in cluster_of(rest).values()]


def check_the_rest_goes_on():
    for host in rest:
        name = run_task(host, "true")
        for other in rest:
            wait_for_task(other, name, "done")
    assert {instance: process(where[instance], instance) for instance in before} == before


with subtest("three hosts with a VM each, and one of them goes off"):
    start_all()
    founded = wait_for_cluster(hosts)
    where = {instance: wait_for_vm(hosts, instance) for instance in instances}
    off = named(hosts, next(host.name for host in hosts if host.name != founded["leader"]))
    rest = [host for host in hosts if host is not off]
    [orphan] = [instance for instance, host in where.items() if host is off]
    before = {instance: process(host, instance) for instance, host in where.items() if host is not off}
    off.crash()
    wait_for(
        "its silence",
        lambda: row(status(rest[0])["nodes"], "name", off.name),
        lambda seen: seen.get("alive") is False,
    )

with subtest("the others are upgraded and go on at the level that the absent one understands"):
    for host in rest:
        upgrade(host)
        check_the_rest_goes_on()
        assert levels() == [1] * 2, levels()

with subtest("it is dead, a person says: the level rises, and what it ran starts elsewhere"):
    rest[0].wait_until_succeeds(f"blixard node remove {off.name} --dead", timeout=MAX_WAIT)
    wait_for("the next level", levels, lambda seen: seen == [2] * 2)
    wait_for_vm(rest, orphan)
    check_the_rest_goes_on()
