"""What scenarios share. Both stages put this text before the scenario's, so it uses only the NixOS test driver's API.

A scenario reads the cluster as a person would: by `blixard status --json` on one of its hosts.
"""

import json
import os
import time

# Where guests answer HTTP; replica k of a VM is k further on. The guests of both stages are made so.
ADDRESSES = {"web": 100, "db": 110, "huge": 120}

# A guest in a NixOS VM has an emulated processor in an emulated or nested one, and takes minutes to boot.
MAX_WAIT = int(os.environ.get("BLIXARD_TEST_MAX_WAIT", "300"))


def wait_for(what, look, enough, timeout=MAX_WAIT):
    """What `look` saw when it was `enough`. Fails with the last thing seen."""
    deadline = time.monotonic() + timeout
    while True:
        seen = look()
        if enough(seen):
            return seen
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout} s for {what}; last seen:\n{json.dumps(seen, indent=1)}")
        time.sleep(0.1)


def uptime(host):
    """In seconds, by the host's own clock."""
    return float(host.succeed("cut -d' ' -f1 /proc/uptime"))


def status(host):
    """The cluster as this host's agent sees it; what it said instead of that under "unreachable"."""
    _, output = host.execute("blixard status --json", timeout=20)
    try:
        return json.loads(output)
    except ValueError:
        said = host.execute("blixard status 2>&1", timeout=20)[1]
        return {"cluster": {}, "nodes": [], "vms": [], "healthy": False, "problems": [], "unreachable": said}


def row(rows, key, value):
    """The row of a table of the status, or an empty one."""
    return next((row for row in rows if row[key] == value), {})


def cluster_of(hosts):
    """What every host says of the cluster itself."""
    seen = {host.name: status(host) for host in hosts}
    return {name: view["cluster"] or {"unreachable": view.get("unreachable")} for name, view in seen.items()}


def wait_for_cluster(hosts, servers=None):
    """Until these hosts agree on a cluster with a leader and a quorum, in which all vote, or so many; what they agree on."""
    servers = servers or len(hosts)

    def agree(seen):
        keys = ["id", "leader", "term", "quorum", "servers"]
        views = {tuple(view.get(key) for key in keys) for view in seen.values()}
        return len(views) == 1 and all(all(view) and view[-1] == servers for view in views)

    for host in hosts:
        host.wait_for_unit("blixard.service", timeout=MAX_WAIT)
    return wait_for("the hosts to agree on a leader", lambda: cluster_of(hosts), agree)[hosts[0].name]


def wait_for_health(host, timeout=MAX_WAIT):
    """Until the cluster is as declared; its status then."""
    return wait_for("a healthy cluster", lambda: status(host), lambda seen: seen["healthy"], timeout)


def wait_for_state(host, instance, state, timeout=MAX_WAIT):
    """Until an instance is in a state; its row of the status."""
    seen = wait_for(
        f"{instance} to be {state}",
        lambda: status(host),
        lambda seen: row(seen["vms"], "instance", instance).get("state") == state,
        timeout,
    )
    return row(seen["vms"], "instance", instance)


def wait_for_vm(hosts, instance):
    """Until an instance runs on one of these hosts and answers; that host, which is the only one."""
    names = [host.name for host in hosts]
    where = wait_for(
        f"{instance} to run on one of {names}",
        lambda: row(status(hosts[0])["vms"], "instance", instance),
        lambda vm: vm.get("state") == "running" and vm["node"] in names,
    )["node"]
    wait_for_answer(hosts[0], instance)
    active = [host.name for host in hosts if is_active(host, instance)]
    assert active == [where], f"{instance} is placed on {where}, and its unit is active on {active}"
    return named(hosts, where)


def named(hosts, name):
    return next(host for host in hosts if host.name == name)


def address(instance):
    vm, _, replica = instance.rpartition("-")
    return f"192.168.1.{ADDRESSES[vm] + int(replica)}"


def answer(host, instance):
    """What a guest answers to this host, or nothing."""
    return host.execute(f"curl --silent --fail --max-time 2 http://{address(instance)}/", timeout=20)[1]


def wait_for_answer(host, instance):
    return wait_for(
        f"{instance} to answer HTTP at {address(instance)}", lambda: answer(host, instance), lambda text: instance in text
    )


def units(instance):
    """Those that it may have on a host, of either policy."""
    return [f"blixard-auto@{instance}.service", f"blixard-vm@{instance}.service"]


def unit(host, instance):
    """The one that it has there; where it has none, any."""
    loaded = (name for name in units(instance) if host.get_unit_property(name, "ActiveState") != "inactive")
    return next(loaded, units(instance)[0])


def is_active(host, instance):
    return host.get_unit_property(unit(host, instance), "ActiveState") == "active"


def process(host, instance):
    """Which process the hypervisor is: its number and when it started, so that equal means the same run of the VM."""
    number = host.get_unit_property(unit(host, instance), "MainPID")
    return number + " started at " + host.succeed(f"cut -d' ' -f22 /proc/{number}/stat").strip()


def gc_root(instance):
    return f"/nix/var/nix/gcroots/blixard/{instance}"


def manifest(host):
    """The manifest that the host carries."""
    return json.loads(host.succeed("cat /etc/blixard/manifest.json"))


def apply(host, wanted):
    """Give the cluster another manifest, by hand."""
    host.succeed(f"cat > /run/wanted.json <<'END'\n{json.dumps(wanted)}\nEND")
    return host.succeed("blixard apply /run/wanted.json", timeout=MAX_WAIT)


def declare_anew(host):
    """What the host carries, with all of it placed now: what was placed before workers had joined isn't on them."""
    apply(host, manifest(host) | {"vms": {}})
    wait_for("every VM to be gone", lambda: status(host)["vms"], lambda seen: not seen)
    apply(host, manifest(host))


def run_task(host, command):
    """Submit a task; its name."""
    return host.succeed(f"blixard task run --cpu 1 --memory 32 -- {command}", timeout=MAX_WAIT).strip()


def task(host, name):
    """The line about a task in this host's list, without the command, which could hold what is looked for."""
    lines = host.execute("blixard task ls", timeout=20)[1].splitlines()
    column = lines[0].find("COMMAND") if lines else 0
    return next((line[:column] for line in lines if line.split()[:1] == [name]), "")


def wait_for_task(host, name, state):
    """Until a task is in a state; the line about it."""
    return wait_for(f"{name} to be {state}", lambda: task(host, name), lambda line: state in line.split())


def wait_until_all_applied(hosts):
    """Until these hosts' states are made of the same entries."""
    wait_for(
        "the same entries to be applied everywhere",
        lambda: cluster_of(hosts),
        lambda seen: len({view.get("applied") for view in seen.values()}) == 1,
    )


def wait_until_gone(hosts, instance, left):
    """Until this instance runs on none of these hosts, and the first of them lists only those that are left."""
    wait_for(
        f"{instance} to be gone",
        lambda: [vm["instance"] for vm in status(hosts[0])["vms"]] + [host.name for host in hosts if is_active(host, instance)],
        lambda seen: seen == left,
    )
