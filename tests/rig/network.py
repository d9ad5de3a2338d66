"""The test network: one private bridge, a cable to each host, and rules that cut hosts off from each other.

Numbered as the NixOS test driver numbers its first VLAN: hosts in alphabetical order, 192.168.1.N, MAC
52:54:00:12:01:N. In the host the cable is `eth1`, a port of `br0`, so that guests' taps can join it.
"""

import itertools
import subprocess
import sys
from pathlib import Path

BRIDGE = "lan"
PREFIX = "192.168.1."
RIG_NUMBER = 254
DELAY = Path(__file__).resolve().parent / "delay.py"
DELAYED = "~"  # behind a host's name: its port at the bridge while its frames are delayed


def run(*argv: str, text: str = "") -> str:
    done = subprocess.run(argv, input=text, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: {done.stdout}{text}")
    return done.stdout


class Network:
    """The bridge and the cables. A cable's end at the bridge has its host's name."""

    def __init__(self) -> None:
        self._delays: dict[str, subprocess.Popen[bytes]] = {}
        run("ip", "-batch", "-", text=f"""
            link set lo up
            link add {BRIDGE} type bridge forward_delay 0 mcast_snooping 0
            link set {BRIDGE} up
        """)
        run("nft", "-f", "-", text="""
            table bridge rig {
                set cut { type ifname . ifname; }
                chain forward { type filter hook forward priority 0; iifname . oifname @cut counter drop; }
            }
        """)

    def plug(self, host: str, number: int) -> None:
        """Make the host's network namespace, with its end of the cable in br0."""
        mac = f"52:54:00:12:01:{number:02x}"
        run("ip", "netns", "add", host)
        run("ip", "-batch", "-", text=f"""
            link add {host} address 02:00:00:00:00:{number:02x} type veth peer name eth1 address {mac} netns {host}
            link set {host} master {BRIDGE} up
        """)
        # A bridge without an address of its own takes the lowest of its ports', and so another with each tap.
        run("ip", "-n", host, "-batch", "-", text=f"""
            link set lo up
            link add br0 address {mac} type bridge forward_delay 0 mcast_snooping 0
            link set eth1 master br0 up
            link set br0 up
            addr add {PREFIX}{number}/24 dev br0
        """)

    def attach_rig(self) -> None:
        """Give the rig itself an address on the network, for clients; no cut is between it and the hosts."""
        run("ip", "-batch", "-", text=f"""
            link set {BRIDGE} address 02:00:00:00:01:{RIG_NUMBER:02x}
            addr add {PREFIX}{RIG_NUMBER}/24 dev {BRIDGE}
        """)

    def unplug(self, host: str) -> None:
        """Remove cable and namespace, as far as they are there."""
        self._end_delay(host)
        subprocess.run(["ip", "link", "del", host], stderr=subprocess.DEVNULL, check=False)
        subprocess.run(["ip", "netns", "del", host], stderr=subprocess.DEVNULL, check=False)

    def carrier(self, host: str, present: bool) -> None:
        """Pull the cable out, or put it back: the host sees eth1 lose its carrier."""
        run("ip", "link", "set", host, "up" if present else "down")

    def cut(self, sources: list[str], targets: list[str]) -> None:
        """Drop, silently and one way, what any of the sources sends to any of the targets."""
        pairs = ", ".join(
            f'"{source}{one}" . "{target}{other}"'
            for source, target in itertools.product(sources, targets)
            for one, other in itertools.product(["", DELAYED], repeat=2)
        )
        run("nft", f"add element bridge rig cut {{ {pairs} }}")

    def partition(self, *groups: list[str]) -> None:
        """Cut every group off from every other, both ways."""
        for one, other in itertools.permutations(groups, 2):
            self.cut(one, other)

    def heal(self) -> None:
        """Undo every cut."""
        run("nft", "flush set bridge rig cut")

    def delay(self, host: str, delay_ms: float, jitter_ms: float) -> None:
        """Delay what the host sends and what it gets, each by so much and up to the jitter more."""
        port = f"{host}{DELAYED}"
        relay = subprocess.Popen([sys.executable, DELAY, host, port, str(delay_ms), str(jitter_ms)], stdout=subprocess.PIPE)
        self._delays[host] = relay
        assert relay.stdout and relay.stdout.readline() == b"ready\n", f"nothing delays {host}"
        run("ip", "-batch", "-", text=f"link set {host} nomaster\nlink set {port} master {BRIDGE} up\n")

    def undelay(self, host: str) -> None:
        if self._end_delay(host):
            run("ip", "link", "set", host, "master", BRIDGE)

    def _end_delay(self, host: str) -> bool:
        relay = self._delays.pop(host, None)
        if relay:
            relay.kill()
            relay.communicate()
        return relay is not None
