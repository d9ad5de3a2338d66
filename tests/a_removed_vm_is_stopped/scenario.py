"""A VM that leaves the manifest is stopped and leaves nothing behind; another one isn't touched."""

hosts = [alpha, beta, gamma]

with subtest("two VMs run"):
    start_all()
    wait_for_cluster(hosts)
    web = wait_for_vm(hosts, "web-0")
    db = wait_for_vm(hosts, "db-0")
    untouched = process(db, "db-0")
    runner = manifest(web)["vms"]["web"]["runners"][0]
    taps = web.succeed(f"cut -d' ' -f1 {runner}/share/microvm/tap-interfaces").split()
    assert taps, "the runner names no tap"
    for tap in taps:
        web.succeed(f"ip link show {tap}")

with subtest("a manifest without the one is applied"):
    wanted = manifest(alpha)
    del wanted["vms"]["web"]
    apply(alpha, wanted)

with subtest("it is stopped"):
    wait_for(
        "web-0 to be gone from status and from every host",
        lambda: {
            "vms": [vm["instance"] for vm in status(alpha)["vms"]],
            "active": [host.name for host in hosts if is_active(host, "web-0")],
        },
        lambda seen: seen == {"vms": ["db-0"], "active": []},
    )
    assert answer(alpha, "web-0") == ""

with subtest("unit, tap, GC root and data under /run are gone"):
    web.wait_until_fails(f"test -e {gc_root('web-0')}", timeout=MAX_WAIT)
    web.wait_until_fails("test -e /run/blixard/vms/web-0.json", timeout=MAX_WAIT)
    web.wait_until_fails(f"systemctl list-units --all --no-legend | grep -E '{'|'.join(units('web-0'))}'", timeout=MAX_WAIT)
    for tap in taps:
        web.wait_until_fails(f"ip link show {tap}", timeout=MAX_WAIT)

with subtest("the other VM never noticed"):
    assert process(db, "db-0") == untouched
    assert "db-0" in answer(alpha, "db-0")
    wait_for_health(alpha)
