"""A memfsd mount and a private tmpfs beside it, each gone at the end whatever happened."""

import contextlib
import os
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.support.real_mount import DEADLINE_S, Mount, remove_mount

WEDGED_S = 110.0
"""A mount that is still there after so long is aborted: a test that hangs on it then fails instead."""


@contextlib.contextmanager
def _place() -> Iterator[Path]:
    """A directory that every user may enter, as pytest's tmp_path is not."""
    with tempfile.TemporaryDirectory(prefix="memfsd-reference-") as place:
        os.chmod(place, 0o755)
        yield Path(place)


@contextlib.contextmanager
def memfsd_mount(options: str, wedged_s: float = WEDGED_S) -> Iterator[Path]:
    """The mount point of a daemon of its own, which must come through all of it unharmed."""
    with _place() as place:
        mount = Mount(place, options)
        watchdog = threading.Timer(wedged_s, remove_mount, [mount.path])
        watchdog.daemon = True
        watchdog.start()
        try:
            yield mount.path
            assert mount.stop() == 0, mount.log
            mount.check_log()
        finally:
            watchdog.cancel()
            mount.remove()


@contextlib.contextmanager
def tmpfs_mount(options: str) -> Iterator[Path]:
    with _place() as place:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], check=True, timeout=DEADLINE_S)
        try:
            yield place
        finally:
            subprocess.run(["umount", "-l", place], check=True, timeout=DEADLINE_S)


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Here and in what is started meanwhile: a request and its answer need no other core to wake up."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
