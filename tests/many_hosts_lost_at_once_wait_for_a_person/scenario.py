"""More than a third of the hosts vanish at once: nothing is taken over before a person says so, or they are back."""

servers = [alpha, beta, gamma]
lost = [delta, epsilon]
hosts = [*servers, *lost]
instances = [f"web-{replica}" for replica in range(5)]


def lose_both():
    """What they ran."""
    wait_for_health(alpha)
    where = {instance: wait_for_vm(hosts, instance) for instance in instances}
    for host in lost:
        host.crash()
    wait_for(
        "takeover to be frozen",
        lambda: status(alpha),
        lambda seen: any("blixard cluster resume" in problem for problem in seen["problems"]),
    )
    return [instance for instance, host in where.items() if host in lost]


with subtest("five hosts with a replica each"):
    start_all()
    wait_for_cluster(servers)
    declare_anew(alpha)
    where = {instance: wait_for_vm(hosts, instance) for instance in instances}
    assert len(set(where.values())) == 5, where

with subtest("two are lost at once, and come back: their VMs run where they were"):
    orphans = lose_both()
    for host in lost:
        host.start()
    wait_for_health(alpha)
    assert len(orphans) == 2, orphans
    for instance in orphans:
        wait_for_vm(hosts, instance)

with subtest("they are lost once more, and a person says to go on"):
    for instance, host in zip(orphans, lost):
        if wait_for_vm(hosts, instance) is not host:
            alpha.succeed(f"blixard vm move {instance} --to {host.name}", timeout=MAX_WAIT)
    orphans = lose_both()
    assert not any(is_active(host, instance) for host in servers for instance in orphans)
    alpha.succeed("blixard cluster resume")
    for instance in orphans:
        wait_for_vm(servers, instance)
