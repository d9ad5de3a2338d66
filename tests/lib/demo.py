"""Run by `nix run .#demo`: two replicas of a VM on three hosts, and the plug pulled on the host that leads."""

hosts = [alpha, beta, gamma]


def say(text):
    print(f"\n==> {text}", flush=True)


say("Three hosts boot, and agree on a leader")
start_all()
leader = named(hosts, wait_for_cluster(hosts)["leader"])

say("The VM web is declared with two replicas; both are to answer HTTP")
for instance in ["web-0", "web-1"]:
    wait_for_vm(hosts, instance)
    print(f"http://{address(instance)}/: {answer(alpha, instance)}", end="", flush=True)
print(alpha.execute("blixard status")[1])

say(f"The plug of {leader.name} is pulled, which leads the cluster")
leader.crash()

others = [host for host in hosts if host is not leader]
say(f"What {others[0].name} says of it")
wait_for(
    "another leader",
    lambda: cluster_of(others),
    lambda seen: all(view.get("quorum") and view["leader"] not in (None, leader.name) for view in seen.values()),
)
print(others[0].execute("blixard status")[1])

say(f"Once the lease of {leader.name} is over for sure, another host runs what it ran")
for instance in ["web-0", "web-1"]:
    wait_for_vm(others, instance)
    print(f"http://{address(instance)}/: {answer(others[0], instance)}", end="", flush=True)
print(others[0].execute("blixard status")[1])
