"""An agent that dies for a moment leaves its VMs alone; one that is stopped, or can't start any more, loses them in time."""

AGENT = "blixard.service"
DROP_IN = "/run/systemd/system/blixard.service.d"

hosts = [alpha, beta, gamma]
instances = ["web-0", "web-1", "web-2"]


def stop_process(host):
    host.succeed(f"systemctl kill --kill-whom=main --signal=STOP {AGENT}")


def take_program_away(host):
    host.succeed(
        f"mkdir -p {DROP_IN}; printf '[Service]\\nExecStart=\\nExecStart=/gone\\n' > {DROP_IN}/gone.conf; systemctl daemon-reload",
        f"systemctl kill --kill-whom=main --signal=KILL {AGENT}",
    )


def bring_program_back(host):
    host.succeed(f"rm {DROP_IN}/gone.conf; systemctl daemon-reload; systemctl restart {AGENT}")


with subtest("three hosts with a replica each"):
    start_all()
    wait_for_cluster(hosts)
    where = {instance: wait_for_vm(hosts, instance) for instance in instances}
    assert len(set(where.values())) == 3, where

with subtest("agents that are killed, and started again, leave every VM alone"):
    kept = {instance: process(host, instance) for instance, host in where.items()}
    for host in hosts:
        host.succeed(f"systemctl kill --kill-whom=main --signal=KILL {AGENT}")
    wait_for_cluster(hosts)
    wait_for_health(alpha)
    assert kept == {instance: process(host, instance) for instance, host in where.items()}

for instance, break_it, mend_it in [
    # systemd's watchdog starts it again by itself.
    ("web-0", stop_process, lambda host: None),
    ("web-1", take_program_away, bring_program_back),
]:
    host = where[instance]
    others = [other for other in hosts if other is not host]
    with subtest(f"{break_it.__name__}: {instance} is stopped there, and runs elsewhere"):
        break_it(host)
        wait_for(f"{instance} to be stopped on {host.name}", lambda: is_active(host, instance), lambda active: not active)
        wait_for_vm(others, instance)
        mend_it(host)
        wait_for_cluster(hosts)
        wait_for_health(host)
        assert wait_for_vm(hosts, instance) is not host, "what runs is left alone"
