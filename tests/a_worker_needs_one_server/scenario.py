"""A worker that reaches one server, whether that leads or not, keeps its lease, and its VM runs on."""

servers = [alpha, beta, gamma]
hosts = [*servers, delta]
# Of the profile `fast`: how long the cluster waits for a host that has no lease renewed.
WAIT = 9


with subtest("three servers, and a worker that runs an automatic VM"):
    for host in servers:
        host.start()
    wait_for_cluster(servers)
    delta.start()
    wait_for_cluster(hosts, servers=3)
    assert wait_for_vm(hosts, "web-0") is delta
    wait_for_health(delta)
    before = process(delta, "web-0")

for reached in servers:
    leads = "leads" if status(reached)["cluster"]["leader"] == reached.name else "doesn't lead"
    with subtest(f"delta reaches {reached.name} alone, which {leads}: it outlives the lease that it had"):
        network.partition([delta.name], [host.name for host in servers if host is not reached])
        begun = uptime(delta)
        wait_for("a host without a lease to be lost", lambda: uptime(delta), lambda now: now > begun + WAIT)
        assert process(delta, "web-0") == before
        network.heal()
        wait_for_health(delta)

with subtest("it was lost to nobody, and was told so"):
    assert observer.living("web-0") == [delta.name]
    told = delta.succeed("blixard events --node delta")
    assert "lost" not in told, told
