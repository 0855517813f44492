"""Peers that break every rule."""

import gc
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.both_sides import LocalStore, LocalVm, page
from tests.support.both_sides import encrypted as encrypted
from tests.support.both_sides import store as store
from tests.support.real_mount import Mount
from tests.support.threads import until


def _held() -> tuple[int, int]:
    gc.collect()
    return len(os.listdir("/proc/self/fd")), threading.active_count()


@pytest.fixture
def bystander(store: LocalStore) -> LocalVm:
    """A VM that must not notice anything."""
    store.create("bystander", 8)
    local = store.vm("bystander")
    local.private_slot(0, 0, page(8), "bystander")
    assert local.write(0, b"mine") is None
    return local


@pytest.fixture
def nothing_left(bystander: LocalVm) -> Iterator[None]:
    """Descriptors and threads are back where they were before the test. It ends before the store does."""
    before = _held()
    yield
    until(lambda: _held() == before, f"fds and threads are {before} again, as before the test")


@pytest.fixture
def mounted() -> Iterator[Mount]:
    """Reachable for all users: pytest's own directories are not."""
    base = Path(tempfile.mkdtemp(prefix="memfsd-hostile-"))
    base.chmod(0o755)
    made = Mount(base, "size=64M,allow_other")
    try:
        yield made
    finally:
        made.remove()
        made.check_log()
        shutil.rmtree(base)
