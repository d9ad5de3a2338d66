"""A VM whose runner changed is restarted with the new one; the others, and a manifest that says the same, change nothing."""

hosts = [alpha]


def add_changed_runner(runner):
    """The same runner under another store path."""
    copy = "/run/changed/" + runner.split("-", 1)[1]
    return alpha.succeed(
        f"mkdir /run/changed && cp --recursive --no-dereference {runner} {copy}",
        f"chmod u+w {copy}/share/microvm && echo changed > {copy}/share/microvm/note",
        f"nix-store --add {copy}",
    ).strip()


with subtest("two VMs run"):
    start_all()
    wait_for_cluster(hosts)
    for instance in ["web-0", "db-0"]:
        wait_for_vm(hosts, instance)
    before, untouched = process(alpha, "web-0"), process(alpha, "db-0")

with subtest("the same manifest again changes nothing"):
    wanted = manifest(alpha)
    alpha.succeed("blixard apply /etc/blixard/manifest.json", timeout=MAX_WAIT)
    wait_for_health(alpha)
    assert process(alpha, "web-0") == before

with subtest("plan says what would change, and changes nothing"):
    runner = add_changed_runner(wanted["vms"]["web"]["runners"][0])
    wanted["vms"]["web"]["runners"] = [runner]
    alpha.succeed(f"cat > /run/planned.json <<'END'\n{json.dumps(wanted)}\nEND")
    plan = alpha.succeed("blixard plan /run/planned.json")
    assert "web" in plan, plan
    assert process(alpha, "web-0") == before

with subtest("a changed runner restarts its VM"):
    apply(alpha, wanted)
    wait_for(
        "web-0 to run from the new runner",
        lambda: alpha.execute(f"readlink {gc_root('web-0')}")[1].strip(),
        lambda seen: seen == runner,
    )
    wait_for(
        "another process",
        lambda: is_active(alpha, "web-0") and process(alpha, "web-0"),
        lambda seen: seen not in (False, before),
    )
    wait_for_vm(hosts, "web-0")

with subtest("and no other"):
    assert process(alpha, "db-0") == untouched
    assert row(status(alpha)["vms"], "instance", "db-0")["restarts"] == 0
    wait_for_health(alpha)
