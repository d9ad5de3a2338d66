"""Builds a rig and runs a scenario in it, with the names that the NixOS test driver gives a script."""

import contextlib
import os
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cache import CACHE, tell
from host import RUN
from image import image
from install import MEASURED, TESTS, downgrade, example, hosts, install, instances, upgrade
from isolation import cgroups
from journal import save_journal
from machine import Failure, Machine
from network import Network, run
from observer import Observer
from report import Report, quantile
from store import store
from takeover import BY_HAND, Takeover, boot_by_hand, http_get

SCENARIO_TIMEOUT = 240
PRELUDE = TESTS / "prelude.py"


def prepare() -> None:
    """Download and build what a rig is made of. Outside, since there is no network inside."""
    store(instances())


class Rig:
    """The hosts of one scenario and the network between them. Only inside of `isolate`."""

    def __init__(self, names: list[str]) -> None:
        nix, self.runners = store(instances())
        run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
        RUN.mkdir()
        for home in cgroups().values():
            home.mkdir(exist_ok=True)
        self.network = Network()
        root = image() / "root"
        self.machines = [Machine(name, number, names, self.network, root, nix) for number, name in enumerate(names, 1)]
        self.observer = Observer(self.machines, self.runners)

    @classmethod
    def of(cls, claim: str, agent: Path) -> "Rig":
        """The hosts that a scenario wants, with Blixard installed, all off."""
        rig = cls(hosts(claim))
        for machine in rig.machines:
            install(machine, claim, agent, rig.runners)
        return rig

    def start_all(self) -> None:
        for machine in self.machines:
            machine.start()

    def names(self, claim: str) -> dict[str, Any]:
        """What a script finds defined. The last line is what the NixOS test driver has nothing of."""
        given: dict[str, Any] = {machine.name.replace("-", "_"): machine for machine in self.machines}
        if len(self.machines) == 1:
            given["machine"] = self.machines[0]
        return given | {
            "machines": self.machines, "network": self.network, "os": os, "subtest": subtest, "retry": retry,
            "start_all": self.start_all, "join_all": lambda: [machine.wait_for_shutdown() for machine in self.machines],
            "example": example, "keep": lambda file: keep(claim, file), "scratch": RUN, "time_limit": signal.alarm,
            "upgrade": upgrade, "downgrade": downgrade, "observer": self.observer, "http_get": http_get,
            "Takeover": Takeover, "boot_by_hand": lambda host: boot_by_hand(host, self.runners), "BY_HAND": BY_HAND,
            "quantile": quantile,
        }

@contextlib.contextmanager
def subtest(name: str) -> Iterator[None]:
    begun = time.monotonic()
    try:
        yield
    except BaseException:
        print(f"  ✗ {name} ({time.monotonic() - begun:.1f} s)", flush=True)
        raise
    print(f"  ✓ {name} ({time.monotonic() - begun:.1f} s)", flush=True)


def retry(fn: Callable[[bool], bool], timeout: int = 900) -> None:
    """Until `fn(False)`; at the end `fn(True)`, which may say what is missing."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if fn(False):
            return
        time.sleep(0.1)
    if not fn(True):
        raise Failure(f"action timed out after {timeout} seconds")


def run_scenario(claim: str, agent: Path) -> bool:
    """Run it, and say what went wrong if something did."""
    rig = Rig.of(claim, agent)
    return _run(claim, rig, [TESTS / claim / "scenario.py"], rig.names(claim))


def measure(part: str, agent: Path) -> bool:
    """Measure it, and say whether each of its gates holds."""
    rig, report = Rig.of(MEASURED.name, agent), Report()
    scripts = [MEASURED / "prelude.py", MEASURED / f"{part}.py"]
    return _run(part, rig, scripts, rig.names(MEASURED.name) | {"report": report}) and report.end()


def _run(title: str, rig: Rig, scripts: list[Path], names: dict[str, Any]) -> bool:
    begun = time.monotonic()
    print(title, flush=True)

    def too_long(*_: object) -> None:
        raise Failure(f"it takes longer than it may (a scenario {SCENARIO_TIMEOUT} s, if it doesn't say otherwise)")

    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(SCENARIO_TIMEOUT)
    try:
        for script in (PRELUDE, *scripts):
            exec(compile(script.read_text(), script, "exec"), names)  # as one script, which is what NixOS makes of it
        rig.observer.check()
    except BaseException as error:  # a failed `assert` of the scenario, Ctrl-C, and a bug of its own alike
        signal.alarm(0)
        _explain(title, error, rig)
        return False
    finally:
        signal.alarm(0)
        for machine in rig.machines:
            machine.pull_plug()
    print(f"  passed in {time.monotonic() - begun:.1f} s", flush=True)
    return True


def _explain(claim: str, error: BaseException, rig: Rig) -> None:
    where = [frame for frame in traceback.extract_tb(error.__traceback__)
             if frame.filename.startswith(str(TESTS)) and not frame.filename.startswith(str(TESTS / "rig"))]
    print("".join(f"  at {os.path.relpath(frame.filename, TESTS.parent)}:{frame.lineno}: {frame.line}\n" for frame in where)
          + f"  {type(error).__name__}: {error}", flush=True)
    if not isinstance(error, AssertionError | KeyboardInterrupt):
        traceback.print_exception(error)
    show_hosts(rig.machines, logs(claim))


def logs(claim: str) -> Path:
    """Where to look when a scenario has failed."""
    return CACHE / "logs" / claim


def keep(claim: str, file: Path) -> Path:
    """Copy a file to where it outlives the rig, beside the journals; where it is then."""
    logs(claim).mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy(file, logs(claim)))


def show_hosts(machines: list[Machine], logs: Path) -> None:
    """What there is to know of hosts on which something went wrong, in short on stderr and at length in `logs`."""
    for machine in machines:
        lines = save_journal(machine, logs / f"{machine.name}.log")
        state = "is off"
        if machine.is_running():
            state = machine.execute("blixard status 2>&1 || true; systemctl --failed --no-legend", timeout=20)[1].rstrip()
        tell("\n".join([f"--- {machine.name}", state, *[line for line in lines if "blixard" in line][-40:]]))
    tell(f"--- all journals: {logs}")
