"""A wall clock of its own for one unit of a host, by a library that is loaded before all others."""

import struct
import subprocess
from pathlib import Path

from cache import digest, obtain
from host import Host
from image import put

SOURCE = Path(__file__).resolve().parent / "clock.c"
LIBRARY = "/opt/rig/clock.so"
# On the host's disk: it is there before the unit starts, also after a reboot.
OFFSET = "/var/lib/rig-clock"


def library() -> Path:
    """Compiled once."""

    def compile_into(into: Path) -> None:
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", into / "clock.so", SOURCE], check=True)

    return obtain("clock", digest(SOURCE.read_text()), compile_into) / "clock.so"


def give_own_clock(host: Host, unit: str) -> None:
    """From the host's next boot on."""
    host.binds.append((library(), LIBRARY))
    drop_in = f"[Service]\nEnvironment=LD_PRELOAD={LIBRARY} RIG_CLOCK={OFFSET}\n"
    put(host.root / f"etc/systemd/system/{unit}.d/clock.conf", drop_in)
    set_clock(host, 0)


def set_clock(host: Host, seconds: float) -> None:
    """How far its clock is ahead: at once, also while the unit runs."""
    offset = host.root / OFFSET.lstrip("/")
    with open(offset, "r+b" if offset.exists() else "wb") as file:
        file.write(struct.pack("q", int(seconds * 1e9)))
