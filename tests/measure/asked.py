"""How long a VM takes from when the cluster is asked for it, beside a put to three members of etcd and a start of the same unit."""

import shutil

ROUNDS = int(os.environ.get("BLIXARD_ROUNDS", "3"))
STARTS = 20
INSTANCE = "idle-0"
ETCD = shutil.which("etcd")
assert ETCD, "there is no etcd in the PATH to measure beside: it is in Debian's package etcd-server"


def url(host, port):
    return f"http://{host.name}:{port}"


def start_etcd():
    """A cluster of its own; where its leader is asked."""
    peers = ",".join(f"{host.name}={url(host, 2380)}" for host in servers)
    for host in servers:
        client, peer = url(host, 2379), url(host, 2380)
        address = host.succeed(f"getent hosts {host.name}").split()[0]
        host.succeed(
            "rm -rf /var/lib/etcd",
            "systemd-run --quiet --collect --unit=etcd etcd --data-dir=/var/lib/etcd"
            f" --name={host.name} --initial-cluster={peers} --advertise-client-urls={client} --initial-advertise-peer-urls={peer}"
            f" --listen-client-urls=http://{address}:2379 --listen-peer-urls=http://{address}:2380",
        )
    for host in servers:
        host.wait_until_succeeds(f"curl --silent --fail {url(host, 2379)}/health", timeout=MAX_WAIT)
    asked = {host: host.succeed(f"curl --silent --data {{}} {url(host, 2379)}/v3/maintenance/status") for host in servers}
    members = {host: json.loads(status) for host, status in asked.items()}
    return next(url(host, 2379) for host, member in members.items() if member["leader"] == member["header"]["member_id"])


def ask_start(*arguments):
    took = alpha.succeed(" ".join(["ask-start", *arguments]), timeout=MAX_WAIT)
    return [float(ms) for ms in took.split()]


for host in servers:
    host.start()
wait_for_cluster(servers)
apply(alpha, manifest(alpha) | {"vms": {}})
wait_for("every VM to be gone", lambda: status(alpha)["vms"], lambda seen: not seen)
for host in [beta, gamma]:
    alpha.succeed(f"blixard node cordon {host.name}")
for host in servers:
    host.copy_from_host(ETCD, "/usr/local/bin/etcd")
alpha.copy_from_host(str(example("ask_start")), "/usr/local/bin/ask-start")
[runner] = idle_runners(alpha, 1)
alpha.succeed(f"blixard vm create idle --runner {runner} --vcpus 1 --memory 16 --memory-overhead 16 --no-kvm --failover manual")
time_limit(60 + 120 * ROUNDS)
sides = {"blixard": [], "etcd": []}
for _ in range(ROUNDS):
    if wait_for_cluster(servers)["leader"] != alpha.name:
        alpha.succeed(f"blixard cluster transfer-leader {alpha.name}")
    wait_for_state(alpha, INSTANCE, "running")
    sides["blixard"].append(ask_start("blixard", INSTANCE, str(STARTS)))
    # Its unit stays, and the file without which it couldn't be started.
    for host in servers:
        host.succeed("systemctl stop blixard.service")
    sides["etcd"].append(ask_start("etcd", INSTANCE, str(STARTS), start_etcd()))
    for host in servers:
        host.succeed("systemctl stop etcd.service", "systemctl start --no-block blixard.service")
report.ratio("from being asked for until the unit is active", sides, gate=1.0, goal=0.55)
