"""A host loses its power: others run its automatic VMs, and its manual one once a person says that it is dead."""

hosts = [alpha, beta, gamma]
instances = ["web-0", "web-1", "web-2"]

with subtest("three hosts with an automatic replica each, and a manual VM on one of them"):
    start_all()
    wait_for_cluster(hosts)
    where = {instance: wait_for_vm(hosts, instance) for instance in ["db-0", *instances]}
    assert {where[instance] for instance in instances} == set(hosts), where
    lost = where["db-0"]
    others = [host for host in hosts if host is not lost]
    [moved] = [instance for instance in instances if where[instance] is lost]
    kept = {instance: process(where[instance], instance) for instance in instances if instance != moved}

with subtest("its automatic VM runs elsewhere, and nothing else has changed"):
    lost.crash()
    wait_for_vm(others, moved)
    assert kept == {instance: process(where[instance], instance) for instance in kept}

with subtest("its manual one runs nowhere, and status says what to do"):
    said = wait_for_state(others[0], "db-0", "unknown")["reason"]
    assert f"blixard node confirm-dead {lost.name}" in said, said
    assert not any(is_active(host, "db-0") for host in others)

with subtest("a person says that the host is dead"):
    others[0].succeed(f"blixard node confirm-dead {lost.name}", timeout=MAX_WAIT)
    wait_for_vm(others, "db-0")

with subtest("the host comes back, and starts nothing that is not its own any more"):
    lost.start()
    wait_for_cluster(hosts)
    wait_for_health(lost)
    for instance in where:
        wait_for_vm(hosts, instance)
    assert not any(is_active(lost, instance) for instance in where)
    assert kept == {instance: process(where[instance], instance) for instance in kept}

with subtest("the host that leads loses its power: what it ran runs elsewhere, too, once another one leads"):
    leads = named(hosts, wait_for_cluster(hosts)["leader"])
    followers = [host for host in hosts if host is not leads]
    ran = [instance for instance in instances if wait_for_vm(hosts, instance) is leads]
    assert ran
    leads.crash()
    for instance in ran:
        wait_for_vm(followers, instance)
