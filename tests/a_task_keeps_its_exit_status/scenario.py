"""A task runs once, on a host with room, and its exit status is known to the whole cluster and after a restart."""

hosts = [alpha, beta, gamma]

with subtest("it runs, whichever host is asked"):
    start_all()
    wait_for_cluster(hosts)
    for number, host in enumerate(hosts):
        wait_for_task(host, run_task(host, f"sh -c 'echo ran-{number}'"), "done")

with subtest("each ran exactly once in the cluster"):
    count = "journalctl --no-pager --output=cat --unit='blixard-task@*' | grep --count --line-regexp"
    for number in range(3):
        seen = wait_for(
            f"task {number} to have run",
            lambda: {host.name: int(host.execute(f"{count} ran-{number}")[1] or 0) for host in hosts},
            lambda seen: sum(seen.values()) > 0,
        )
        assert sum(seen.values()) == 1, seen

with subtest("a failed task's exit status is known on every host"):
    failed = run_task(alpha, "sh -c 'exit 37'")
    for host in hosts:
        assert "37" in wait_for_task(host, failed, "failed")

with subtest("also after all agents restarted"):
    for host in hosts:
        host.succeed("systemctl restart blixard.service")
    wait_for_cluster(hosts)
    for host in hosts:
        assert "37" in wait_for_task(host, failed, "failed")

with subtest("a task that fits nowhere isn't run"):
    alpha.execute("blixard task run --cpu 1000 --memory 32 -- touch /tmp/ran-anyway", timeout=MAX_WAIT)
    wait_for_task(alpha, run_task(alpha, "true"), "done")
    ran = "journalctl --no-pager --output=cat --unit='blixard-task@*' | grep --count '^Started'"
    assert sum(int(host.execute(ran)[1]) for host in hosts) == 5
