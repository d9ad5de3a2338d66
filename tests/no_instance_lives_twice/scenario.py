"""Whatever happens to hosts, agents, fences and network: no instance lives twice, and what is lost runs elsewhere in time.

In each round something happens to two hosts at once, of which one at most is a server. Every automatic VM has to answer,
anew where its host was lost; then all is mended. At the end it says how long it took from a host's loss of power until a VM
of its answered elsewhere, and how long a guest that is started by hand there. BLIXARD_ROUNDS says how many rounds there are,
BLIXARD_SEED from what all choices follow.
"""

import collections
import itertools
import random
import threading

POWER = "loses its power"
AGENT, FENCE = "blixard.service", "blixard-fence.service"
ROUND_TIMEOUT = 180
WAIT, ELECTION, REST = 9, 1, 1.5  # seconds: of the profile `fast`; of a new leader; what a takeover takes beside these and a boot
LONGEST = 12  # what loses nothing at once goes on for up to so many seconds, over leases and expiries

servers = [alpha, beta, gamma]
workers = [delta, epsilon, zeta]
hosts = [*servers, *workers]
instances = [f"web-{replica}" for replica in range(6)]
rounds = int(os.environ.get("BLIXARD_ROUNDS", "5"))
seed = int(os.environ.get("BLIXARD_SEED") or random.randrange(2**32))


def send(host, unit, name):
    host.execute(f"systemctl kill --kill-whom=main --signal={name} {unit}", timeout=20)


def others(host):
    return [other.name for other in hosts if other is not host]


def nothing(host):
    pass


def heal(host):
    network.heal()


# What happens to a host, how it is mended, and whether its automatic VMs are to run elsewhere for it.
Misfortune = collections.namedtuple("Misfortune", ["strike", "mend", "loses"])
MISFORTUNES = {
    POWER: Misfortune(lambda host: host.crash(), lambda host: host.start(), True),
    "is cut off": Misfortune(lambda host: network.partition([host.name], others(host)), heal, True),
    "hears nobody": Misfortune(lambda host: network.cut(others(host), [host.name]), heal, True),
    "is not heard": Misfortune(lambda host: network.cut([host.name], others(host)), heal, True),
    "reboots": Misfortune(lambda host: host.reboot(), nothing, False),
    "has its agent killed": Misfortune(lambda host: send(host, AGENT, "KILL"), nothing, False),
    "has its agent stopped": Misfortune(lambda host: send(host, AGENT, "STOP"), lambda host: send(host, AGENT, "CONT"), False),
    "has its fence killed": Misfortune(lambda host: send(host, FENCE, "KILL"), nothing, False),
    "has its fence stopped": Misfortune(lambda host: send(host, FENCE, "STOP"), lambda host: send(host, FENCE, "CONT"), False),
}
# Half of all are those that are measured.
WEIGHTS = [len(MISFORTUNES) - 1, *[1] * (len(MISFORTUNES) - 1)]


def lives():
    """Where each automatic VM lives."""
    return {instance: observer.living(instance) for instance in instances}


def choose_victims(choose):
    """Two hosts that have an automatic VM, if there are such, and no more than one server."""
    busy = {name for living in lives().values() for name in living}
    first, *rest = sorted(choose.sample(hosts, len(hosts)), key=lambda host: host.name not in busy)
    return [first, next(host for host in rest if host in workers or first in workers)]


def strike(host, misfortune):
    """Let it happen; what asks the VMs that are lost by it, where that is measured."""
    lost = [Takeover(instance) for instance, living in lives().items() if living == [host.name]]
    misfortune.strike(host)
    measured = lost if misfortune is MISFORTUNES[POWER] else []
    for takeover in measured:
        takeover.start()
    return measured


def wait_until_all_answer(lost=()):
    """Until each automatic VM lives on one host, none of those that are lost, and answers."""
    wait_for(
        f"every automatic VM to live on one host that is none of {lost}",
        lives,
        lambda seen: all(len(living) == 1 and living[0] not in lost for living in seen.values()),
    )
    for instance in instances:
        wait_for(f"{instance} to answer", lambda: http_get(instance), lambda text: instance in text)


print(f"  {rounds} rounds, seed {seed}", flush=True)
choices = random.Random(seed)
measured, boots = [], []  # seconds

with subtest("six hosts with a leader, an automatic VM on each, and a manual one"):
    network.attach_rig()
    start_all()
    wait_for_cluster(servers)
    declare_anew(alpha)
    wait_for_health(alpha)
    wait_until_all_answer()

for number in range(1, rounds + 1):
    time_limit(ROUND_TIMEOUT)
    happened = [(host, choices.choices(list(MISFORTUNES), WEIGHTS)[0]) for host in choose_victims(choices)]
    told = ", ".join(f"{host.name} {what}" for host, what in happened)
    with subtest(f"round {number}: {told}"):
        takeovers = [strike(host, MISFORTUNES[what]) for host, what in happened]
        wait_until_all_answer([host.name for host, what in happened if MISFORTUNES[what].loses])
        for takeover in itertools.chain(*takeovers):
            takeover.join(MAX_WAIT)
            begun, answered = boot_by_hand(named(hosts, *lives()[takeover.instance]))
            measured.append(takeover.seconds)
            boots.append(answered - begun)
            print(f"    {takeover.instance} answered elsewhere after {measured[-1]:.1f} s; a boot takes {boots[-1]:.1f} s", flush=True)
        if not all(MISFORTUNES[what].loses for _, what in happened):
            threading.Event().wait(choices.uniform(0, LONGEST))
        for host, what in happened:
            MISFORTUNES[what].mend(host)
        wait_for_cluster(servers)
        wait_for_health(alpha)
        observer.check()

if measured:
    for what, seconds, parts in [("takeovers after a loss of power", measured, (50, 90, 99, 100)), ("boots by hand", boots, (50, 99))]:
        told = ", ".join(f"p{part} {quantile(seconds, part / 100):.1f} s" for part in parts)
        print(f"  {len(seconds)} {what}: {told}", flush=True)
    limit = WAIT + ELECTION + REST + quantile(boots, 0.99)
    longer = sum(seconds > limit for seconds in measured) / len(measured)
    print(f"  {longer:.1%} of them took longer than {limit:.1f} s, which is the wait, an election, such a boot and {REST} s", flush=True)
print(f"  {rounds} rounds, {len(observer.lives)} lives, no two of one instance at once", flush=True)
