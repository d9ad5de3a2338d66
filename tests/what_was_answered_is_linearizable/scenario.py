"""What three hosts answer to their clients is linearizable, whatever happens to agents, network, disks and clocks.

In each round clients change and read registers while one misfortune follows the other; then all is well again, every host
is asked for every register, and two checkers look at what was answered. BLIXARD_ROUNDS says how many rounds there are,
BLIXARD_SEED from what the choices of misfortunes and clients follow.
"""

import collections
import contextlib
import random
import re
import shutil
import subprocess

AGENT = "blixard.service"
SOCKET = "run/blixard/api.sock"
STORE = "var/lib/blixard/raft/state.redb"
ROUND_SECONDS = 10
LEAST_ANSWERED = 100  # of some thousands where the machine has nothing else to do
ROUND_TIMEOUT = 180

hosts = [alpha, beta, gamma]
rounds = int(os.environ.get("BLIXARD_ROUNDS", "10"))
seed = int(os.environ.get("BLIXARD_SEED") or random.randrange(2**32))
sockets = [f"--agent={host.files / SOCKET}" for host in hosts]
history_program = str(example("history"))


def others(host):
    return [other.name for other in hosts if other is not host]


def to_agent(host, signal):
    host.execute(f"systemctl kill --kill-whom=main --signal={signal} {AGENT}", timeout=20)


# Misfortunes: each happens to one host, and is over with the block.


@contextlib.contextmanager
def agent_killed(host, choose):
    to_agent(host, "KILL")
    yield


@contextlib.contextmanager
def agent_restarted(host, choose):
    host.execute(f"systemctl restart --no-block {AGENT}", timeout=20)
    yield


@contextlib.contextmanager
def agent_stopped(host, choose):
    to_agent(host, "STOP")
    yield
    to_agent(host, "CONT")


@contextlib.contextmanager
def host_paused(host, choose):
    host.pause()
    yield
    host.resume()


@contextlib.contextmanager
def plug_pulled(host, choose):
    host.crash()
    yield
    host.start()


@contextlib.contextmanager
def alone(host, choose):
    network.partition([host.name], others(host))
    yield
    network.heal()


@contextlib.contextmanager
def deaf(host, choose):
    network.cut(others(host), [host.name])
    yield
    network.heal()


@contextlib.contextmanager
def mute(host, choose):
    network.cut([host.name], others(host))
    yield
    network.heal()


@contextlib.contextmanager
def cut_off_from_one(host, choose):
    network.partition([host.name], [choose.choice(others(host))])
    yield
    network.heal()


@contextlib.contextmanager
def far_away(host, choose):
    network.delay(host.name, choose.uniform(5, 80), choose.uniform(0, 40))
    yield
    network.undelay(host.name)


@contextlib.contextmanager
def disk_full(host, choose):
    host.fill_disk()
    yield
    host.free_disk()


@contextlib.contextmanager
def clock_wrong(host, choose):
    host.skew(choose.choice([-1, 1]) * 10 ** choose.uniform(0, 7))
    yield
    host.skew(0)


MISFORTUNES = [
    agent_killed, agent_restarted, agent_stopped, host_paused, plug_pulled, alone, deaf, mute, cut_off_from_one, far_away,
    disk_full, clock_wrong,
]


def leader():
    """The host that leads as far as a host knows; any where none does."""
    for host in hosts:
        seen = status(host)["cluster"].get("leader")
        if seen:
            return named(hosts, seen)
    return alpha


def last(load, seconds):
    """Until the clients end, but no longer than this."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        load.wait(seconds)


def be_unlucky(load, choose):
    """One misfortune after the other, some two at once, some with the leader, until the clients end; what they were."""
    happened = []
    while load.poll() is None:
        struck = choose.sample(hosts, choose.choice([1, 1, 1, 2]))
        if choose.random() < 0.4:
            struck = [leader()]
        with contextlib.ExitStack() as at_once:
            for host in struck:
                misfortune = choose.choice(MISFORTUNES)
                happened.append(f"{host.name} {misfortune.__name__}")
                at_once.enter_context(misfortune(host, choose))
            last(load, choose.uniform(0.3, 2.0))
        last(load, choose.uniform(0.1, 0.8))
    return happened


def settle():
    """Until all three are servers of one leader, and have applied the same."""
    wait_for_cluster(hosts)
    wait_for(
        "the same entries to be applied everywhere",
        lambda: cluster_of(hosts),
        lambda seen: len({(view.get("term"), view.get("applied")) for view in seen.values()}) == 1,
    )


@contextlib.contextmanager
def kept_if_it_fails(history):
    try:
        yield
    except BaseException:
        print(f"    the history: {keep(history)}", flush=True)
        raise


def ask(verb, *arguments):
    done = subprocess.run([history_program, verb, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, f"history {verb}: {done.stdout}"
    return done.stdout


print(f"  {rounds} rounds, seed {seed}", flush=True)
choices = random.Random(seed)
total = collections.Counter()

with subtest("three hosts with a leader, and clients that can show who they are"):
    for host in hosts:
        host.skewable(AGENT)
    network.attach_rig()
    start_all()
    wait_for_cluster(hosts)
    gamma.succeed(f"systemctl stop {AGENT}")
    shutil.copy(gamma.files / STORE, scratch / "store")
    gamma.succeed(f"systemctl start {AGENT}")
    settle()

for number in range(1, rounds + 1):
    time_limit(ROUND_TIMEOUT)
    history = scratch / f"seed-{seed}-round-{number}.history"
    with subtest(f"round {number}"), kept_if_it_fails(history):
        members = [f"--member=192.168.1.{host.number}:7420" for host in hosts]
        load = subprocess.Popen([
            history_program, "load", *sockets, *members, f"--store={scratch}/store", f"--history={history}",
            f"--prefix=round{number}", f"--seconds={ROUND_SECONDS}", f"--seed={choices.randrange(2**32)}",
        ])
        happened = be_unlucky(load, choices)
        assert load.returncode == 0, "the clients ended"
        settle()
        ask("close", *sockets, f"--history={history}")
        said = ask("check", f"--least={LEAST_ANSWERED}", str(history))
        assert happened, "nothing went wrong"
        print(f"    {', '.join(happened)}\n    " + said.strip().replace("\n", "\n    "), flush=True)
        for count, what in re.findall(r"(\d+) ([a-z ]+)", said):
            total[what] += int(count)
        history.unlink()

print("  in all: " + ", ".join(f"{count} {what}" for what, count in total.items()), flush=True)
