"""Three blank hosts become one cluster, say the same of it, and go on when the leader's agent is stopped."""

hosts = [alpha, beta, gamma]


def workers(host):
    return [
        (node["name"], node["role"], node["alive"], node["cpus"]["total"], node["memoryMiB"]["total"])
        for node in sorted(status(host)["nodes"], key=lambda node: node["name"])
    ]


with subtest("they elect a leader"):
    start_all()
    founded = wait_for_cluster(hosts)
    wait_for(
        "all three to be servers",
        lambda: cluster_of(hosts),
        lambda seen: all(view.get("servers") == 3 for view in seen.values()),
    )

with subtest("every host knows every host, as a server and as a worker"):
    seen = wait_for(
        "three live workers on each host",
        lambda: {host.name: workers(host) for host in hosts},
        lambda seen: all(len(rows) == 3 and rows == seen["alpha"] and all(row[2] for row in rows) for rows in seen.values()),
    )
    assert [row[0] for row in seen["alpha"]] == ["alpha", "beta", "gamma"], seen
    assert sorted(row[1] for row in seen["alpha"]) == ["follower", "follower", "leader"], seen
    assert all(row[3] > 0 and row[4] > 0 for row in seen["alpha"]), seen

with subtest("each host answers a proposal, and what one is told, all apply"):
    for host in hosts:
        name = run_task(host, "true")
        for other in hosts:
            wait_for_task(other, name, "done")
    wait_until_all_applied(hosts)

with subtest("the leader's agent stops, and another leads the same cluster"):
    leader = named(hosts, wait_for_cluster(hosts)["leader"])
    others = [host for host in hosts if host is not leader]
    leader.succeed("systemctl stop blixard.service")
    after = wait_for(
        "another leader",
        lambda: cluster_of(others),
        lambda seen: all(view.get("leader") not in (None, leader.name) for view in seen.values()),
    )
    assert {view["id"] for view in after.values()} == {founded["id"]}, after
    leader.succeed("systemctl start blixard.service")
    assert wait_for_cluster(hosts)["id"] == founded["id"]
