"""A cluster of one host: it founds itself, runs the VM, and does so again after the plug was pulled."""

import re

hosts = [alpha]

with subtest("the host is a cluster by itself"):
    start_all()
    founded = wait_for_cluster(hosts)
    assert founded["leader"] == "alpha", founded
    assert founded["servers"] == 1, founded

with subtest("the VM runs and answers"):
    wait_for_vm(hosts, "web-0")

with subtest("status says so, with exit status 0"):
    wait_for_health(alpha)
    shown = alpha.succeed("blixard status")
    for word in ["alpha", "web-0", "running"]:
        assert word in shown, shown

with subtest("what the agent does in the background stands back"):
    stats = alpha.succeed("cat /proc/$(systemctl show --property MainPID --value blixard.service)/task/*/stat")
    # The 19th field of each is how nice the thread is; the second is its name, in brackets.
    nice = {name: int(fields.split()[16]) for name, fields in re.findall(r"\((.*?)\) (.*)", stats)}
    assert nice["store"] == 10 and nice["servers"] == 0, nice

with subtest("after a power cut the same cluster runs the same VM"):
    before = answer(alpha, "web-0")
    alpha.crash()
    alpha.start()
    assert wait_for_cluster(hosts)["id"] == founded["id"], f"founded anew: was {founded}"
    wait_for_vm(hosts, "web-0")
    assert answer(alpha, "web-0") != before, f"the guest survived the power cut: {before}"
