"""Exits by reason, and how long each kept its vCPU out of the guest: what `perf kvm stat report` shows.

From kvm_exit to the kvm_entry of the same vCPU, so with user space, where it goes there; an exit without an entry after
it, at the end or where events were lost, counts for nothing.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from .reader import LOST, Happening


@dataclass(slots=True)
class Times:
    """Of the exits of one reason, in nanoseconds."""

    samples: int = 0
    total: int = 0
    least: int = 0
    most: int = 0
    squares: int = 0

    def add(self, ns: int) -> None:
        self.least = ns if not self.samples else min(self.least, ns)
        self.most = max(self.most, ns)
        self.samples += 1
        self.total += ns
        self.squares += ns * ns

    @property
    def average(self) -> float:
        return self.total / self.samples

    @property
    def deviation_percent(self) -> float:
        """Standard error of the average, in percent of it: perf's +-."""
        if self.samples < 2 or not self.total:
            return 0.0
        variance = (self.squares - self.total * self.total / self.samples) / (self.samples - 1)
        return 100 * math.sqrt(max(variance, 0) / self.samples) / self.average


def exit_times(happenings: Iterable[Happening], *, vm: str = "", vcpu: int = -1) -> dict[str, Times]:
    """By reason; of one VM and one vCPU if they are named."""
    out: dict[tuple[int, str], tuple[int, str]] = {}
    found: dict[str, Times] = {}
    for it in happenings:
        key = it.pid, it.task
        if it.name == LOST:
            out = {of: exit_ for of, exit_ in out.items() if of[0] != it.pid}
        elif it.name == "kvm_exit":
            if (not vm or it.vm == vm) and vcpu in (-1, it.values.get("vcpu_id")):
                out[key] = it.t, str(it.values.get("exit_reason", "?"))
        elif it.name == "kvm_entry" and key in out:
            since, reason = out.pop(key)
            found.setdefault(reason, Times()).add(it.t - since)
    return found
