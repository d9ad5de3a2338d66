"""What was measured, beside what it is compared with, and whether that is good enough."""

import math
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from isolation import UNIFIED, cgroups

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class Report:
    """Prints as it is told; `end` says whether each gate held."""

    def __init__(self) -> None:
        self._holds = True
        self._begun, self._foreign = time.monotonic(), _foreign_seconds()

    def ratio(self, what: str, sides: dict[str, list[list[float]]], gate: float, goal: float) -> None:
        """Of two sides, each by rounds, the median over the rounds of the ratios of their medians: at most so much."""
        print(f"{what}, ms")
        for side, rounds in sides.items():
            _print_numbers(side, [number for numbers in rounds for number in numbers])
        ratios = [statistics.median(one) / statistics.median(other) for one, other in zip(*sides.values(), strict=True)]
        ratio = statistics.median(ratios)
        print(f"    {'ratio':<10} {ratio:>10.2f} [{min(ratios):.2f} to {max(ratios):.2f}]{self._judge(ratio, gate, goal)}",
              flush=True)

    def at_most(self, what: str, numbers: Sequence[float], gate: float, goal: float, part: float = 0.5) -> None:
        """So large a part of these numbers is to be at most so much."""
        print(what)
        _print_numbers("", numbers)
        number = quantile(numbers, part)
        print(f"    {f'p{part * 100:g}':<10} {number:>10.1f}{self._judge(number, gate, goal)}", flush=True)

    def _judge(self, number: float, gate: float, goal: float) -> str:
        self._holds &= number <= gate
        verdict = "MISSES THE GATE" if number > gate else "holds" if number > goal else "reaches the goal"
        return f"   gate ≤ {gate:g}, goal ≤ {goal:g}: {verdict}"

    def end(self) -> bool:
        """Whether each gate held."""
        foreign = (_foreign_seconds() - self._foreign) / (time.monotonic() - self._begun)
        print(f"  {foreign:.2f} processors busy with something else", flush=True)
        return self._holds


def quantile(numbers: Sequence[float], part: float) -> float:
    """The least of these numbers that so large a part of them doesn't exceed."""
    return sorted(numbers)[max(0, math.ceil(part * len(numbers)) - 1)]


def _print_numbers(side: str, numbers: Sequence[float]) -> None:
    print(f"    {side:<10} {statistics.median(numbers):>10.1f} [{min(numbers):.1f} to {max(numbers):.1f}] of {len(numbers)}")


def _foreign_seconds() -> float:
    """Processor time of the whole machine so far, without what it was idle, and without this rig's."""
    user, nice, system, _idle, _waiting, irq, soft_irq, stolen = map(int, Path("/proc/stat").read_text().split()[1:9])
    usage = (cgroups()[UNIFIED] / "cpu.stat").read_text().split()[1]
    return (user + nice + system + irq + soft_irq + stolen) / TICKS_PER_SECOND - int(usage) / 1e6 - sum(os.times()[:4])
