"""The observer sees where a VM lives, a copy of it that somebody starts by hand, and nothing wrong with a move."""

hosts = [alpha, beta]
COPY = "copy.service"


def wait_for_lives(expected):
    wait_for(f"web-0 to live on {expected}", lambda: observer.living("web-0"), lambda seen: seen == expected)


with subtest("a VM lives where the cluster says"):
    start_all()
    wait_for_cluster(hosts, servers=1)
    home = wait_for_vm(hosts, "web-0")
    other = beta if home is alpha else alpha
    assert observer.living("web-0") == [home.name], observer.lives
    observer.check()

with subtest("a copy elsewhere is an overlap"):
    runner = manifest(home)["vms"]["web"]["runners"][0]
    other.succeed(f"systemd-run --unit={COPY} --working-directory=/run {runner}/bin/microvm-run")
    wait_for_lives([home.name, other.name])
    try:
        observer.check()
    except AssertionError as seen:
        assert all(text in str(seen) for text in ("web-0", "on alpha", "on beta", "until now")), seen
    else:
        raise AssertionError("the observer saw nothing wrong with two copies")

with subtest("it lives as long as its process, though it does nothing"):
    other.succeed(f"systemctl kill --signal=STOP {COPY}")
    state = f"cut -d' ' -f3 /proc/$(systemctl show -P MainPID {COPY})/stat"
    wait_for("its process to be stopped", lambda: other.succeed(state).strip(), lambda seen: seen == "T")
    wait_for_lives([home.name, other.name])
    other.succeed(f"systemctl kill --signal=KILL {COPY}")
    wait_for_lives([home.name])
    [(_, copy)] = observer.overlaps()
    assert copy.host == other.name and copy.end, copy
    observer.forget()

with subtest("a move is two lives, one after the other"):
    home.succeed(f"blixard vm move web-0 --to {other.name}", timeout=MAX_WAIT)
    assert wait_for_vm(hosts, "web-0") is other
    assert observer.living("web-0") == [other.name], observer.lives
    observer.check()
    other.crash()
    wait_for_lives([])
