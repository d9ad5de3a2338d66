"""All hosts are lost: a backup makes a new cluster, which starts nothing before the old hosts are said to be dead."""

hosts = [alpha, beta, gamma]
instances = ["web-0", "web-1", "web-2"]
SECRET = "--secret-file /etc/blixard/cluster-secret"

with subtest("three hosts with a VM each, and a backup that a follower makes while they go on"):
    start_all()
    founded = wait_for_cluster(hosts)
    for instance in instances:
        wait_for_vm(hosts, instance)
    follower = next(host for host in hosts if host.name != founded["leader"])
    said = follower.succeed("blixard backup /root/backup")
    assert "read back and whole" in said, said
    said = follower.fail("blixard backup /root/backup 2>&1")
    assert "is there already" in said, said
    backup = follower.succeed("base64 -w 0 /root/backup").strip()

with subtest("every host is lost with its disk"):
    for host in hosts:
        host.succeed("rm -rf /var/lib/blixard/raft; sync")
    for host in hosts:
        host.crash()

with subtest("a blank host waits alone, and refuses what isn't a whole backup"):
    alpha.start()
    alpha.wait_for_unit("blixard.service", timeout=MAX_WAIT)
    alpha.succeed(f"echo {backup} | base64 -d > /root/backup", "head -c 1000 /root/backup > /root/half")
    alpha.succeed("systemctl stop blixard")
    said = alpha.fail(f"blixard restore /root/half --replace {SECRET} 2>&1")
    assert "cut short" in said, said
    said = alpha.fail(f"blixard restore /root/backup {SECRET} 2>&1")
    assert "the name alpha is taken" in said and "--replace" in said, said

with subtest("the backup makes a cluster of it, and nothing is started"):
    alpha.succeed(f"blixard restore /root/backup --replace --confirm {founded['id'][:8]} {SECRET}")
    alpha.succeed("systemctl start blixard")
    seen = wait_for("a leader", lambda: status(alpha), lambda seen: seen["cluster"].get("quorum"))
    assert (seen["cluster"]["id"], seen["cluster"]["epoch"]) == (founded["id"], 2), seen["cluster"]
    named_all = [all(part in problem for part in ["restored", "beta", "gamma"]) for problem in seen["problems"]]
    assert any(named_all), seen["problems"]
    assert not any(is_active(alpha, instance) for instance in instances)

with subtest("the old hosts are dead at a person's word, and new ones take their places"):
    for host in [beta, gamma]:
        alpha.wait_until_succeeds(f"blixard node remove {host.name} --dead", timeout=MAX_WAIT)
        host.start()
    assert wait_for_cluster(hosts)["id"] == founded["id"]
    for instance in instances:
        wait_for_vm(hosts, instance)
    wait_for_health(gamma)
