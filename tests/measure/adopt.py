"""What an agent that is killed beside hundreds of VMs takes to know them all again, and what it takes while nothing happens."""

import threading

ROUNDS = int(os.environ.get("BLIXARD_ROUNDS", "3"))
VMS = 300
SECONDS = 60  # twice, the agent looks at everything again
MAX_CHANGE = 300  # seconds until all are started, replaced or stopped

KNOWN = "the units of this host are known"


def processes():
    """Which process each VM is, and since when."""
    shown = delta.succeed("systemctl show --property=Id,MainPID,ExecMainStartTimestampMonotonic 'blixard-auto@*'")
    return {unit for unit in shown.strip().split("\n\n") if "MainPID=0" not in unit}


def declare(runners, instead=frozenset()):
    """Hundreds of VMs with these runners; their processes, once all run, and none of those that were there before."""
    idle = manifest(alpha)["vms"]["web"] | {"runners": runners, "memoryMiB": 16, "memoryOverheadMiB": 16}
    apply(alpha, manifest(alpha) | {"vms": {"idle": idle}})
    wait_for(
        f"{VMS} VMs to run, as the cluster knows",
        lambda: sum(vm["state"] == "running" for vm in status(alpha)["vms"]),
        lambda seen: seen == VMS and len(processes() - instead) == VMS,
        MAX_CHANGE,
    )
    return processes()


def adopt():
    """Kill the agent; milliseconds from the next one's start until it knows its units."""
    before = delta.get_unit_property("blixard.service", "MainPID")
    delta.succeed("systemctl kill --kill-whom=main --signal=KILL blixard.service")
    pid = wait_for(
        "a new agent",
        lambda: delta.get_unit_property("blixard.service", "MainPID"),
        lambda seen: seen not in ("0", before),
    )
    look = f"journalctl --boot --output=json _PID={pid} --grep='{KNOWN}'"
    entry = json.loads(delta.wait_until_succeeds(look))
    assert entry["BLIXARD_RUNNING"] == str(VMS), entry
    begun = delta.get_unit_property("blixard.service", "ExecMainStartTimestampMonotonic")
    return (int(entry["__MONOTONIC_TIMESTAMP"]) - int(begun)) / 1e3


def cpu_ms():
    """Processor time of the agent so far."""
    fields = delta.succeed(f"cat /proc/{delta.get_unit_property('blixard.service', 'MainPID')}/stat").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * 1000 / os.sysconf("SC_CLK_TCK")


start_cluster()
for other in [*servers, epsilon]:
    alpha.succeed(f"blixard node cordon {other.name}")
for host in machines:
    runners = idle_runners(host, 2 * VMS)
reloads = Reloads(machines)
time_limit(3 * MAX_CHANGE + 2 * ROUNDS * SECONDS)
before = declare(runners[:VMS])
report.at_most("ms until an agent that was killed knows its VMs again", [adopt() for _ in range(ROUNDS)], gate=1000, goal=100)
assert processes() == before, "some VM was restarted"

shares = []
for _ in range(ROUNDS):
    begun = cpu_ms()
    threading.Event().wait(SECONDS)
    shares.append((cpu_ms() - begun) / SECONDS)
report.at_most(f"ms of processor time a second, with {VMS} VMs and nothing to do", shares, gate=5, goal=1)
assert processes() == before, "some VM was restarted"

declare(runners[VMS:], instead=before)
apply(alpha, manifest(alpha) | {"vms": {}})
wait_for("every VM to be gone", lambda: status(alpha)["vms"], lambda seen: not seen, MAX_CHANGE)
report.at_most("reloads of units while all are started, replaced and stopped, and an agent is", [reloads.count()], gate=0, goal=0)
