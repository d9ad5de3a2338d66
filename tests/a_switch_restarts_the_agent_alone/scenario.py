"""A switch to a system of which every unit is new restarts the agent alone: neither the fence nor any VM, of either policy.

What NixOS's switch-to-configuration does is done here by its rules, to the units as the module writes them.
"""

hosts = [alpha, beta, gamma]
UNITS = "/etc/systemd/system"
# Of the profile `default`: how long a lease is, and how long everything may take to be dead after that.
LEASE, KILL = 10, 5
# Keys of [Unit] that make no difference to it.
IGNORED = {
    "X-Reload-Triggers", "Description", "Documentation", "OnFailure", "OnSuccess", "OnFailureJobMode", "IgnoreOnIsolate",
    "StopWhenUnneeded", "RefuseManualStart", "RefuseManualStop", "AllowIsolate", "CollectMode", "SourcePath",
}


def parse(text):
    """Section → key → values, as far as a switch looks at them."""
    sections, section = {}, None
    for line in text.splitlines():
        if line.startswith("["):
            section = sections.setdefault(line.strip("[]"), {})
        elif "=" in line:
            key, _, value = line.partition("=")
            section.setdefault(key, []).append(value)
    sections.pop("Install", None)
    sections["Unit"] = {key: values for key, values in sections.get("Unit", {}).items() if key not in IGNORED}
    return sections


def says(sections, section, key, default):
    values = sections.get(section, {}).get(key)
    return values[-1] in ["1", "yes", "true", "on"] if values else default


def decide(host, old, new):
    """What is to be stopped and started, what restarted, and what is left alone, of the units that are active."""
    listed = host.succeed("systemctl list-units --plain --no-legend --full --state=active,activating 'blixard*'")
    stop, restart, skip = [], [], []
    for unit in [line.split()[0] for line in listed.splitlines()]:
        name, at, _ = unit.partition("@")
        file = f"{name}@.service" if at else unit
        if file not in old or parse(old[file]) == parse(new[file]) or unit.endswith(".slice"):
            continue
        to = parse(new[file])
        if not says(to, "Service", "X-RestartIfChanged", True) or says(to, "Unit", "X-OnlyManualStart", False):
            skip.append(unit)
        elif not says(to, "Service", "X-StopIfChanged", True):
            restart.append(unit)
        else:
            stop.append(unit)
    return stop, restart, skip


def switch(host, old, new):
    """What was left alone."""
    stop, restart, skip = decide(host, old, new)
    assert not stop, stop
    assert restart == ["blixard.service"], restart
    for file, text in new.items():
        host.succeed(f"cat > {UNITS}/{file} <<'END'\n{text}\nEND")
    # The first is for a systemd that is new, too.
    host.succeed("systemctl daemon-reexec", "systemctl reset-failed", "systemctl daemon-reload")
    host.succeed(f"systemctl restart {' '.join(restart)}", "systemctl start multi-user.target")
    return skip


def lives(host):
    """What must not change: who runs, since when, started how often."""
    properties = "MainPID,NRestarts,ExecMainStartTimestampMonotonic"
    names = ["blixard-fence.service", "blixard-auto@web-0.service", "blixard-vm@db-0.service"]
    return {name: host.succeed(f"systemctl show --property=ActiveState,{properties} {name}") for name in names}


with subtest("an automatic VM and a manual one run on one host"):
    start_all()
    wait_for_cluster(hosts)
    for instance in ["web-0", "db-0"]:
        assert wait_for_vm(hosts, instance) is alpha
    before, answers = lives(alpha), [answer(alpha, instance) for instance in ["web-0", "db-0"]]
    assert all("ActiveState=active" in properties for properties in before.values()), before

with subtest("a switch by which every unit changes leaves the fence and the VMs alone"):
    old = {}
    for file in alpha.succeed(f"cd {UNITS}; ls -d blixard*.service blixard*.slice").split():
        old[file] = alpha.succeed(f"cat {UNITS}/{file}")
    alpha.succeed("mkdir -p /opt/blixard-next/bin", "cp /opt/blixard/bin/blixard /opt/blixard-next/bin/")
    new = {
        file: text.replace("/opt/blixard/", "/opt/blixard-next/").replace("[Service]", "[Service]\nEnvironment=SWITCHED=1")
        for file, text in old.items()
    }
    skipped = switch(alpha, old, new)
    assert set(skipped) >= set(before), skipped

with subtest("the agent is the new one, and everything else as it was"):
    agent = "readlink /proc/$(systemctl show -P MainPID blixard.service)/exe"
    assert "blixard-next" in alpha.succeed(agent)
    wait_for_health(alpha)
    assert lives(alpha) == before
    assert [answer(alpha, instance) for instance in ["web-0", "db-0"]] == answers
    assert "blixard-next" not in alpha.succeed(agent.replace("blixard.service", "blixard-fence.service"))

with subtest("the lease is kept by the new agent: the automatic VM outlives the one that it had"):
    begun = uptime(alpha)
    wait_for("the time of a lease and a kill to pass", lambda: uptime(alpha), lambda now: now > begun + LEASE + KILL)
    assert lives(alpha) == before
    observer.check()
