"""A token that is damaged, of another cluster or expired lets nobody in, and a good one the first of two hosts that have it."""

hosts = [alpha, beta, gamma]


def token(host, ttl):
    return host.succeed(f"blixard token create --ttl {ttl}", timeout=MAX_WAIT).strip()


def give(host, given):
    host.succeed(f"echo {given} > /etc/blixard/token")


def wait_until_told(host, *words):
    """Until a host that is no member says why, in these words."""
    return wait_for(
        f"{host.name} to say {words}",
        lambda: status(host).get("unreachable", ""),
        lambda said: all(word in said for word in words),
    )


def members():
    return sorted(node["name"] for node in status(alpha)["nodes"])


with subtest("two clusters of a host each, and two hosts that have neither a secret nor a token"):
    alpha.skewable("blixard.service")
    start_all()
    clusters = [wait_for_cluster([host])["id"] for host in [alpha, delta]]
    assert clusters[0] != clusters[1], clusters
    for host in [beta, gamma]:
        wait_until_told(host, "/etc/blixard/token", "cluster.token_file")

with subtest("a token with an error in it, one of another cluster, and one that has expired are told apart"):
    good = token(alpha, "1h")
    give(beta, good[:40] + ("A" if good[40] != "A" else "B") + good[41:])
    wait_until_told(beta, "one with an error in it", "blixard token create")
    give(gamma, token(delta, "1h"))
    wait_until_told(gamma, *clusters, "use one of the cluster that is to be joined")
    old = token(alpha, "1m")
    alpha.skew(120)
    give(beta, old)
    wait_until_told(beta, "has expired", "blixard token create")
    assert members() == ["alpha"], members()

with subtest("two hosts with one token: one joins, and the other is told which"):
    for host in [beta, gamma]:
        host.succeed("systemctl stop blixard")
        give(host, good)
    for host in [beta, gamma]:
        host.succeed("systemctl start blixard --no-block")
    both = wait_for("one of them to be a member", members, lambda seen: len(seen) == 2)
    [joined] = [host for host in [beta, gamma] if host.name in both]
    [other] = [host for host in [beta, gamma] if host is not joined]
    wait_until_told(other, f"was used already, by {joined.name}", "each is good for once")

with subtest("with a token of its own the other joins, too, and a token is asked for no more"):
    give(other, token(joined, "1h"))
    wait_for("the other to be a member", members, lambda seen: seen == ["alpha", "beta", "gamma"])
    for host in [beta, gamma]:
        host.succeed("rm /etc/blixard/token", "systemctl restart blixard")
    for host in hosts:
        seen = wait_for_health(host)
        assert (seen["cluster"]["id"], len(seen["nodes"])) == (clusters[0], 3), seen
