"""A full disk stops the agent whose data is on it, and neither its VM nor the others; it says why, and is back with room."""

AGENT = "blixard.service"
DATA = "/var/lib/blixard"
ACKNOWLEDGED = "/run/acknowledged"
# A task that no host has room for: it is kept, and makes no other work.
SUBMIT = "blixard task run --cpu 1000 --memory 32 -- true"
STARTS = 3

hosts = [alpha, beta, gamma]
others = [beta, gamma]


def fill():
    """Take the room that there is, as what has filled a disk does again and again."""
    assert "No space left on device" in alpha.fail(f"cat /dev/zero 2>&1 >> {DATA}/filler")


def wait_until_told(command="blixard status"):
    """Until the agent of the full disk answers this with why it has stopped, and with what to do."""
    code, said = wait_for(
        "the agent to say why it has stopped",
        lambda: alpha.execute(f"{command} 2>&1", timeout=MAX_WAIT),
        lambda seen: "agent has stopped" in seen[1],
    )
    assert code != 0, said
    for word in [f"{DATA}/raft/", "No space left on device", "has room"]:
        assert word in said, said


def starts():
    return int(alpha.get_unit_property(AGENT, "NRestarts"))


def exits():
    """The exit status of each agent that has ended otherwise than it should."""
    journal = f"journalctl --no-pager --output=cat --unit={AGENT}"
    lines = alpha.succeed(f"{journal} | grep 'Main process exited' || true").splitlines()
    return [line.rpartition("status=")[2].partition("/")[0] for line in lines]


def tasks(host):
    """The tasks as this host knows them: name → state."""
    return {line.split()[0]: line.split()[1] for line in host.succeed("blixard task ls").splitlines()[1:]}


def web():
    """Which run of the VM this is: of its unit, its hypervisor and its guest."""
    invocation = alpha.get_unit_property(unit(alpha, "web-0"), "InvocationID")
    return invocation, process(alpha, "web-0"), wait_for_answer(beta, "web-0")


with subtest("three hosts, one with a small disk for its agent's data, and a VM on it"):
    # While it is alone it is no member yet, and has no data to lose.
    alpha.succeed(
        f"systemctl stop {AGENT}",
        f"mkdir --parents {DATA}",
        f"mount -t tmpfs -o size=32m,mode=711 tmpfs {DATA}",
        f"systemctl start {AGENT}",
    )
    start_all()
    wait_for_cluster(hosts)
    assert wait_for_vm(hosts, "web-0") is alpha
    wait_for_vm(hosts, "db-0")
    for host in hosts:
        # Else one that offers it late comes with an old one.
        host.wait_for_file("/run/blixard/offered", timeout=MAX_WAIT)
    wait_for_health(alpha)
    before = web()

with subtest("the disk becomes full in use: the agent acknowledges no more, and says why"):
    alpha.succeed(f"systemd-run --unit=client --setenv=PATH sh -c 'while {SUBMIT} >> {ACKNOWLEDGED}; do :; done'")
    alpha.wait_until_succeeds(f"test -s {ACKNOWLEDGED}", timeout=MAX_WAIT)
    fill()
    alpha.wait_until_fails("systemctl is-active client.service", timeout=MAX_WAIT)
    wait_until_told()

with subtest("what it refuses isn't done"):
    known = tasks(beta)
    for command in [SUBMIT, "blixard apply /etc/blixard/manifest.json"]:
        wait_until_told(command)
    assert tasks(beta).keys() == known.keys()

with subtest("it is started again and again, without a limit, and says the same"):
    # What systemd allows where nothing is said is five starts in ten seconds.
    limit = alpha.get_unit_property(AGENT, "StartLimitIntervalUSec")
    assert limit == "0", limit
    for _ in range(STARTS):
        fill()
        count = starts()
        # It would end by itself after half a minute.
        alpha.succeed(f"systemctl kill {AGENT}")
        wait_for("another start", starts, lambda now: now > count)
        wait_until_told()
        assert web() == before

with subtest("the other two say who is missing, with exit status 1, and leave the VM where it is"):
    seen = wait_for(
        "the missing host to be noticed",
        lambda: status(beta),
        lambda seen: row(seen["nodes"], "name", "alpha").get("alive") is False,
    )
    assert row(seen["vms"], "instance", "web-0")["node"] == "alpha", seen["vms"]
    code, shown = beta.execute("blixard status")
    assert code == 1 and "alpha does not answer" in shown, (code, shown)

with subtest("they go on"):
    wanted = manifest(beta)
    del wanted["vms"]["db"]
    for host in hosts:
        host.succeed(
            f"cat > /run/wanted.json <<'END'\n{json.dumps(wanted)}\nEND",
            "ln --symbolic --force /run/wanted.json /etc/blixard/manifest.json",
        )
    for host in others:
        host.succeed(f"systemctl reload {AGENT}")
        wait_for_task(host, run_task(host, "true"), "done")
    wait_until_gone(others, "db-0", ["web-0"])

with subtest("once there is room it ends, and the next one is a member again, with nobody's help"):
    wait_until_told()
    count = starts()
    alpha.succeed(f"rm {DATA}/filler")
    wait_for_cluster(hosts)
    for host in hosts:
        wait_for_health(host)
    assert starts() > count
    assert len(exits()) > STARTS and set(exits()) == {"74"}, exits()

with subtest("nothing that was acknowledged is lost, and all agree"):
    ran = run_task(alpha, "true")
    for host in hosts:
        wait_for_task(host, ran, "done")
    wait_until_all_applied(hosts)
    seen = {host.name: tasks(host) for host in hosts}
    assert seen["alpha"] == seen["beta"] == seen["gamma"], seen
    lost = set(alpha.succeed(f"cat {ACKNOWLEDGED}").split()) - seen["alpha"].keys()
    assert not lost, lost
    assert [vm["instance"] for vm in status(alpha)["vms"]] == ["web-0"]

with subtest("the VM never noticed"):
    assert web() == before
    assert row(status(alpha)["vms"], "instance", "web-0")["restarts"] == 0
