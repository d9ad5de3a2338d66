"""A host that comes with a manifest from before, by a switch or a boot, changes nothing until a person says so."""

hosts = [alpha, beta, gamma]


def switch(host, file):
    """What a switch does that brings another manifest and nothing else."""
    host.succeed(f"ln --symbolic --force {file} /etc/blixard/manifest.json", "systemctl reload blixard.service")


def wait_for_held(names):
    return wait_for(
        f"the manifests of {names} to be held",
        lambda: status(alpha),
        lambda seen: [held["node"] for held in seen.get("held", [])] == names,
    )


with subtest("two VMs run, as all hosts' manifest says"):
    start_all()
    wait_for_cluster(hosts)
    for host in hosts:
        # Else one that offers it late comes with an old one.
        host.wait_for_file("/run/blixard/offered", timeout=MAX_WAIT)
    web = wait_for_vm(hosts, "web-0")
    wait_for_vm(hosts, "db-0")
    untouched = process(web, "web-0")
    later = manifest(alpha)
    del later["vms"]["db"]
    alpha.succeed(
        "cp --dereference /etc/blixard/manifest.json /run/earlier.json",
        f"cat > /run/later.json <<'END'\n{json.dumps(later)}\nEND",
    )

with subtest("a manifest that the cluster has never seen is applied at a reload"):
    switch(alpha, "/run/later.json")
    wait_until_gone(hosts, "db-0", ["web-0"])
    wait_for_health(alpha)

with subtest("the earlier one is held at a reload"):
    switch(alpha, "/run/earlier.json")
    seen = wait_for_held(["alpha"])
    assert not seen["healthy"]
    assert any("alpha" in problem for problem in seen["problems"]), seen["problems"]
    code, text = alpha.execute("blixard status")
    assert code == 1 and "alpha carries an earlier manifest" in text, (code, text)

with subtest("its diff is shown"):
    text = alpha.succeed("blixard manifest ls")
    assert "start db-0" in text and "web-0" not in text, text

with subtest("a host that boots with the earlier one changes nothing either"):
    booted = next(host for host in [beta, gamma] if host != web)
    booted.shutdown()
    booted.start()
    wait_for_cluster(hosts)
    wait_for_held(["alpha", booted.name])
    # A task that is done has been through everything that a start of db-0 would have.
    wait_for_task(alpha, run_task(alpha, "true"), "done")
    wait_until_gone(hosts, "db-0", ["web-0"])
    assert process(web, "web-0") == untouched

with subtest("a person has to say which of two"):
    assert f"alpha, {booted.name}" in alpha.fail("blixard manifest accept 2>&1")

with subtest("the one that is accepted is head, for all who carry it"):
    alpha.succeed("blixard manifest accept alpha", timeout=MAX_WAIT)
    wait_for_held([])
    wait_for_vm(hosts, "db-0")
    wait_for_health(alpha)

with subtest("rollback goes back to the one before"):
    alpha.succeed("blixard manifest rollback", timeout=MAX_WAIT)
    wait_until_gone(hosts, "db-0", ["web-0"])
    wait_for_health(alpha)

with subtest("the other VM never noticed"):
    assert process(web, "web-0") == untouched
    wait_for_answer(alpha, "web-0")
