"""How many packets are tried, which, and what of the process must be the same afterwards.

MEMFSD_FUZZ_PACKETS=N tries about N packets instead of PACKETS, MEMFSD_FUZZ_SEED=N other ones.
"""

import os
from collections import Counter

import pytest

from kvmsim.kvm.exits import Exit
from tests.support.both_sides import LocalStore, LocalVm, page

PACKETS = int(os.environ.get("MEMFSD_FUZZ_PACKETS", "40000"))
SEED = int(os.environ.get("MEMFSD_FUZZ_SEED", "20210824"))
tried: Counter[str] = Counter()
"""Packets sent, by what received them."""


def share(part: float) -> int:
    """A test's part of all packets."""
    return max(int(PACKETS * part), 50)


def resident_bytes() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def check_bystander(store: LocalStore, local: LocalVm) -> None:
    assert local.read(0, 4) == b"mine"
    written: Exit | None = local.write(page(3), b"still served")
    assert written is None
    store.punch("bystander", 3, 1)
    assert local.read(page(3), 4) == bytes(4)


def report() -> dict[str, int]:
    return dict(tried)


def hear(report: dict[str, int]) -> None:
    tried.update(report)


def show(reporter: pytest.TerminalReporter) -> None:
    if tried:
        parts = ", ".join(f"{count:,} to {whom}" for whom, count in tried.most_common())
        reporter.write_line(f"hostile packets: {tried.total():,} (seed {SEED}): {parts}")
