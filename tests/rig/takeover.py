"""How long it takes until a microVM answers: elsewhere, when its host is lost, and where it is started by hand."""

import threading
import urllib.request

from host import Host
from observer import now
from store import address

ASK_AGAIN = 0.1  # seconds after which one that loses its answer is asked anew
BY_HAND = "huge-0"  # which no cluster runs meanwhile
MAX_BOOT = 60


def http_get(instance: str, timeout: float = 1) -> str:
    """What it answers, which names its boot; nothing where it doesn't."""
    try:
        with urllib.request.urlopen(f"http://{address(instance)}/", timeout=timeout) as answer:
            return answer.read().decode()
    except OSError:
        return ""


class Takeover(threading.Thread):
    """Asks a VM whose host loses its power now, until another boot of it answers."""

    def __init__(self, instance: str) -> None:
        super().__init__(daemon=True)
        self.instance, self.before = instance, http_get(instance)
        self.lost = self.answered = float("inf")

    def run(self) -> None:
        self.lost = now()
        while http_get(self.instance, ASK_AGAIN) in ("", self.before):
            pass
        self.answered = now()

    @property
    def seconds(self) -> float:
        return self.answered - self.lost


def boot_by_hand(host: Host, runners: dict[str, str]) -> tuple[float, float]:
    """When a guest like all others was started on that host, by systemd alone, and when it answered; it is gone again then."""
    runner, tap, unit = runners[BY_HAND], f"vm-{BY_HAND}", "by-hand.service"

    def run(command: str) -> None:
        status, _ = host.run_command(command, MAX_BOOT)
        assert status == 0, f"{host.name}: `{command}`: {host.last_stderr()}"

    run(f"{runner}/bin/tap-up; ip link set {tap} master br0; install -d -o blixard-vm /run/by-hand")
    start = f"systemd-run --quiet --unit={unit} --uid=blixard-vm --gid=kvm --working-directory=/run/by-hand"
    begun = now()
    run(f"{start} {runner}/bin/microvm-run")
    while BY_HAND not in http_get(BY_HAND, ASK_AGAIN):
        assert now() < begun + MAX_BOOT, f"{host.name}: {BY_HAND} does not answer"
    answered = now()
    run(f"systemctl kill --signal=KILL {unit}; systemctl stop {unit}; systemctl reset-failed; {runner}/bin/tap-down")
    return begun, answered
