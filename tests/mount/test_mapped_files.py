"""What a process stored through a shared mapping is data for whoever copies the file, also while the kernel has not
written it back: as on tmpfs."""

import contextlib
import errno
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.real_mount import DEADLINE_S, MountFactory, block_count, fallocate, opened, refused, sh

PAGE = mmap.PAGESIZE
SIZE = 64 * PAGE
STORED = {0: b"first", 5 * PAGE + 7: b"middle", 40 * PAGE: b"far", SIZE - 4: b"last"}

Mapped = tuple[Path, mmap.mmap]


@pytest.fixture
def mapped(place: Path) -> Iterator[Mapped]:
    """A file that is one hole, mapped, its handle closed."""
    with opened(place / "f", os.O_RDWR | os.O_CREAT) as fd:
        os.ftruncate(fd, SIZE)
        memory = mmap.mmap(fd, SIZE)
    with memory:
        yield place / "f", memory


def store(memory: mmap.mmap, at: int, what: bytes) -> None:
    memory[at : at + len(what)] = what


def seek(path: Path, offset: int, whence: int) -> int:
    with opened(path, os.O_RDONLY) as fd:
        return os.lseek(fd, offset, whence)


@pytest.mark.parametrize(
    "command",
    ["cp f g", "cp -a f g", "cp --sparse=always f g", "tar cSf t f; mkdir d; tar xf t -C d; mv d/f g"],
)
@pytest.mark.parametrize(
    "before",
    [
        "true",
        "printf written | dd of=f bs=4K seek=20 conv=notrunc status=none",
        "fallocate -l 256K f",
        "cat f > /dev/null; stat f > /dev/null; ls -l > /dev/null",  # pages and attributes are in the kernel's cache
    ],
)
def test_a_copy_has_what_another_process_stored_through_a_mapping(place: Path, command: str, before: str) -> None:
    sh(f"truncate -s {SIZE} f; {before}", place)
    with storing(place / "f"):
        sh(command, place)
        copied = (place / "g").read_bytes()
        assert copied == (place / "f").read_bytes()
    assert [copied[at : at + len(what)] for at, what in STORED.items()] == list(STORED.values())


@contextlib.contextmanager
def storing(path: Path) -> Iterator[None]:
    """A process that mapped the file and stored to it. The test itself must not: a child of it that closes its copy of
    the handle has the kernel write back."""
    code = (
        "import mmap, os, sys\n"
        f"memory = mmap.mmap(os.open({str(path)!r}, os.O_RDWR), {SIZE})\n"
        f"for at, what in {STORED!r}.items(): memory[at : at + len(what)] = what\n"
        "print('stored', flush=True)\n"
        "sys.stdin.read()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "stored\n"
        yield
    finally:
        process.communicate(timeout=DEADLINE_S)


def test_holes_stay_holes_beside_a_mapping(mapped: Mapped) -> None:
    path, memory = mapped
    with refused(errno.ENXIO):
        seek(path, 0, os.SEEK_DATA)
    for page in (3, 4, 9):
        store(memory, page * PAGE, b"x")
    data = [seek(path, 0, os.SEEK_DATA), seek(path, 5 * PAGE, os.SEEK_DATA)]
    holes = [seek(path, 0, os.SEEK_HOLE), seek(path, 3 * PAGE, os.SEEK_HOLE), seek(path, 9 * PAGE, os.SEEK_HOLE)]
    assert (data, holes) == ([3 * PAGE, 9 * PAGE], [0, 5 * PAGE, 10 * PAGE])
    with refused(errno.ENXIO):
        seek(path, 10 * PAGE, os.SEEK_DATA)
    assert memory[3 * PAGE : 3 * PAGE + 2] == b"x\0"


def test_a_run_of_data_that_was_stored_in_several_ways_is_one(mapped: Mapped) -> None:
    path, memory = mapped
    store(memory, 0, bytes(range(256)) * (2 * PAGE // 256))
    with opened(path, os.O_WRONLY) as fd:
        os.pwrite(fd, b"w" * PAGE, 2 * PAGE)
    store(memory, 3 * PAGE, b"m" * PAGE)
    with opened(path, os.O_WRONLY) as fd:
        os.pwrite(fd, b"w" * PAGE, 4 * PAGE)
    store(memory, 5 * PAGE, b"m" * PAGE)
    assert seek(path, 0, os.SEEK_HOLE) == 6 * PAGE
    assert seek(path, 1, os.SEEK_DATA) == 1


def test_a_file_whose_first_bytes_were_stored_through_a_mapping_has_blocks(mapped: Mapped) -> None:
    path, memory = mapped
    assert block_count(path) == 0
    store(memory, PAGE, b"x")
    assert block_count(path) == 8


def test_a_file_that_was_looked_at_before_it_was_opened_to_map(place: Path) -> None:
    path = place / "f"
    path.touch()
    os.truncate(path, SIZE)
    assert block_count(path) == 0  # the kernel may keep that for an hour
    with opened(path, os.O_RDWR) as fd, mmap.mmap(fd, SIZE) as memory:
        store(memory, 0, b"x")
        assert block_count(path) == 8


def test_in_a_full_pool_what_may_be_data_is_data(mount: MountFactory) -> None:
    """The kernel cannot write back what was stored, and keeps it in its cache."""
    place = mount("size=1M").path
    with opened(place / "f", os.O_RDWR | os.O_CREAT) as fd, opened(place / "full", os.O_WRONLY | os.O_CREAT) as full:
        os.pwrite(fd, b"written", 0)
        os.ftruncate(fd, SIZE)
        fallocate(full, 0, 0, os.statvfs(place).f_bfree * PAGE)
        memory = mmap.mmap(fd, SIZE)
        store(memory, 9 * PAGE, b"x")
        assert os.lseek(fd, PAGE, os.SEEK_DATA) == PAGE
        assert os.lseek(fd, 0, os.SEEK_HOLE) == SIZE
        sh(f"cp f {place.parent}/copy", place)
        assert (place.parent / "copy").read_bytes() == memory[:]
        memory.close()


def test_in_a_full_pool_tar_keeps_what_was_stored_in_a_file_without_blocks(mount: MountFactory) -> None:
    """tar takes a file of no blocks for one hole, and does not look for data."""
    place = mount("size=1M").path
    sh(f"truncate -s {SIZE} f; fallocate -l $(( $(stat -f -c %f .) * {PAGE} )) full", place)
    with storing(place / "f"):
        assert block_count(place / "f") == 8
        sh(f"tar cSf - f | tar xf - -C {place.parent}", place)
        copied = (place.parent / "f").read_bytes()
        assert [copied[at : at + len(what)] for at, what in STORED.items()] == list(STORED.values())


def test_looking_for_data_loses_none_in_a_pool_that_is_nearly_full(mount: MountFactory) -> None:
    """There is room for one page, and four were stored to."""
    place = mount("size=1M").path
    sh(f"truncate -s {SIZE} f; fallocate -l $(( ($(stat -f -c %f .) - 1) * {PAGE} )) full", place)
    with storing(place / "f"):
        assert block_count(place / "f") == 8
        sh(f"cp f {place.parent}/f || true", place)  # closing f is ENOSPC: the kernel tried to write it back
        (place / "full").unlink()
        sh(f"cp f {place.parent}/again", place)
        for copy in (place.parent / "f", place.parent / "again"):
            copied = copy.read_bytes()
            assert [copied[at : at + len(what)] for at, what in STORED.items()] == list(STORED.values())


def test_a_handle_that_was_opened_after_a_future_write_seal_is_no_writer_for_the_write_seal(place: Path) -> None:
    """As a memfd, where it has no writable mapping and can never get one."""
    sh("truncate -s 4K f; setfattr -n user.memfsd.seals -v future-write f", place)
    with opened(place / "f", os.O_RDWR) as fd:
        with refused(errno.ENODEV):
            mmap.mmap(fd, PAGE)
        sh("setfattr -n user.memfsd.seals -v write f", place)
        assert os.getxattr(place / "f", "user.memfsd.seals") == b"write,future-write"


def test_a_handle_that_was_opened_before_a_future_write_seal_stays_a_writer(place: Path) -> None:
    sh("truncate -s 4K f", place)
    with opened(place / "f", os.O_RDWR):
        sh("setfattr -n user.memfsd.seals -v future-write f", place)
        with refused(errno.EBUSY):
            os.setxattr(place / "f", "user.memfsd.seals", b"write")
