"""Namespaces and cgroups of a rig's own, and the certainty that nothing outlives it.

    machine ── supervisor (waits; removes cgroup directories at the end)
                  └─ unshare: mount, net, pid, ipc, uts
                        └─ this script again, as PID 1: bridge, hosts, microVMs, the scenario

When the inner process ends, however it ends, the kernel ends every host, microVM, mount and interface with it. If the
supervisor is killed the inner process dies too, and only empty cgroup directories are left; the next rig sweeps them.
"""

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from cache import tell

TAG = "BLIXARD_RIG_TAG"
CGROUPS = "BLIXARD_RIG_CGROUPS"
PREFIX = "blixard-rig-"
UNIFIED = ""  # the name of the v2 tree among the hierarchies
_PR_SET_PDEATHSIG = 1


def is_isolated() -> bool:
    return TAG in os.environ


def cgroups() -> dict[str, Path]:
    """Hierarchy → this rig's directory in it. Only inside."""
    return {name: Path(path) for name, path in json.loads(os.environ[CGROUPS]).items()}


def isolate() -> None:
    """Run this script again inside; returns only there. Whatever needs the outside network comes before."""
    if is_isolated():
        return
    tag = f"{PREFIX}{os.getpid()}"
    homes = {name: path / tag for name, path in _parents().items()}
    if UNIFIED not in homes:
        sys.exit("rig: needs the unified cgroup hierarchy (to freeze and to kill a host); mount cgroup2 somewhere")
    for home in homes.values():
        _sweep(home.parent)
        home.mkdir()
    delegate(homes[UNIFIED].parent)
    delegate(homes[UNIFIED])
    libc = ctypes.CDLL(None)
    inner = subprocess.Popen(
        ["unshare", "--mount", "--net", "--pid", "--ipc", "--uts", "--fork", "--kill-child", "--mount-proc",
         sys.executable, *sys.argv],
        env={"BLIXARD_TEST_MAX_WAIT": "60", **os.environ, TAG: tag,
             CGROUPS: json.dumps({name: str(path) for name, path in homes.items()})},
        preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL), close_fds=False)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: inner.kill())
    while True:
        try:
            status = inner.wait()
            break
        except KeyboardInterrupt:  # the inner process got it as well, and tidies up
            continue
    for home in homes.values():
        remove_cgroup(home)
    sys.exit(status if status >= 0 else 128 - status)


def _parents() -> dict[str, Path]:
    """Hierarchy → the directory that this process may make its own cgroups in."""
    mounts: dict[str, Path] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, right = line.split(" - ")
        kind, _, options = right.split()[:3]
        if kind == "cgroup2":
            mounts[UNIFIED] = Path(left.split()[4])
        elif kind == "cgroup":
            mounts.update(dict.fromkeys(options.split(","), Path(left.split()[4])))
    parents = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        for name in names.split(","):
            if name in mounts and name != "cpuset":  # cpuset would want its own cpus and mems
                inside = path.strip("/")
                parents[name] = mounts[name] if inside.startswith("..") else mounts[name] / inside
    # Where everything is on v2, only the root may have both processes and children with controllers.
    if UNIFIED in parents and "memory" in (mounts[UNIFIED] / "cgroup.controllers").read_text().split():
        parents[UNIFIED] = mounts[UNIFIED]
    return parents


def delegate(cgroup: Path) -> None:
    """Let the children of a v2 cgroup have controllers, where there are any to have."""
    for controller in ("cpu", "memory", "pids"):
        try:
            (cgroup / "cgroup.subtree_control").write_text(f"+{controller}")
        except OSError:
            pass  # not on v2, or not ours to give: limits are accepted then, and not enforced


def remove_cgroup(top: Path, patience: float = 5.0) -> None:
    """Remove a cgroup and all below; a killed process takes a moment to be gone from it."""
    deadline = time.monotonic() + patience
    while top.is_dir():
        for directory, _, _ in os.walk(top, topdown=False):
            try:
                os.rmdir(directory)
            except OSError:
                pass
        if top.is_dir():
            if time.monotonic() > deadline:
                tell(f"rig: {top} is still in use")
                return
            time.sleep(0.02)


def _sweep(parent: Path) -> None:
    for left in parent.glob(f"{PREFIX}*"):
        pid = re.fullmatch(rf"{PREFIX}(\d+)", left.name)
        if pid and _has_ended(Path(f"/proc/{pid[1]}/stat")):
            remove_cgroup(left, 0)


def _has_ended(stat: Path) -> bool:
    """Whether a process is gone, or was killed and only waits to be noticed."""
    try:
        return stat.read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def find_host(name: str, rig: str = "*") -> int | None:
    """From the outside: the PID of a host's systemd, in the rig with that supervisor or in any."""
    for cgroup in _parents()[UNIFIED].glob(f"{PREFIX}{rig}/{name}/os"):
        for processes in cgroup.rglob("cgroup.procs"):
            for pid in processes.read_text().split():
                if _is_first_process(Path(f"/proc/{pid}/status")):
                    return int(pid)
    return None


def _is_first_process(status: Path) -> bool:
    """Whether a process is PID 1 where it is, and not here."""
    try:
        levels = re.search(r"^NSpid:(.*)$", status.read_text(), re.MULTILINE)
    except OSError:  # it has ended
        return False
    return bool(levels) and len(levels[1].split()) > 1 and levels[1].split()[-1] == "1"
