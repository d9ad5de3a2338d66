"""Two of three servers are lost: the third makes a new cluster of what it has, and nothing ever runs twice."""

hosts = [alpha, beta, gamma]
instances = ["web-0", "web-1", "web-2"]
SECRET = "--secret-file /etc/blixard/cluster-secret"

with subtest("three hosts with a VM each"):
    start_all()
    founded = wait_for_cluster(hosts)
    where = {instance: wait_for_vm(hosts, instance) for instance in instances}
    assert len({host.name for host in where.values()}) == 3, where
    of = {host.name: instance for instance, host in where.items()}
    before = {host.name: process(host, instance) for instance, host in where.items()}

with subtest("one is lost with its disk, and one can't be reached: the third says who, and the way out"):
    alpha.succeed("rm -rf /var/lib/blixard/raft; sync")
    alpha.crash()
    beta.block()
    wait_for(
        "the way out",
        lambda: status(gamma)["problems"],
        lambda seen: any(
            all(part in problem for part in ["gamma answers", "alpha (", "beta (", "blixard cluster recover"])
            for problem in seen
        ),
    )
    said = gamma.fail("blixard cluster recover --confirm 00000000 " + SECRET + " 2>&1")
    assert "stop that one first" in said, said

with subtest("the third is a cluster alone, and its VM runs on"):
    gamma.succeed("systemctl stop blixard")
    said = gamma.fail("blixard cluster recover --confirm 00000000 " + SECRET + " 2>&1")
    assert "alpha at" in said and "beta at" in said and "nothing was changed" in said, said
    gamma.succeed(f"blixard cluster recover --confirm {founded['id'][:8]} {SECRET}")
    gamma.succeed("systemctl start blixard")
    seen = wait_for(
        "a leader", lambda: status(gamma)["cluster"], lambda seen: seen.get("quorum") and seen.get("leader") == "gamma"
    )
    assert (seen["id"], seen["epoch"], seen["renewal"]) == (founded["id"], 2, "recovered"), seen
    assert process(gamma, of["gamma"]) == before["gamma"]

with subtest("the other VMs and a new task wait until it is known what the others run"):
    task_name = run_task(gamma, "true")
    wait_for_task(gamma, task_name, "pending")
    rows = {vm["instance"]: vm for vm in status(gamma)["vms"]}
    assert all(rows[of[name]]["state"] == "unknown" for name in ["alpha", "beta"]), rows
    assert [instance for instance in instances if is_active(gamma, instance)] == [of["gamma"]]

with subtest("at a person's word one is dead, and the other is refused and goes on running its VM"):
    gamma.wait_until_succeeds("blixard node remove alpha --dead", timeout=MAX_WAIT)
    beta.unblock()
    wait_for(
        "the old member to say that it has to rejoin",
        lambda: status(beta)["problems"],
        lambda seen: any("blixard cluster rejoin" in problem for problem in seen),
    )
    assert process(beta, of["beta"]) == before["beta"]
    wait_for_task(gamma, task_name, "pending")
    assert [instance for instance in instances if is_active(gamma, instance)] == [of["gamma"]]

with subtest("it rejoins as the node that it was, its VM runs on, and what waited starts"):
    beta.succeed("systemctl stop blixard", "blixard cluster rejoin", "systemctl start blixard")
    wait_for_cluster([beta, gamma], servers=1)
    wait_for_health(beta)
    wait_for_task(gamma, task_name, "done")
    for instance in instances:
        wait_for_vm([beta, gamma], instance)
    for host in [beta, gamma]:
        assert process(host, of[host.name]) == before[host.name], host.name
    beta.succeed("test -e /var/lib/blixard/raft.epoch-1/state.redb")
