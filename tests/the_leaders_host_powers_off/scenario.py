"""The leader's host powers off: the other two elect one of them and go on, and the host comes back into the cluster."""

hosts = [alpha, beta, gamma]

with subtest("three hosts with a leader"):
    start_all()
    founded = wait_for_cluster(hosts)
    where = {instance: wait_for_vm(hosts, instance) for instance in ["web-0", "web-1"]}
    leader = named(hosts, founded["leader"])
    others = [host for host in hosts if host is not leader]
    kept = {instance: process(host, instance) for instance, host in where.items() if host is not leader}

with subtest("the other two elect a leader"):
    leader.shutdown()
    after = wait_for(
        "the others to agree on a leader",
        lambda: cluster_of(others),
        lambda seen: len({view.get("leader") for view in seen.values()}) == 1
        and all(view.get("quorum") and view["leader"] not in (None, leader.name) for view in seen.values()),
    )
    assert {view["id"] for view in after.values()} == {founded["id"]}, after

with subtest("they still decide"):
    for host in others:
        wait_for_task(host, run_task(host, "true"), "done")

with subtest("VMs on the other two go on"):
    for instance, before in kept.items():
        wait_for_answer(others[0], instance)
        assert process(where[instance], instance) == before

with subtest("status says who is missing, with exit status 1"):
    seen = wait_for(
        "the missing host to be noticed",
        lambda: status(others[0]),
        lambda seen: row(seen["nodes"], "name", leader.name).get("alive") is False,
    )
    assert any(leader.name in problem for problem in seen["problems"]), seen["problems"]
    code, shown = others[0].execute("blixard status")
    assert code == 1, shown

with subtest("the host comes back, and everything runs"):
    leader.start()
    assert wait_for_cluster(hosts)["id"] == founded["id"]
    wait_for_health(leader)
    for instance in where:
        wait_for_vm(hosts, instance)
