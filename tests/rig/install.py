"""Puts Blixard on a rig's hosts: the agent, the units and files that the NixOS module rendered, a cluster secret.

tests/rendered/ holds them as a NixOS host would have them, with stand-ins for what only a build knows: the agent's
package is /opt/blixard, and a runner is a store path that ends in microvm-qemu-INSTANCE.
"""

import os
import re
from pathlib import Path

from host import PATH
from image import put
from machine import Machine

TESTS = Path(__file__).resolve().parent.parent
MEASURED = TESTS / "measure"
RENDERED = TESTS / "rendered"
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", TESTS.parent / "target"))
STAND_IN_RUNNER = re.compile(r"/nix/store/[^/\s\"]*microvm-qemu-([a-z0-9-]+)")
AGENT = "/opt/blixard/bin/blixard"
NEXT_AGENT = "/opt/blixard-next/bin/blixard"
SECRET = "only-for-tests-" + "0123456789abcdef" * 2 + "\n"

# A NixOS unit finds programs by store paths; here they are where Debian has them.
ON_DEBIAN = f"[Service]\nEnvironment=PATH={PATH}\n"


def agent_binary(given: str | None) -> Path:
    """The agent to install: the one given, or the newest that cargo built."""
    if given:
        candidates = [Path(given)]
    else:
        candidates = [TARGET / profile / "blixard" for profile in ("release", "debug")]
    return _newest(candidates, "cargo build --release")


def example(name: str) -> Path:
    """A program of agent/examples/, the newest that cargo built."""
    candidates = [TARGET / profile / "examples" / name for profile in ("release", "debug")]
    return _newest(candidates, f"cargo build --example {name}")


def upgrade(machine: Machine) -> None:
    """Switch the host to the build that understands one level more."""
    build = _newest([TARGET / "release/blixard-next"], "tests/build")
    machine.copy_from_host(str(build), NEXT_AGENT)
    _switch(machine, AGENT, NEXT_AGENT)


def downgrade(machine: Machine) -> None:
    """Switch the host back to the build that it had first."""
    _switch(machine, NEXT_AGENT, AGENT)


def _switch(machine: Machine, old: str, new: str) -> None:
    """As on NixOS: every unit names another package, and only the agent is restarted."""
    machine.succeed(
        f"sed -i 's,{old},{new},' /etc/systemd/system/blixard*.service",
        f"ln -sf {new} /usr/local/bin/blixard",
        "systemctl daemon-reload",
    )
    machine.systemctl("restart blixard.service")  # what it has to do may be to stop


def _newest(candidates: list[Path], build: str) -> Path:
    built = [path.resolve() for path in candidates if path.is_file()]
    if not built:
        raise SystemExit(f"rig: nothing at {' or '.join(map(str, candidates))}: run `{build}` first")
    return max(built, key=lambda path: path.stat().st_mtime)


def claims() -> list[str]:
    """Every folder of tests/ with a scenario in it."""
    return sorted(path.parent.name for path in TESTS.glob("*/scenario.py"))


def parts() -> list[str]:
    """What can be measured: the scripts beside those hosts."""
    return sorted(path.stem for path in MEASURED.glob("*.py") if path.stem != "prelude")


def hosts(claim: str) -> list[str]:
    """The hosts of a claim, in the order in which they are numbered."""
    rendered = RENDERED / claim
    if not rendered.is_dir():
        raise SystemExit(f"rig: {rendered} is missing: render the module's files for the scenario {claim}")
    return sorted(path.name for path in rendered.iterdir() if path.is_dir())


def instances() -> set[str]:
    """Every instance that any scenario's manifest names a runner for."""
    manifests = RENDERED.glob("*/*/manifest.json")
    return {instance for path in manifests for instance in STAND_IN_RUNNER.findall(path.read_text())}


def install(machine: Machine, claim: str, agent: Path, runners: dict[str, str]) -> None:
    """Before the host's first boot."""
    units = machine.root / "etc/systemd/system"
    secret = None
    for rendered in sorted((RENDERED / "units").iterdir()):
        text = rendered.read_text()
        put(units / rendered.name, text)
        if rendered.suffix == ".service":
            put(units / f"{rendered.name}.d/debian.conf", ON_DEBIAN)
        if "WantedBy=multi-user.target" in text:
            wanted = units / "multi-user.target.wants" / rendered.name
            wanted.parent.mkdir(exist_ok=True)
            wanted.symlink_to(f"/etc/systemd/system/{rendered.name}")
        credential = re.search(r"^LoadCredential=cluster-secret:(\S+)$", text, re.MULTILINE)
        secret = credential[1] if credential else secret
    if secret is None:
        raise SystemExit(f"rig: no unit in {RENDERED / 'units'} loads the credential cluster-secret")
    put(machine.root / secret.lstrip("/"), SECRET, 0o600)
    for rendered in (RENDERED / claim / machine.name).iterdir():
        text = STAND_IN_RUNNER.sub(lambda found: runners[found[1]], rendered.read_text())
        put(machine.root / "etc/blixard" / rendered.name, text)
    machine.binds.append((agent, AGENT))
    (machine.root / "usr/local/bin/blixard").symlink_to(AGENT)
