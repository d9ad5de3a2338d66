"""A declared VM runs on exactly one of three hosts, its replicas on different ones, and answers on an address of its own."""

hosts = [alpha, beta, gamma]

with subtest("each replica runs on exactly one host, and not on the same"):
    start_all()
    wait_for_cluster(hosts)
    places = {instance: wait_for_vm(hosts, instance) for instance in ["web-0", "web-1"]}
    where = places["web-0"]
    assert where is not places["web-1"], f"both run on {where.name}"

with subtest("every host reaches both"):
    for host in hosts:
        for instance in places:
            wait_for_answer(host, instance)

with subtest("it runs as its own user, in its slice and within its limits"):
    info = where.get_unit_info(unit(where, "web-0"))
    assert info["Slice"] == "blixard-fenced.slice", info["Slice"]
    assert int(info["MemoryMax"]) >= 96 * 2**20, info["MemoryMax"]
    user = where.succeed(f"stat --format=%U /proc/{info['MainPID']}").strip()
    assert user == "blixard-vm", user

with subtest("its runner is held by a GC root there, and nowhere else"):
    runner = manifest(where)["vms"]["web"]["runners"][0]
    assert where.succeed(f"readlink {gc_root('web-0')}").strip() == runner
    for host in hosts:
        if host is not where:
            host.fail(f"test -e {gc_root('web-0')}")

with subtest("nothing would start it at boot without the cluster"):
    assert info["UnitFileState"] in ("static", "disabled"), info["UnitFileState"]

with subtest("status is healthy on every host"):
    for host in hosts:
        wait_for_health(host)
        host.succeed("blixard status")
