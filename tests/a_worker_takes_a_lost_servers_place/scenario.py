"""A host that only runs VMs becomes a server when one is lost; its VMs don't notice, and the lost one is a worker then."""

servers = [alpha, beta, gamma]
hosts = [*servers, delta]
instances = ["web-0", "web-1"]


def roles(host):
    return {node["name"]: node["role"] for node in status(host)["nodes"]}


with subtest("three servers, and a worker that runs VMs and answers what it is asked"):
    for host in servers:
        host.start()
    wait_for_cluster(servers)
    delta.start()
    founded = wait_for_cluster(hosts, servers=3)
    for instance in instances:
        assert wait_for_vm(hosts, instance) is delta, instance
    assert wait_for_health(delta)["cluster"]["answeredBy"] != "delta"
    assert roles(delta)["delta"] == "worker", roles(delta)
    delta.fail("test -e /var/lib/blixard/raft/log")
    before = {instance: process(delta, instance) for instance in instances}

with subtest("a server is lost, and the worker takes its place"):
    lost = named(hosts, next(host.name for host in servers if host.name != founded["leader"]))
    rest = [host for host in hosts if host is not lost]
    lost.crash()
    since = time.monotonic()
    wait_for(
        "the worker to vote",
        lambda: roles(rest[0]),
        lambda seen: seen.get("delta") in ("leader", "follower") and seen.get(lost.name) == "worker",
    )
    print(f"a server's loss to its replacement: {time.monotonic() - since:.1f} s, of which 10 s are the setting")
    assert wait_for_cluster(rest, servers=3)["id"] == founded["id"]
    assert {instance: process(delta, instance) for instance in instances} == before

with subtest("the lost one comes back as a worker, and anything may be asked of it"):
    lost.start()
    wait_for(
        "the lost host to be a worker that answers",
        lambda: row(status(lost)["nodes"], "name", lost.name),
        lambda seen: seen.get("role") == "worker" and seen.get("alive"),
    )
    wait_for_health(lost)
    lost.fail("test -e /var/lib/blixard/raft/log")
    assert wait_for_cluster(hosts, servers=3)["id"] == founded["id"]
    assert {instance: process(delta, instance) for instance in instances} == before
