"""Delays what goes between a cable and the bridge, both ways: for kernels without `tc netem`.

    delay.py PORT TAP MILLISECONDS JITTER

Takes frames from the network interface PORT and gives them to TAP, which it makes, and the other way round. They keep
their order, and their virtio header, so that large segments and checksums that are left to hardware pass untouched. TAP
goes when this process does. Writes a line once it is there.
"""

import collections
import fcntl
import os
import random
import selectors
import socket
import struct
import sys
import time

ETH_P_ALL, SOL_PACKET = 3, 263
PACKET_ADD_MEMBERSHIP, PACKET_MR_PROMISC, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 1, 1, 15, 23
TUNSETIFF, TUNSETOFFLOAD, TUNSETVNETHDRSZ = 0x400454CA, 0x400454D0, 0x400454D8
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 2, 0x1000, 0x4000
TUN_F_CSUM_AND_SEGMENTS = 0x0F
VNET_HEADER_BYTES = 10
LARGEST_FRAME = 1 << 17
FRAMES_AT_ONCE = 64


def open_tap(name: str) -> int:
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
    fcntl.ioctl(tap, TUNSETVNETHDRSZ, struct.pack("i", VNET_HEADER_BYTES))
    fcntl.ioctl(tap, TUNSETOFFLOAD, TUN_F_CSUM_AND_SEGMENTS)
    return tap


def open_port(name: str) -> socket.socket:
    port = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    port.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    port.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    port.bind((name, ETH_P_ALL))
    promiscuous = struct.pack("iHH8x", socket.if_nametoindex(name), PACKET_MR_PROMISC, 0)
    port.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, promiscuous)
    port.setblocking(False)
    return port


class Direction:
    """Frames on their way from one to the other, oldest first, each with when it is due."""

    def __init__(self, source: int, target: int, delay: float, jitter: float) -> None:
        self.source, self.target, self.delay, self.jitter = source, target, delay, jitter
        self.under_way: collections.deque[tuple[float, bytes]] = collections.deque()

    def take(self) -> None:
        for _ in range(FRAMES_AT_ONCE):
            try:
                frame = os.read(self.source, LARGEST_FRAME)
            except OSError:  # nothing more, or the cable is out
                return
            due = time.monotonic() + self.delay + random.uniform(0, self.jitter)
            before = self.under_way[-1][0] if self.under_way else due
            self.under_way.append((max(due, before), frame))

    def give(self) -> None:
        while self.under_way and self.under_way[0][0] <= time.monotonic():
            try:
                os.write(self.target, self.under_way.popleft()[1])
            except OSError:  # a full queue, or no cable: lost, as on a wire
                pass


def relay(port_name: str, tap_name: str, delay: float, jitter: float) -> None:
    tap, port = open_tap(tap_name), open_port(port_name)
    print("ready", flush=True)
    directions = {
        source: Direction(source, target, delay, jitter)
        for source, target in ((tap, port.fileno()), (port.fileno(), tap))
    }
    ready = selectors.DefaultSelector()
    for source in directions:
        ready.register(source, selectors.EVENT_READ)
    while True:
        due = [direction.under_way[0][0] for direction in directions.values() if direction.under_way]
        for key, _ in ready.select(max(0.0, min(due) - time.monotonic()) if due else None):
            directions[key.fd].take()
        for direction in directions.values():
            direction.give()


if __name__ == "__main__":
    relay(sys.argv[1], sys.argv[2], float(sys.argv[3]) / 1e3, float(sys.argv[4]) / 1e3)
