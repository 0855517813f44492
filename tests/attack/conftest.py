"""A battlefield for each open mode: a mount that every user may use, and a sealed file with a running guest."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.attack.battlefield import Battlefield, like_tmp, open_for_everyone
from tests.support.real_mount import Mount

MountFactory = Callable[[str], Mount]


@pytest.fixture(scope="session")
def anyones_directory() -> Iterator[Path]:
    """pytest's own are closed to other users."""
    directory = Path(tempfile.mkdtemp(prefix="memfsd-attack-"))
    open_for_everyone(directory)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="session")
def mount(anyones_directory: Path) -> Iterator[MountFactory]:
    """mount(options): one for all tests that ask for these options. Each keeps to files of its own."""
    mounts: dict[str, Mount] = {}

    def make(options: str) -> Mount:
        if options not in mounts:
            base = like_tmp(Path(tempfile.mkdtemp(dir=anyones_directory)))
            mounts[options] = Mount(base, f"size=32M,allow_other,{options}")
        return mounts[options]

    yield make
    for made in mounts.values():
        made.remove()
    for made in mounts.values():
        made.check_log()


@pytest.fixture
def directory(tmp_path: Path) -> Callable[[Mount], Path]:
    """directory(mount): a new one of this test's own."""

    def make(mounted: Mount) -> Path:
        path = mounted.path / tmp_path.name
        path.mkdir()
        return open_for_everyone(path)

    return make


@pytest.fixture(scope="module")
def battlefields(anyones_directory: Path) -> Iterator[dict[str, Battlefield]]:
    fields: dict[str, Battlefield] = {}
    try:
        for mode in ("strict", "rw"):
            fields[mode] = Battlefield(mode, anyones_directory)
        yield fields
    finally:
        for field in fields.values():
            field.end()
