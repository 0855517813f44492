"""Real mounts for tests: `mount(options)` makes one for a test, `shared_mount(options)` one for all that use it."""

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.real_mount import DirectoryFactory, Mount, MountFactory

_numbers = itertools.count(1)


@pytest.fixture(scope="session", autouse=True)
def dev_fuse() -> None:
    """A machine without it cannot prove anything here: that is a failure, not a reason to skip."""
    assert Path("/dev/fuse").exists(), "/dev/fuse is missing: the tests of tests/mount need it (modprobe fuse)"


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[MountFactory]:
    """Mounts of this test alone, at most one for each call; all are gone after it."""
    mounts: list[Mount] = []

    def make(options: str = "size=16M") -> Mount:
        base = tmp_path / f"mount{len(mounts)}"
        base.mkdir()
        mounts.append(Mount(base, options))
        return mounts[-1]

    yield make
    for made in mounts:
        made.remove()
    for made in mounts:
        made.check_log()


@pytest.fixture(scope="session")
def shared_mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountFactory]:
    """One mount for each set of options and session. Tests that share it keep to a directory of their own."""
    mounts: dict[str, Mount] = {}

    def make(options: str = "size=64M") -> Mount:
        if options not in mounts:
            mounts[options] = Mount(tmp_path_factory.mktemp("shared"), options)
        return mounts[options]

    yield make
    for made in mounts.values():
        made.remove()


@pytest.fixture
def own_directory(shared_mount: MountFactory) -> Iterator[DirectoryFactory]:
    """own_directory(options): a new directory on a shared mount; the daemon must come through the test unharmed."""
    logged: dict[Mount, int] = {}

    with contextlib.ExitStack() as watchdogs:

        def make(options: str = "size=64M") -> Path:
            shared = shared_mount(options)
            if shared not in logged:
                logged[shared] = len(shared.log)
                watchdogs.enter_context(shared.watched())
            directory = shared.path / f"test{next(_numbers)}"
            directory.mkdir()
            return directory

        yield make
    for shared, seen in logged.items():
        assert shared.process.poll() is None, f"the daemon ended: {shared.log}"
        assert "Traceback" not in shared.log[seen:], shared.log[seen:]


@pytest.fixture
def place(own_directory: DirectoryFactory) -> Path:
    """A new directory on a mount with default options."""
    return own_directory("size=64M")
