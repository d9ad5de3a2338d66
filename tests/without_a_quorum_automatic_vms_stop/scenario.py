"""The last host of three can't know whether it is cut off: it stops its automatic VM in time, and its manual one goes on."""

hosts = [alpha, beta, gamma]
instances = ["web-0", "web-1", "web-2"]

with subtest("three hosts with an automatic replica each, and a manual VM on one of them"):
    start_all()
    wait_for_cluster(hosts)
    where = {instance: wait_for_vm(hosts, instance) for instance in ["db-0", *instances]}
    left = where["db-0"]
    [automatic] = [instance for instance in instances if where[instance] is left]
    manual = process(left, "db-0")

with subtest("the other two lose their power"):
    for host in hosts:
        if host is not left:
            host.crash()
    wait_for(f"{automatic} to be stopped", lambda: is_active(left, automatic), lambda active: not active)
    assert process(left, "db-0") == manual

with subtest("they come back, and everything runs, the manual VM as before"):
    start_all()
    wait_for_cluster(hosts)
    for instance in where:
        wait_for_vm(hosts, instance)
    wait_for_health(left)
    assert process(left, "db-0") == manual
