"""Three hosts are rebooted in turn, as hosts/README.md says, while a client sees all replicas but one answer all the time."""

import threading

INTERVAL = 0.2
# The first SYN is repeated after a second, and once more after this: who misses both was silent from the one to the other.
REPEATED, MAX_ANSWER = 1, 2

hosts = [alpha, beta, gamma]
instances = ["web-0", "web-1", "web-2"]
unanswered = {instance: [] for instance in instances}  # (from, until)
over = threading.Event()


def ask_again_and_again(instance):
    while not over.wait(INTERVAL):
        asked = time.monotonic()
        if not http_get(instance, MAX_ANSWER):
            unanswered[instance].append((asked, asked + REPEATED))


def unanswered_at_once():
    """Of two replicas each, when both were asked and neither answered."""
    return [
        (one, other, from_one, from_other)
        for number, one in enumerate(instances)
        for other in instances[:number]
        for from_one in unanswered[one]
        for from_other in unanswered[other]
        if max(from_one[0], from_other[0]) < min(from_one[1], from_other[1])
    ]


with subtest("three hosts with a replica each, and a client"):
    network.attach_rig()
    start_all()
    wait_for_cluster(hosts)
    assert len({wait_for_vm(hosts, instance).name for instance in instances}) == 3
    clients = [threading.Thread(target=ask_again_and_again, args=(instance,), daemon=True) for instance in instances]
    for client in clients:
        client.start()

for host in hosts:
    with subtest(f"{host.name} is rebooted once all is well"):
        for instance in instances:  # a guest that doesn't say so may be booting still, while its VM runs
            wait_for_vm(hosts, instance)
        host.succeed(f"blixard node drain {host.name} --until-boot", timeout=MAX_WAIT)
        host.reboot()
        wait_for_cluster(hosts)
        wait_for_health(host)

with subtest("no two replicas were away at once, and the client noticed that they moved"):
    over.set()
    for client in clients:
        client.join()
    assert unanswered_at_once() == [], unanswered_at_once()
    assert any(unanswered.values()), "nothing ever moved"
    for host in hosts:
        seen = row(status(alpha)["nodes"], "name", host.name)
        assert seen["availability"] == "active", seen
