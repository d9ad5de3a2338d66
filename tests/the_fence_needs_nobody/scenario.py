"""What a fence has let start is dead in time whatever happens to the fence, to PID 1 and to the agent, which isn't there at all.

The scenario says to the fence what an agent would. Instead of a hypervisor each instance runs a loop that writes down when it
last ran, by the clock of the fence, to a hundredth of a second.
"""

import shlex

instances = ["web-0", "web-1"]
SOCKET = "/run/blixard/fence.sock"
RUNNER = "/nix/store/" + "a" * 32 + "-ticking"
TICKING = """#!/bin/sh
trap 'echo asked > last; exit' TERM
while read -r now _ < /proc/uptime; do
  echo $now > next
  # It is read, and killed, at any moment.
  mv next tick
  sleep 0.02
done
"""
SHUTDOWN = "#!/bin/sh\nkill $MAINPID\n"
# How long a lease of these terms is. Only what waits for its end is armed with `fast`: setting up may take as long on a machine
# that is busy.
LEASES = {"fast": 5, "relaxed": 30}
# How long everything may take to be dead after the end of one that is `fast`, or after what is to end it before.
KILL = 3
epoch, terms = 100, "relaxed"


def auto(instance):
    return f"blixard-auto@{instance}.service"


def units():
    return " ".join(auto(instance) for instance in instances)


def ask(request):
    return json.loads(alpha.succeed(f"ask-fence {SOCKET} {shlex.quote(json.dumps(request))}"))


def stage():
    status, reply = alpha.execute(f"ask-fence {SOCKET} '\"Status\"'")
    return json.loads(reply)["Status"]["stage"] if status == 0 else None


def wait_for_idle():
    """Until the fence waits to be armed; its nonce."""
    return wait_for("an idle fence", stage, lambda seen: isinstance(seen, dict) and "Idle" in seen)["Idle"]["nonce"]


def renew():
    """When the lease ends that the leader would have granted now."""
    sent = uptime(alpha)
    assert ask({"Renewed": {"epoch": epoch, "sent": int(sent * 1e9)}}) == "Done"
    return sent + LEASES[terms]


def arm():
    """Arm the fence for another epoch, with everything placed here."""
    global epoch
    nonce = wait_for_idle()
    epoch += 1
    assert ask({"Arm": {"nonce": nonce, "epoch": epoch, "terms": terms}}) == "Done"
    for instance in instances:
        assert ask({"Allow": {"epoch": epoch, "instance": instance, "generation": 1}}) == "Done"


def ticks():
    """When each instance has run last."""
    return [float(alpha.succeed(f"cat /var/lib/blixard/vms/{instance}/tick")) for instance in instances]


def run_all(by="relaxed"):
    """Arm with these terms, and start everything, as an agent does; when its lease ends."""
    global terms
    terms = by
    arm()
    alpha.succeed("systemctl reset-failed")
    deadline = renew()
    alpha.succeed(f"systemctl start {units()}")
    begun = uptime(alpha)
    wait_for("every instance to run", ticks, lambda seen: all(tick > begun for tick in seen))
    return deadline


def running():
    """The processes in the slice, as the kernel has them; not those that are dead, and that PID 1 has yet to hear of."""
    return alpha.succeed("cat /sys/fs/cgroup/{,unified/}blixard.slice/blixard-fenced.slice/*/cgroup.procs 2>/dev/null || true").split()


def wait_for_death(by):
    wait_for("everything to be dead", running, lambda seen: not seen)
    assert all(tick <= by for tick in ticks()), f"ran until {ticks()}, and was to be dead by {by}"


def assert_stays_down():
    """Nothing has come back by itself, and nothing starts without a lease."""
    for instance in instances:
        alpha.fail(f"systemctl start {auto(instance)}")
        alpha.succeed(f"journalctl --unit {auto(instance)} | grep \"isn't armed\" > /dev/null")
    assert not running()


def wait_until_all_is_over(by):
    """Until everything is dead, by then, and the fence waits to be armed anew."""
    wait_for_death(by)
    wait_for_idle()
    assert_stays_down()


with subtest("a fence runs, and nothing starts before it is armed"):
    start_all()
    alpha.wait_for_unit("blixard-fence.service")
    alpha.succeed("systemctl stop blixard.service")
    alpha.copy_from_host(str(example("ask_fence")), "/usr/local/bin/ask-fence")
    alpha.succeed(f"mkdir -p {RUNNER}/bin /run/blixard/vms")
    for program, text in [("microvm-run", TICKING), ("microvm-shutdown", SHUTDOWN)]:
        alpha.succeed(f"printf %s {shlex.quote(text)} > {RUNNER}/bin/{program}; chmod 755 {RUNNER}/bin/{program}")
    for instance in instances:
        unit = {"instance": instance, "generation": 1, "runner": RUNNER, "restart": "always", "failover": "automatic",
                "notifies": False, "cpus": 1, "memory_max_mib": 64}
        installed = {"unit": unit, "account": {"user": "blixard-vm", "group": "kvm"}, "bridge": None,
                     "work_dir": f"/var/lib/blixard/vms/{instance}"}
        alpha.succeed(f"echo {shlex.quote(json.dumps(installed))} > /run/blixard/vms/{instance}.json")
    wait_for_idle()
    assert_stays_down()

with subtest("what has a lease runs, and is started again when it dies"):
    run_all()
    alpha.succeed(f"systemctl kill --signal=KILL {auto('web-0')}")
    died = uptime(alpha)
    wait_for("web-0 to run again", ticks, lambda seen: seen[0] > died + 1)
    assert alpha.get_unit_property(auto("web-0"), "NRestarts") == "1"

with subtest("nobody starts one beside its unit, or by the unit of another policy"):
    renew()
    alpha.fail("blixard gate auto web-0 2> said")
    alpha.succeed("grep -q 'only its unit may start it' said")
    alpha.fail("systemctl start blixard-vm@web-0.service")
    alpha.succeed("journalctl --unit blixard-vm@web-0.service | grep 'its unit is blixard-auto@web-0.service'")

with subtest("only root is answered, even where another could call"):
    alpha.succeed(f"chmod 666 {SOCKET}", "chmod 755 /run/blixard", f"ask-fence {SOCKET} '\"Status\"'")
    alpha.fail(f"setpriv --reuid=blixard-vm --clear-groups ask-fence {SOCKET} '\"Status\"' 2> said")
    alpha.succeed("grep Answer said")
    alpha.succeed(f"chmod 600 {SOCKET}", "chmod 750 /run/blixard")

with subtest("a guest is asked to stop before its unit is stopped"):
    renew()
    alpha.succeed(f"systemctl start blixard-stop@web-1.service; systemctl stop {auto('web-1')}")
    assert alpha.succeed("cat /var/lib/blixard/vms/web-1/last").strip() == "asked"
    alpha.succeed(f"systemctl start {auto('web-1')}")

with subtest("what is to stop isn't started again, and its stop is confirmed once the unit is gone, and is for good"):
    stop = {"Stop": {"instance": "web-1", "generation": 1}}
    assert ask(stop) == {"Refused": "Runs"}
    alpha.succeed(f"systemctl kill --signal=KILL {auto('web-1')}")
    wait_for(
        "web-1 to be refused",
        lambda: alpha.get_unit_property(auto("web-1"), "ActiveState"),
        lambda state: state == "failed",
    )
    alpha.succeed(f"journalctl --unit {auto('web-1')} | grep 'stopped for good' > /dev/null")
    alpha.succeed(f"systemctl stop {auto('web-1')}")
    assert ask(stop) == "Done"
    alpha.fail(f"systemctl start {auto('web-1')}")
    assert "IsStopped" in ask({"Allow": {"epoch": epoch, "instance": "web-1", "generation": 1}})["Refused"]
    instances.remove("web-1")

with subtest("a fence that is restarted by hand stops everything, and starts nothing"):
    restarted = uptime(alpha)
    alpha.succeed("systemctl restart blixard-fence.service")
    wait_until_all_is_over(restarted + KILL)

with subtest("without a renewal it is dead in time, and so is the epoch"):
    deadline = run_all("fast")
    wait_until_all_is_over(deadline + KILL)

with subtest("a fence that is killed takes everything with it, and comes back without a lease"):
    run_all()
    killed = uptime(alpha)
    alpha.succeed("systemctl kill --signal=KILL blixard-fence.service")
    wait_until_all_is_over(killed + KILL)

with subtest("a fence that hangs is killed for it in time"):
    deadline = run_all("fast")
    alpha.succeed("systemctl kill --signal=STOP blixard-fence.service")
    wait_until_all_is_over(deadline + KILL)

with subtest("a fence that is stopped ends, and a VM that is started has it started, no more"):
    run_all()
    alpha.succeed("systemctl stop blixard-fence.service")
    assert alpha.get_unit_property("blixard-fence.service", "Result") == "success"
    assert not running()
    alpha.fail(f"systemctl start {auto('web-0')}")
    wait_for_idle()
    assert_stays_down()

with subtest("a host that is about to sleep stops everything first, and has a fence again when it wakes"):
    run_all()
    alpha.succeed(
        "printf '[Unit]\\nRequires=sleep.target\\nAfter=sleep.target\\n[Service]\\nExecStart=true\\n' > /run/systemd/system/nap.service",
        "systemctl start nap.service",
    )
    assert alpha.get_unit_property("blixard-fence.service", "ActiveState") == "inactive"
    assert not running()
    alpha.succeed("systemctl start blixard-fence-resume.service")
    wait_for_idle()
    assert_stays_down()

with subtest("a PID 1 that is executed anew, or reads its units anew, changes nothing"):
    run_all()
    before = [alpha.get_unit_property(unit, "MainPID") for unit in [auto("web-0"), "blixard-fence.service"]]
    for change in ["daemon-reexec", "daemon-reload"]:
        alpha.succeed(f"systemctl {change}")
        renew()
    assert before == [alpha.get_unit_property(unit, "MainPID") for unit in [auto("web-0"), "blixard-fence.service"]]
    begun = uptime(alpha)
    wait_for("web-0 to run on", ticks, lambda seen: seen[0] > begun)
    hung = uptime(alpha)
    alpha.succeed("systemctl kill --signal=STOP blixard-fence.service")
    wait_for_death(hung + LEASES["relaxed"] / 2)
    wait_for_idle()

with subtest("a PID 1 that hangs while the lease ends is not needed"):
    deadline = run_all("fast")
    alpha.hang_first_process()
    wait_for_death(deadline + KILL)
    wait_for_idle()
    alpha.resume_first_process()
    wait_for(
        "PID 1 to see what has happened",
        lambda: alpha.get_unit_property(auto("web-0"), "ActiveState"),
        lambda state: state in ["failed", "inactive"],
    )
    assert_stays_down()

with subtest("while PID 1 hangs a lease is renewed, and ends, all the same"):
    first = run_all("fast")
    alpha.hang_first_process()
    wait_for("web-0 to outlive its first lease", lambda: (renew(), ticks()), lambda seen: seen[1][0] > first)
    deadline = renew()
    wait_for_death(deadline + KILL)
    alpha.resume_first_process()

with subtest("a guest is asked to stop while the host goes down, too"):
    run_all()
    alpha.succeed(
        f"printf '[Unit]\\nAfter={auto('web-0')}\\n[Service]\\nType=oneshot\\nRemainAfterExit=yes\\nExecStart=true\\n"
        "ExecStop=systemctl start blixard-stop@web-0.service\\n' > /run/systemd/system/going-down.service",
        "systemctl start going-down.service",
    )
    renew()
    alpha.shutdown()
    alpha.start()
    assert alpha.succeed("cat /var/lib/blixard/vms/web-0/last").strip() == "asked"
