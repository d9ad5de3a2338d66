"""Sees every microVM live and die, from outside of the hosts: no instance may live twice at once.

Each runner's hypervisor connects to a socket of this observer, of its instance and of the host that it is on, before its
guest does anything. Nobody writes to that connection. It lasts exactly as long as the hypervisor's process, whatever
becomes of systemd, the agent, the fence and the network: a paused one still has it, and the kernel ends it with a killed
one. What it can't see is a guest that a runner did not start.

All times are the machine's CLOCK_BOOTTIME when the observer noticed, which is some milliseconds late at most.
"""

import os
import selectors
import socket
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from host import Host

LIVES = "/opt/rig/lives"  # in every host: a socket per instance


def now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass
class Life:
    """One process of a hypervisor."""

    instance: str
    host: str
    begin: float
    end: float | None = None  # it lives

    def overlap(self, other: "Life") -> float:
        """For how many seconds both lived; below 0: for how many neither did in between."""
        ends = [life.end for life in (self, other) if life.end is not None]
        return min(ends, default=float("inf")) - max(self.begin, other.begin)


def overlaps(lives: list[Life]) -> list[tuple[Life, Life]]:
    """Every two lives of one instance that were at once, the earlier one first."""
    return [(earlier, later) for number, later in enumerate(lives) for earlier in lives[:number]
            if earlier.instance == later.instance and earlier.overlap(later) > 0]


class Observer:
    """What it has seen is in `lives`, in the order in which they began."""

    def __init__(self, hosts: Iterable[Host], instances: Iterable[str]) -> None:
        self.lives: list[Life] = []
        self._forgotten = 0
        self._began = now()
        self._events = selectors.DefaultSelector()
        names = sorted(instances)
        for host in hosts:
            sockets = host.directory / "lives"
            sockets.mkdir()
            for instance in names:
                self._listen(sockets / instance, instance, host.name)
            host.binds.append((sockets, LIVES))
        threading.Thread(target=self._observe, daemon=True).start()

    def _listen(self, at: Path, instance: str, host: str) -> None:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(at))
        at.chmod(0o666)  # the hypervisor's user is not root
        listener.listen()
        self._events.register(listener, selectors.EVENT_READ, (instance, host))

    def _observe(self) -> None:
        os.setpriority(os.PRIO_PROCESS, 0, -20)  # of this thread alone
        while True:
            # What ended comes first: what began only because of that is never taken for an overlap.
            for key, _ in sorted(self._events.select(), key=lambda event: not isinstance(event[0].data, Life)):
                connection = key.fileobj
                assert isinstance(connection, socket.socket)
                if not isinstance(key.data, Life):
                    life = Life(*key.data, begin=now())
                    self.lives.append(life)
                    self._events.register(connection.accept()[0], selectors.EVENT_READ, life)
                elif not connection.recv(1):
                    key.data.end = now()
                    self._events.unregister(connection)
                    connection.close()

    def living(self, instance: str) -> list[str]:
        """The hosts on which it lives now."""
        return [life.host for life in self.lives if life.instance == instance and life.end is None]

    def overlaps(self) -> list[tuple[Life, Life]]:
        return overlaps(self.lives[self._forgotten:])

    def forget(self) -> None:
        """What began until now did no harm, whatever overlapped: a scenario has made it so."""
        self._forgotten = len(self.lives)

    def check(self) -> None:
        """Fails if an instance lived twice at once."""
        twice = [f"  {earlier.instance}: {self._describe(earlier)}, and {self._describe(later)}"
                 for earlier, later in self.overlaps()]
        assert not twice, "\n".join(["an instance lived twice at once:", *twice])

    def _describe(self, life: Life) -> str:
        until = "now" if life.end is None else f"{life.end - self._began:.3f} s"
        return f"on {life.host} from {life.begin - self._began:.3f} s until {until}"
