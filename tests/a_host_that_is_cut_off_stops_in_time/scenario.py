"""A host that others don't hear, or that doesn't hear them, stops its automatic VMs before they run elsewhere; a manual one goes on."""

hosts = [alpha, beta, gamma]
others = [alpha, beta]
names = [host.name for host in others]

CUTS = {
    "hears nobody and is not heard": lambda: network.partition([gamma.name], names),
    "hears nobody": lambda: network.cut(names, [gamma.name]),
    "is not heard": lambda: network.cut([gamma.name], names),
}

with subtest("three hosts, and the manual VM on gamma"):
    start_all()
    wait_for_cluster(hosts)
    assert wait_for_vm(hosts, "db-0") is gamma
    manual = process(gamma, "db-0")

for what, cut in CUTS.items():
    with subtest(f"gamma {what}: its automatic VM runs elsewhere, and its manual one there still"):
        wait_for_health(alpha)
        if observer.living("web-0") != [gamma.name]:
            alpha.succeed("blixard vm move web-0 --to gamma", timeout=MAX_WAIT)
            wait_for_vm(hosts, "web-0")
        cut()
        wait_for("web-0 to live elsewhere", lambda: observer.living("web-0"), lambda seen: seen and gamma.name not in seen)
        wait_for_vm(others, "web-0")
        assert process(gamma, "db-0") == manual
        network.heal()
        wait_for_cluster(hosts)
        wait_for_health(gamma)
        assert process(gamma, "db-0") == manual
