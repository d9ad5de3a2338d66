"""The show: three hosts, a VM with two replicas, and what happens when the plug of one host is pulled.

    demo.py [--keep]                  run it; --keep leaves the hosts up, in the background
    demo.py --shell HOST [COMMAND…]   a root shell in a host that was left up
    demo.py --stop                    end it
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from cache import CACHE, tell
from driver import Rig, prepare, show_hosts
from host import shell_in
from install import agent_binary
from isolation import find_host, is_isolated, isolate
from machine import Failure, Machine

import prelude  # noqa: E402 (found through store's path)

CLAIM = "a_declared_vm_answers_http"
REPLICAS = ["web-0", "web-1"]
KEPT = "everything stays up"  # the line after which the foreground may end
SUPERVISOR = Path("/run/blixard-demo.pid")
_begun = time.monotonic()


def say(text: str) -> None:
    print(f"[{time.monotonic() - _begun:5.1f} s] {text}", flush=True)


def show_status(host: Machine) -> None:
    print(f"\n{host.name}# blixard status\n{host.execute('blixard status 2>&1')[1].rstrip()}\n", flush=True)


def show(rig: Rig) -> None:
    say("starting alpha, beta and gamma: each a systemd of its own, on a private network")
    rig.start_all()
    cluster = prelude.wait_for_cluster(rig.machines)
    say(f"they are a cluster: {cluster['leader']} leads in term {cluster['term']}")
    web = prelude.manifest(rig.machines[0])["vms"]["web"]
    say(f"the manifest declares VM web: {len(web['runners'])} replicas, {web['vcpus']} vCPU and {web['memoryMiB']} MiB each")
    where = {}
    for instance in REPLICAS:
        where[instance] = prelude.wait_for_vm(rig.machines, instance)
        text = prelude.answer(where[instance], instance).strip()
        say(f"{instance} runs on {where[instance].name}; http://{prelude.address(instance)} says: {text}")
    prelude.wait_for_health(rig.machines[0])
    lost, kept = where["web-0"], where["web-1"]
    assert lost is not kept, f"both replicas run on {lost.name}"
    show_status(kept)
    say(f"pulling the plug of {lost.name}")
    lost.crash()
    prelude.wait_for(
        f"{lost.name} to be noticed",
        lambda: prelude.status(kept),
        lambda seen: prelude.row(seen["nodes"], "name", lost.name).get("alive") is False and seen["cluster"].get("quorum"),
    )
    text = prelude.wait_for_answer(kept, "web-1").strip()
    say(f"it is missed; web-1 goes on: {text}")
    show_status(kept)
    say(f"once the lease of {lost.name} is over for sure, another host may run what it ran")
    there = prelude.wait_for_vm([machine for machine in rig.machines if machine is not lost], "web-0")
    text = prelude.answer(there, "web-0").strip()
    say(f"web-0 runs on {there.name}; http://{prelude.address('web-0')} says: {text}")
    show_status(kept)


def run(keep: bool) -> int:
    """The inner part: a rig, the show, and then nothing until it is stopped if it is to be kept."""
    rig = Rig.of(CLAIM, agent_binary(os.environ.get("BLIXARD_BIN")))
    try:
        show(rig)
        rig.observer.check()
    except (Failure, AssertionError) as error:
        tell(f"the demo failed: {error}")
        show_hosts(rig.machines, CACHE / "logs/demo")
        return 1
    up = next(machine.name for machine in rig.machines if machine.is_running())
    if not keep:
        say(f"done. To look around: tests/demo --keep, then tests/demo --shell {up}")
        return 0
    say(f"""done; {KEPT}. To look around:
    tests/demo --shell {up}                        a root shell on that host: blixard status, vm ls, explain web …
    tests/demo --shell {up} curl -s {prelude.address("web-1")}   ask the VM
    tests/demo --stop                               end it""")
    while True:
        signal.pause()


def in_background() -> int:
    """Run the show in a session of its own, pass on what it prints, and leave it there once it is to be kept."""
    # Both streams, so that nothing that is left up holds on to the caller's terminal or pipe.
    child = subprocess.Popen([sys.executable, sys.argv[0], "--kept"], stdin=subprocess.DEVNULL, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    SUPERVISOR.write_text(str(child.pid))
    assert child.stdout
    try:
        for line in child.stdout:
            print(line, end="", flush=True)
            if KEPT in line:  # three lines follow
                print("".join(child.stdout.readline() for _ in range(3)), end="", flush=True)
                return 0
        return child.wait()
    except KeyboardInterrupt:
        stop()
        return 130


def kept_up() -> int | None:
    """The supervisor of a demo that was left up."""
    try:
        pid = int(SUPERVISOR.read_text())
        return pid if b"--kept" in Path(f"/proc/{pid}/cmdline").read_bytes() else None
    except (OSError, ValueError):
        return None


def stop() -> None:
    pid = kept_up()
    if pid is None:
        sys.exit("demo: nothing is up")
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 20
    while kept_up():
        if time.monotonic() > deadline:
            sys.exit(f"demo: process {pid} does not end")
        time.sleep(0.1)
    SUPERVISOR.unlink()


def main(arguments: list[str]) -> int:
    match arguments:
        case ["--shell", name, *command]:
            supervisor = kept_up()
            leader = find_host(name, str(supervisor)) if supervisor else None
            if leader is None:
                sys.exit(f"demo: no host {name} is up; `tests/demo --keep` leaves three hosts up, one of them crashed")
            shell_in(leader, command)
        case ["--stop"]:
            stop()
            return 0
        case [] | ["--keep"]:
            if kept_up():
                sys.exit("demo: one is up already; `tests/demo --stop` ends it")
            if not is_isolated():
                prepare()
            if arguments:
                return in_background()
            isolate()
            return run(keep=False)
        case ["--kept"]:
            isolate()
            return run(keep=True)
    sys.exit(__doc__)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
