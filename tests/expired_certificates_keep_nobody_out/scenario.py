"""Agents that were off until all certificates had expired come back by themselves, but for one that was removed."""

AGENT = "blixard.service"
DAY = 24 * 3600
REMOVED = "the agent ends: .*was removed from the cluster"

servers = [alpha, beta, gamma]
hosts = [*servers, delta]
instances = [f"web-{number}" for number in range(3)]


def expires(host):
    """When the certificate of the server that answers expires, in seconds; none where it isn't this host's."""
    seen = status(host)["cluster"]
    return seen["certificateExpires"] / 1000 if seen.get("answeredBy") == host.name else None


with subtest("four hosts with VMs, one of which has joined by a token"):
    for host in hosts:
        host.skewable(AGENT)
    start_all()
    founded = wait_for_cluster(servers)
    delta.succeed(f"echo {alpha.succeed('blixard token create').strip()} > /etc/blixard/token")
    wait_for("delta to be a member", lambda: len(status(alpha)["nodes"]), lambda seen: seen == 4)
    where = {instance: wait_for_vm(hosts, instance) for instance in instances}
    before = {instance: process(host, instance) for instance, host in where.items()}
    first = {host.name: expires(host) for host in servers}
    assert all(80 * DAY < first[host.name] - time.time() < 91 * DAY for host in servers), first

with subtest("all agents stop, and start again when all certificates have expired"):
    for host in hosts:
        host.succeed(f"systemctl stop {AGENT}")
        host.skew(100 * DAY)
    for host in hosts:
        host.succeed(f"systemctl start {AGENT} --no-block")
    assert wait_for_cluster(servers)["id"] == founded["id"]
    for host in hosts:
        wait_for_health(host)
        host.succeed(f"journalctl --boot --unit {AGENT} | grep 'this node shows another certificate'")
    for host in servers:
        renewed = wait_for("its certificate", lambda: expires(host), lambda seen: seen is not None)
        assert renewed > first[host.name] + 90 * DAY, (host.name, first, renewed)

with subtest("the VMs have not noticed"):
    assert {instance: process(host, instance) for instance, host in where.items()} == before

with subtest("one that was removed is told so, as often as it comes, though its certificate holds"):
    alpha.succeed("blixard node remove delta", timeout=MAX_WAIT)
    for times in [1, 2]:
        wait_for(
            "delta to say why it ends",
            lambda: int(delta.execute(f"journalctl --boot --unit {AGENT} | grep --count '{REMOVED}'")[1]),
            lambda said: said >= times,
        )
        delta.succeed(f"systemctl restart {AGENT} --no-block")
    for host in servers:
        seen = wait_for_health(host)
        assert {node["name"] for node in seen["nodes"]} == {"alpha", "beta", "gamma"}, seen["nodes"]
