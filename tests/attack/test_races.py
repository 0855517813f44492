"""Whatever the order in which some open, map and read while another seals: it is EBUSY, or sealed and nothing is read.

Whoever reads notes whether the seal was there *before* an access began; such an access must fail, and what it left in
the buffer must not be the file's old contents.
"""

import contextlib
import errno
import fcntl
import itertools
import mmap
import os
import signal
import struct
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from memfsd.uapi.names import IOC_ADD_SEALS
from memfsd.uapi.seals import Seal
from tests.attack.conftest import MountFactory
from tests.attack.syscalls import MAP_PRIVATE, PROT_READ, call, mapped
from tests.attack.target import PAGE
from tests.support.real_mount import Mount, refused
from tests.support.threads import DEADLINE_S, Beside

ROUNDS = 40
READERS = 3
MADV_POPULATE_READ = 22
OLD = b"old contents of the file" * 200


class Race:
    """One file, its readers on threads, and who seals it."""

    def __init__(self, path: Path, open_mode: str) -> None:
        self.path = path
        self._open_mode = open_mode
        self._sealed = threading.Event()
        self._stop = threading.Event()
        self.looked = 0
        self.leaks: list[str] = []

    def run(self, seal: Callable[[Path], bool]) -> None:
        """Seal while others read, trying again as long as it is EBUSY."""
        barrier = threading.Barrier(READERS + 1)
        threads = [threading.Thread(target=self._read, args=(barrier, number)) for number in range(READERS)]
        for thread in threads:
            thread.start()
        barrier.wait()
        busy = 0
        while not seal(self.path):
            busy += 1
            # Readers that never let go could keep the file open forever; EBUSY is the right answer all that time.
            if busy >= 2:
                self._stop.set()
        self._sealed.set()
        for thread in threads:
            thread.join()

    def _read(self, barrier: threading.Barrier, number: int) -> None:
        barrier.wait()
        for attempt in range(400):
            was_sealed = self._sealed.is_set()
            if self._stop.is_set() and not was_sealed:
                self._sealed.wait(DEADLINE_S)
                continue
            self._look(was_sealed, map_it=(attempt + number) % 2 == 0)
            if was_sealed:
                return

    def _look(self, was_sealed: bool, *, map_it: bool) -> None:
        self.looked += 1
        try:
            fd = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            if error.errno != errno.EPERM:
                raise
            return
        try:
            if was_sealed and self._open_mode == "strict":
                self.leaks.append("opened for reading after the seal")
            data = read_mapping(fd) if map_it else read(fd)
            if was_sealed and data is not None:
                self.leaks.append(f"read {data[:24]!r} after the seal")
        finally:
            os.close(fd)


def read(fd: int) -> bytes | None:
    """None: refused."""
    try:
        return os.pread(fd, PAGE, 0)
    except OSError as error:
        if error.errno != errno.EPERM:
            raise
        return None


def read_mapping(fd: int) -> bytes | None:
    """None: not even a page could be made present; a touch would be SIGBUS, and the end of the test."""
    at = mapped(fd, PAGE, PROT_READ, MAP_PRIVATE)
    out, into = os.pipe()
    try:
        call("madvise", at, PAGE, MADV_POPULATE_READ)
        call("write", into, at, PAGE)  # the kernel's own access: EFAULT where ours would be SIGBUS
        return os.read(out, PAGE)
    except OSError as error:
        if error.errno != errno.EFAULT:
            raise
        return None
    finally:
        call("munmap", at, PAGE)
        os.close(out)
        os.close(into)


def seal_by_xattr(path: Path) -> bool:
    with busy_is_no() as answer:
        os.setxattr(path, "user.memfsd.seals", b"guest")
        answer.append(True)
    return bool(answer)


def seal_truncating(path: Path) -> bool:
    with busy_is_no() as answer:
        os.setxattr(path, "user.memfsd.seals", b"guest,truncate")
        answer.append(True)
    return bool(answer)


def seal_by_ioctl(path: Path) -> bool:
    fd = os.open(path, os.O_WRONLY)
    try:
        with busy_is_no() as answer:
            fcntl.ioctl(fd, IOC_ADD_SEALS, struct.pack("I", Seal.GUEST))
            answer.append(True)
        return bool(answer)
    finally:
        os.close(fd)


@contextlib.contextmanager
def busy_is_no() -> Iterator[list[bool]]:
    answer: list[bool] = []
    try:
        yield answer
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise


@pytest.mark.parametrize("open_mode", ["strict", "rw"])
@pytest.mark.parametrize(
    ("seal", "contents"),
    [(seal_by_xattr, b""), (seal_truncating, OLD), (seal_by_ioctl, b""), (seal_by_ioctl, OLD)],
    ids=["setxattr guest", "setxattr guest,truncate", "ioctl", "ioctl, seal_nonempty=truncate"],
)
def test_a_seal_that_races_with_readers_is_busy_or_shuts_them_out(
    mount: MountFactory,
    directory: Callable[[Mount], Path],
    open_mode: str,
    seal: Callable[[Path], bool],
    contents: bytes,
) -> None:
    truncates = "truncate" if seal is seal_by_ioctl and contents else "refuse"
    place = directory(mount(f"open={open_mode},seal_nonempty={truncates}"))
    looked = 0
    for number in range(ROUNDS):
        path = place / f"file{number}"
        path.write_bytes(contents)
        race = Race(path, open_mode)
        race.run(seal)
        looked += race.looked
        assert race.leaks == []
        assert path.stat().st_size == 0
        path.unlink()
    assert looked > ROUNDS, "readers were at it when the seals came"


def test_processes_that_read_while_another_seals_never_see_the_guest_or_the_old_contents_after_it(
    mount: MountFactory, directory: Callable[[Mount], Path]
) -> None:
    """As with threads, over processes; in memory that all share, byte 0 says: sealed, byte 1 counts what was wrong."""
    place = directory(mount("open=strict"))
    shared = mmap.mmap(-1, PAGE)
    for number in range(ROUNDS // 2):
        path = place / f"file{number}"
        path.write_bytes(OLD)
        shared[:3] = b"\0\0\0"
        children = [forked(partial(read_until_refused, path, shared)) for _ in range(2)]
        busy = 0
        while not seal_truncating(path):
            busy += 1
            shared[2] = busy >= 2
        shared[0] = 1
        for child in children:
            _, status = os.waitpid(child, 0)
            assert status == 0, "a reader got something after the seal"
        path.unlink()


def forked(body: Callable[[], int]) -> int:
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(int(DEADLINE_S))
        os._exit(body())
    return child


def read_until_refused(path: Path, shared: mmap.mmap) -> int:
    """The exit status: 0 when the file could be read before the seal only."""
    while True:
        was_sealed = shared[0]
        if shared[2] and not was_sealed:
            os.sched_yield()  # not to keep the one that seals from running
            continue
        try:
            fd = os.open(path, os.O_RDONLY)
        except PermissionError:
            return 0
        if was_sealed:
            return 1
        with contextlib.suppress(OSError):
            os.read(fd, PAGE)
        os.close(fd)


@pytest.mark.parametrize("open_mode", ["strict", "rw"])
def test_writers_that_race_with_the_seal_write_before_it_or_not_at_all(
    mount: MountFactory, directory: Callable[[Mount], Path], open_mode: str
) -> None:
    """Their handles, write-only, do not hinder it. What they wrote goes, and they never add to a sealed file."""
    place = directory(mount(f"open={open_mode}"))
    for number in range(ROUNDS):
        path = place / f"file{number}"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        started = threading.Event()

        def write_until_refused(fd: int = fd, started: threading.Event = started) -> int | None:
            for offset in itertools.count(step=PAGE):
                try:
                    os.pwrite(fd, OLD[:PAGE], offset % (16 * PAGE))
                except OSError as error:
                    return error.errno
                started.set()
            raise AssertionError

        writer = Beside(write_until_refused)
        assert started.wait(DEADLINE_S)
        assert seal_truncating(path)
        assert writer.result() == errno.EPERM
        assert path.stat().st_size == 0 and path.stat().st_blocks == 0
        os.close(fd)
        path.unlink()


@pytest.mark.parametrize("seal", [seal_truncating, seal_by_ioctl], ids=["setxattr", "ioctl"])
def test_cached_pages_are_gone_before_anyone_asks_for_the_size(
    mount: MountFactory, directory: Callable[[Mount], Path], seal: Callable[[Path], bool]
) -> None:
    """splice reads the page cache, also of a file that bypasses it, up to the size that the kernel remembers."""
    path = directory(mount("open=rw,seal_nonempty=truncate")) / "file"
    path.write_bytes(OLD)
    assert path.read_bytes() == OLD
    while not seal(path):
        pass
    out, into = os.pipe()
    reader = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(PermissionError):
            assert os.splice(reader, into, PAGE, offset_src=0) == 0
    finally:
        for fd in (reader, out, into):
            os.close(fd)


@pytest.mark.parametrize("open_mode", ["strict", "rw"])
def test_what_the_page_cache_held_is_gone_with_the_seal(
    mount: MountFactory, directory: Callable[[Mount], Path], open_mode: str
) -> None:
    path = directory(mount(f"open={open_mode}")) / "file"
    path.write_bytes(OLD)
    assert path.read_bytes() == OLD
    writer = os.open(path, os.O_WRONLY)
    assert os.fstat(writer).st_size == len(OLD)
    while not seal_truncating(path):
        pass
    assert os.fstat(writer).st_size == 0 and path.stat().st_size == 0
    os.truncate(path, 4 * PAGE)
    with refused(errno.EACCES):
        mapped(writer, PAGE, PROT_READ, MAP_PRIVATE)
    with refused(errno.EBADF):
        os.pread(writer, PAGE, 0)
    if open_mode == "rw":
        reader = os.open(path, os.O_RDONLY)
        assert read(reader) is None
        assert read_mapping(reader) is None
        out, into = os.pipe()
        with refused(errno.EPERM):
            os.splice(reader, into, PAGE, offset_src=0)
        for fd in (reader, out, into):
            os.close(fd)
    os.close(writer)
