"""For all tests: they can run in the background, say nothing about time, leave nothing in the process that runs them,
and those that need root say so without it."""

import os
import signal
import sys
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.needs_root import LEFT_OUT, reason
from tests.support.leftovers import held, leftovers
from tests.support.recorded import Records, is_worker

# The same examples in every run, however long a busy machine takes to make them.
settings.register_profile(
    "as in every run", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("as in every run")

# Store and VM share this process in many tests, and each question from one to the other is several changes of thread:
# 5 ms each, CPython's default, while a third thread computes.
sys.setswitchinterval(0.0005)

# A shell starts what runs in its background with SIGINT ignored, which the processes under test would inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module", autouse=True)
def _nothing_is_left() -> Iterator[None]:
    before = held()
    yield
    left = leftovers(before)
    assert not left, left


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Records())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if is_worker(config):
        items.sort(key=lambda item: item.get_closest_marker("minutes") is None)
    items.sort(key=lambda item: item.path.name == "test_lock_order.py")  # which asks about all that ran before
    if os.geteuid() == 0:
        return
    left_out = [item for item in items if reason(item.nodeid)]
    items[:] = [item for item in items if not reason(item.nodeid)]
    config.hook.pytest_deselected(items=left_out)
    LEFT_OUT.update(f"{item.nodeid.partition('::')[0]}: {reason(item.nodeid)}" for item in left_out)
