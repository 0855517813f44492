"""Peers that break every rule. At the end of the run the number of packets that were tried is told.

MEMFSD_FUZZ_PACKETS=N tries about N packets instead of PACKETS, MEMFSD_FUZZ_SEED=N other ones.
"""

import gc
import os
import threading
from collections import Counter
from collections.abc import Iterator

import pytest

from kvmsim.core.exits import Exit
from tests.support.both_sides import LocalStore, LocalVm, page
from tests.support.both_sides import store as store
from tests.support.threads import until

PACKETS = int(os.environ.get("MEMFSD_FUZZ_PACKETS", "110000"))
SEED = int(os.environ.get("MEMFSD_FUZZ_SEED", "20210824"))
tried: Counter[str] = Counter()
"""Packets sent, by what received them."""


def share(part: float) -> int:
    """A test's part of all packets."""
    return max(int(PACKETS * part), 50)


def _held() -> tuple[int, int]:
    gc.collect()
    return len(os.listdir("/proc/self/fd")), threading.active_count()


def resident_bytes() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def bystander(store: LocalStore) -> LocalVm:
    """A VM that must not notice anything."""
    store.create("bystander", 8)
    local = store.vm("bystander")
    local.private_slot(0, 0, page(8), "bystander")
    assert local.write(0, b"mine") is None
    return local


def check_bystander(store: LocalStore, local: LocalVm) -> None:
    assert local.read(0, 4) == b"mine"
    written: Exit | None = local.write(page(3), b"still served")
    assert written is None
    store.punch("bystander", 3, 1)
    assert local.read(page(3), 4) == bytes(4)


@pytest.fixture
def nothing_left(bystander: LocalVm) -> Iterator[None]:
    """Descriptors and threads are back where they were before the test. It ends before the store does."""
    before = _held()
    yield
    until(lambda: _held() == before, f"fds and threads are {before} again, as before the test")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if tried:
        parts = ", ".join(f"{count:,} to {whom}" for whom, count in tried.most_common())
        terminalreporter.write_line(f"hostile packets: {tried.total():,} (seed {SEED}): {parts}")
