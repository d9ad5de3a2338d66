"""Hosts are upgraded one by one, and one goes back in between: no VM notices, and the feature level rises with the last."""

hosts = [alpha, beta, gamma]
instances = ["web-0", "web-1", "web-2"]


def processes():
    return {instance: process(host, instance) for instance, host in where.items()}


def levels():
    return [view.get("featureLevel") for view in cluster_of(hosts).values()]


def check_all_goes_on(level):
    """Every host is asked for something, and sees it done; the VMs are the same runs as at first."""
    for host in hosts:
        name = run_task(host, "true")
        for other in hosts:
            wait_for_task(other, name, "done")
    assert wait_for_cluster(hosts)["id"] == founded["id"]
    wait_for_health(alpha)
    assert levels() == [level] * 3, levels()
    assert processes() == before


with subtest("three hosts with a VM each, at the first level"):
    start_all()
    founded = wait_for_cluster(hosts)
    where = {instance: wait_for_vm(hosts, instance) for instance in instances}
    before = processes()
    check_all_goes_on(1)

for host in [alpha, beta]:
    with subtest(f"{host.name} is upgraded, and the level is what all hosts understand"):
        upgrade(host)
        check_all_goes_on(1)

with subtest("beta goes back, and gamma is upgraded instead"):
    downgrade(beta)
    check_all_goes_on(1)
    upgrade(gamma)
    check_all_goes_on(1)

with subtest("the level rises with the last host that is upgraded"):
    upgrade(beta)
    wait_for("the next level", levels, lambda seen: seen == [2] * 3)
    check_all_goes_on(2)

with subtest("there is no way back now: the older agent says so and stops, and its VM runs on"):
    downgrade(beta)
    beta.wait_until_succeeds(
        "journalctl --unit blixard.service | grep 'the agent ends: .*the cluster is at feature level 2.*upgrade this one'",
        timeout=MAX_WAIT,
    )
    name = run_task(alpha, "true")
    for host in [alpha, gamma]:
        wait_for_task(host, name, "done")
    assert processes() == before

with subtest("upgraded again, it is a member as before"):
    upgrade(beta)
    check_all_goes_on(2)
