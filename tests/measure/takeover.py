"""How long a VM of a host that has lost its power is away, and what of that is neither its lease nor its guest's boot."""

LOSSES = int(os.environ.get("BLIXARD_ROUNDS", "10"))
ROUND_TIMEOUT = 120
LEASE, WAIT = 5, 9  # seconds, of the profile `fast`
STATUS = "ask-fence /run/blixard/fence.sock '\"Status\"'"


def deadline(host):
    """When the lease of the host ends, by its fence."""
    return json.loads(host.succeed(STATUS))["Status"]["stage"]["Armed"]["deadline"] / 1e9


def wait_for_renewal(host):
    """Until it has just been renewed, so that it isn't again before this is of use; when that renewal was sent."""
    before = deadline(host)
    return wait_for(f"a renewal of {host.name}", lambda: deadline(host), lambda seen: seen > before) - LEASE


def began(instance):
    """When its last hypervisor began to live."""
    return [life.begin for life in observer.lives if life.instance == instance][-1]


workers = [delta, epsilon]
start_cluster()
network.attach_rig()
for server in servers:
    alpha.succeed(f"blixard node cordon {server.name}")
for worker in workers:
    worker.succeed("true")
    worker.copy_from_host(str(example("ask_fence")), "/usr/local/bin/ask-fence")
declare_anew(alpha)
away, boots, overheads = [], [], []
for number in range(1, LOSSES + 1):
    time_limit(ROUND_TIMEOUT)
    wait_for_health(alpha)
    lost = wait_for_vm(workers, "web-0")
    [other] = [worker for worker in workers if worker is not lost]
    other.wait_until_succeeds(f"{STATUS} | grep Armed", timeout=MAX_WAIT)
    takeover = Takeover("web-0")
    sent = wait_for_renewal(lost)
    takeover.start()
    lost.crash()
    takeover.join(MAX_WAIT)
    begun, answered = boot_by_hand(other)
    away.append(takeover.seconds)
    boots.append(answered - begun)
    overheads.append((began("web-0") - (sent + WAIT) - (began(BY_HAND) - begun)) * 1e3)
    print(f"  {number}: away for {away[-1]:.2f} s, boot {boots[-1]:.2f} s, overhead {overheads[-1]:.0f} ms", flush=True)
    lost.start()

for what, seconds in [("away after a loss of power", away), ("boot by hand", boots)]:
    print(f"{what}: " + ", ".join(f"p{part} {quantile(seconds, part / 100):.2f} s" for part in (50, 90, 100)))
what = "until its hypervisor runs, beside the lease and what that takes by hand, ms"
report.at_most(what, overheads, gate=500, goal=60)
report.at_most(what, overheads, gate=500, goal=150, part=0.99)
