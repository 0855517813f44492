"""What tests record is the same, whichever processes run them."""

import os
import subprocess
import sys
from pathlib import Path

from tests.support.threads import DEADLINE_S

ROOT = Path(__file__).parents[2]
CONFTEST = """
from pathlib import Path

from tests.support import lock_order
from tests.support.recorded import Records

lock_order.SEEN = Path(__file__).with_name("cache") / "order"


def pytest_configure(config):
    config.pluginmanager.register(Records())
"""
MODULE = """
from tests.hostile.tally import tried
from tests.support.lock_order import RECORDER


def test():
    tried["one"] += {packets}
    RECORDER.order = {order}
"""


def run(place: Path, *orders: dict[str, set[str]]) -> subprocess.CompletedProcess[str]:
    """A module each, on two workers."""
    (place / "conftest.py").write_text(CONFTEST)
    for number, order in enumerate(orders, 1):
        (place / f"test_{number}.py").write_text(MODULE.format(packets=number, order=order))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST_")}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "2", "--dist", "loadfile", "-p", "no:cacheprovider", place],
        cwd=place,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )


def test_what_workers_record_is_summed(tmp_path: Path) -> None:
    done = run(tmp_path, {"Mmu.lock": set()}, {"Backing.lock": set()})
    assert done.returncode == 0, done.stdout
    assert "hostile packets: 3 " in done.stdout
    assert '"Mmu.lock"' in (order := (tmp_path / "cache/order").read_text()) and '"Backing.lock"' in order


def test_a_ring_that_no_worker_saw_alone_fails_the_run(tmp_path: Path) -> None:
    done = run(tmp_path, {"a": {"b"}, "b": set()}, {"b": {"a"}, "a": set()})
    assert done.returncode == 1, done.stdout
    assert "the locks of all workers" in done.stdout and "these wait for themselves: a, b" in done.stdout
    assert "1 failed, 2 passed" in done.stdout
