"""What parts share, after the scenarios' prelude."""

import shlex

servers = [alpha, beta, gamma]
IDLE = {"microvm-run": "#!/bin/sh\nexec sleep infinity\n", "microvm-shutdown": "#!/bin/sh\nkill $MAINPID\n"}


def idle_runners(host, count):
    """So many runners in that host's store that do nothing, so that no guest's boot is measured; the same on every host."""
    host.succeed("mkdir -p /tmp/idle-0/bin")
    for program, text in IDLE.items():
        host.succeed(f"printf %s {shlex.quote(text)} > /tmp/idle-0/bin/{program}; chmod 755 /tmp/idle-0/bin/{program}")
    last = count - 1
    host.succeed(f"for k in $(seq {last}); do cp -r /tmp/idle-0 /tmp/idle-$k; done")
    return host.succeed(f"nix-store --add $(seq --format=/tmp/idle-%.0f 0 {last})").split()


class Reloads:
    """How often PID 1 of these hosts has read its units anew since; by its own word, which is tried out first."""

    def __init__(self, hosts):
        self.hosts, self.before = hosts, 0
        before = self.count()
        for host in hosts:
            host.succeed("systemctl daemon-reload")
        self.before = self.count()
        assert self.before == before + len(hosts), f"{self.before} reloads are seen, after {before} and one of each host"

    def count(self):
        look = "journalctl --boot --output=cat _PID=1 | grep --count '^Reloading' || true"
        return sum(int(host.succeed(look)) for host in self.hosts) - self.before


def start_cluster():
    """All hosts, as one cluster."""
    start_all()
    wait_for_cluster(servers)
    wait_for("the workers", lambda: [node["name"] for node in status(alpha)["nodes"]], lambda seen: len(seen) == len(machines))
