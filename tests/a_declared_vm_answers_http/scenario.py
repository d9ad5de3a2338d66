"""A declared VM runs on exactly one of three hosts, its replicas on different ones, and answers on an address of its own."""

hosts = [alpha, beta, gamma]

with subtest("each replica runs on exactly one host, and not on the same"):
    start_all()
    wait_for_cluster(hosts)
    places = {instance: wait_for_vm(hosts, instance) for instance in ["web-0", "web-1"]}
    where = places["web-0"]
    assert where is not places["web-1"], f"both run on {where.name}"

with subtest("every host reaches both"):
    for host in hosts:
        for instance in places:
            wait_for_answer(host, instance)

with subtest("it runs as its own user, in its slice and within its limits"):
    info = where.get_unit_info(unit(where, "web-0"))
    assert info["Slice"] == "blixard-fenced.slice", info["Slice"]
    assert int(info["MemoryMax"]) >= 96 * 2**20, info["MemoryMax"]
    user = where.succeed(f"stat --format=%U /proc/{info['MainPID']}").strip()
    assert user == "blixard-vm", user

with subtest("its runner is held by a GC root there, and nowhere else"):
    runner = manifest(where)["vms"]["web"]["runners"][0]
    assert where.succeed(f"readlink {gc_root('web-0')}").strip() == runner
    for host in hosts:
        if host is not where:
            host.fail(f"test -e {gc_root('web-0')}")

with subtest("what the store doesn't answer for is stopped again, and runs once it does"):
    others = [host for host in hosts if host is not where]
    for host in others:
        where.succeed(f"blixard node cordon {host.name}")
    where.succeed(
        "mkdir -p /run/idle/bin",
        "printf '#!/bin/sh\nexec sleep infinity\n' > /run/idle/bin/microvm-run; chmod 755 /run/idle/bin/microvm-run",
    )
    idle = where.succeed("nix-store --add /run/idle").strip()
    where.succeed("systemctl stop nix-daemon.socket nix-daemon.service")
    where.succeed(f"blixard vm create idle --runner {idle} --vcpus 1 --memory 16 --memory-overhead 16 --no-kvm")
    wait_for(
        "idle-0 to fail",
        lambda: row(status(where)["vms"], "instance", "idle-0"),
        lambda vm: "cannot realise" in (vm.get("reason") or ""),
    )
    assert not is_active(where, "idle-0"), "it runs without a runner that stays"
    where.fail(f"test -e {gc_root('idle-0')}")
    where.succeed("journalctl --boot --unit=blixard-auto@idle-0.service --grep=Started")
    where.succeed("systemctl start nix-daemon.socket")
    wait_for_state(where, "idle-0", "running")
    where.succeed(f"test -e {gc_root('idle-0')}", "blixard vm rm idle")
    wait_until_gone([where], "idle-0", ["web-0", "web-1"])
    for host in others:
        where.succeed(f"blixard node uncordon {host.name}")

with subtest("nothing would start it at boot without the cluster"):
    assert info["UnitFileState"] in ("static", "disabled"), info["UnitFileState"]

with subtest("status is healthy on every host"):
    for host in hosts:
        wait_for_health(host)
        host.succeed("blixard status")
