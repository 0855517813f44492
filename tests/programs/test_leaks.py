"""After hard use and clean-up, without unmounting, everything that is counted is back where it was.

The counts are those of `memfs stat MOUNTPOINT --json`. The kernel forgets inodes when its caches are dropped.
"""

import contextlib
import ctypes
import json
import mmap
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from memfsd.uapi.names import XATTR_COUNTS
from tests.programs.conftest import LONG
from tests.support.file_handles import drop_inodes
from tests.support.real_mount import (
    BIN,
    DEADLINE_S,
    ENVIRONMENT,
    KEEP_SIZE,
    PAGE,
    PUNCH_HOLE,
    Mount,
    MountFactory,
    fallocate,
    free_frames,
    opened,
    seal,
)
from tests.support.threads import until

OPERATIONS = 20_000 if LONG else 1500
GUESTS = 40 if LONG else 4
FILE_BYTES = 1 << 20
SETTLING_S = 60.0
"""The daemon's idle worker threads end after ten seconds."""


def counts(mount: Mount) -> dict[str, int]:
    done = subprocess.run(
        [BIN / "memfs", "stat", mount.path, "--json"], capture_output=True, text=True, check=True, timeout=DEADLINE_S
    )
    report = json.loads(done.stdout)
    return {name: value for name, value in report.items() if isinstance(value, int)}


def held(mount: Mount) -> tuple[bytes, int]:
    """The counts without a process that asks for them."""
    drop_inodes(mount.path)
    return os.getxattr(mount.path, XATTR_COUNTS), free_frames(mount.path)


@pytest.fixture
def used(mount: MountFactory) -> Iterator[Mount]:
    """A mount for a test to use hard and to clean up; then nothing may be left of it."""
    mounted = mount("size=64M,open=rw")
    was = held(mounted)
    before = counts(mounted)
    assert {"inodes", "handles", "lookups", "windows", "fds", "threads", "free", "shared", "private"} <= before.keys()
    yield mounted
    deadline = time.monotonic() + SETTLING_S
    while held(mounted) != was and time.monotonic() < deadline:
        time.sleep(0.05)
    after = counts(mounted)
    left = {name: (before[name], after[name]) for name in before if after[name] != before[name]}
    assert not left, f"(before, after): {left}"
    checked = subprocess.run([BIN / "memfs", "check", mounted.path], capture_output=True, text=True, timeout=DEADLINE_S)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_counts_show_what_is_held(used: Mount) -> None:
    """The other tests prove nothing if the counts do not move."""
    before = counts(used)
    with opened(used.path / "file", os.O_RDWR | os.O_CREAT) as fd:
        os.pwrite(fd, b"x", 0)
        held = counts(used)
        assert held["handles"] == before["handles"] + 1
        assert held["inodes"] == before["inodes"] + 1
        assert held["lookups"] > before["lookups"]
        assert held["shared"] == before["shared"] + 1
        os.unlink(used.path / "file")
        assert counts(used)["inodes"] == before["inodes"] + 1, "open, but without a name"


class User:
    """Random system calls on few names, so that they meet; whatever fails, fails."""

    def __init__(self, root: Path, seed: int) -> None:
        self._root = root
        self._random = random.Random(seed)
        self._fds: list[int] = []
        self._maps: list[mmap.mmap] = []

    def run(self, operations: int) -> None:
        actions: list[Callable[[], object]] = [
            *(self._open, self._open, self._close, self._write, self._read, self._list, self._rename, self._link),
            *(self._unlink, self._directory, self._map, self._truncate, self._attributes, self._punch, self._stat),
        ]
        for _ in range(operations):
            with contextlib.suppress(OSError, ValueError):
                self._random.choice(actions)()
        for mapping in self._maps:
            mapping.close()
        for fd in self._fds:
            os.close(fd)

    def _name(self) -> Path:
        words = self._random.choices(("a", "b", "c", "d"), k=self._random.randint(1, 3))
        return self._root.joinpath(*words)

    def _fd(self) -> int:
        return self._random.choice(self._fds) if self._fds else -1

    def _open(self) -> None:
        flags = self._random.choice((os.O_RDONLY, os.O_WRONLY, os.O_RDWR))
        for flag in (os.O_CREAT, os.O_CREAT, os.O_EXCL, os.O_TRUNC, os.O_APPEND, os.O_DIRECT, os.O_TMPFILE):
            flags |= flag if self._random.random() < 0.3 else 0
        self._fds.append(os.open(self._name(), flags, 0o600))

    def _close(self) -> None:
        os.close(self._fds.pop(self._random.randrange(len(self._fds) or 1)) if self._fds else -1)

    def _write(self) -> None:
        os.pwrite(self._fd(), bytes(self._random.randint(1, 3 * PAGE)), self._random.randint(0, 8 * PAGE))

    def _read(self) -> None:
        os.pread(self._fd(), 3 * PAGE, self._random.randint(0, 8 * PAGE))

    def _list(self) -> None:
        with os.scandir(self._name().parent) as entries:
            for _ in zip(range(self._random.randint(0, 5)), entries, strict=False):
                pass

    def _rename(self) -> None:
        os.rename(self._name(), self._name())

    def _link(self) -> None:
        self._random.choice((os.link, os.symlink))(self._name(), self._name())

    def _unlink(self) -> None:
        self._random.choice((os.unlink, os.unlink, os.rmdir))(self._name())

    def _directory(self) -> None:
        os.mkdir(self._name())

    def _map(self) -> None:
        mapping = mmap.mmap(self._fd(), PAGE)
        self._maps.append(mapping)
        mapping[0] = 1
        if len(self._maps) > 3:
            self._maps.pop(0).close()

    def _truncate(self) -> None:
        os.ftruncate(self._fd(), self._random.randint(0, 8 * PAGE))

    def _attributes(self) -> None:
        os.setxattr(self._name(), f"user.{self._random.randint(0, 3)}", b"value")
        os.chmod(self._name(), 0o700)

    def _punch(self) -> None:
        fallocate(self._fd(), self._random.choice((0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE)), PAGE, 3 * PAGE)

    def _stat(self) -> None:
        os.stat(self._name())
        os.statvfs(self._name())


def in_processes(bodies: list[Callable[[], None]]) -> None:
    """Each in its own process; all must end well."""
    children = []
    for body in bodies:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                body()
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * len(children)


def test_names_handles_and_mappings_of_several_processes(used: Mount) -> None:
    root = used.path / "tree"
    root.mkdir()
    in_processes([partial(User(root, seed).run, OPERATIONS) for seed in range(3)])
    shutil.rmtree(root)


def test_processes_that_are_killed_in_the_middle_of_it(used: Mount) -> None:
    root = used.path / "tree"
    root.mkdir()
    for seed in range(8):
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                User(root, seed).run(10**9)
            os._exit(1)
        # Kill it in its work, each a little later: requests are the clock.
        until(lambda: any(root.iterdir()), "it makes files")
        for _ in range(100 * seed):
            os.statvfs(used.path)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        shutil.rmtree(root)
        root.mkdir()
    shutil.rmtree(root)


class Guest:
    """kvmsim attached to a new sealed file, its guest having touched all of it."""

    def __init__(self, path: Path) -> None:
        path.touch()
        seal(path)
        os.truncate(path, FILE_BYTES)
        self.path = path
        self.process = subprocess.Popen(
            [BIN / "kvmsim", "attach", path, "--gpa", "0"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=ENVIRONMENT,
        )
        self.tell(f"touch 0 {FILE_BYTES:#x}")
        self.tell("read 0 4")
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert "00 00 00 00" in line, line + self.process.stdout.read()

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def end(self) -> None:
        self.process.communicate(timeout=DEADLINE_S)
        assert self.process.returncode == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=DEADLINE_S)


def test_guests_that_say_bye_that_die_and_that_are_silent(used: Mount) -> None:
    for number in range(GUESTS):
        guest = Guest(used.path / f"guest{number}")
        with opened(guest.path, os.O_WRONLY) as fd:
            fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 0, 16 * PAGE)
        if number % 2:
            guest.end()
            os.unlink(guest.path)
        else:
            os.unlink(guest.path)  # the pairing alone keeps the data
            guest.kill()
    cut_off_while_punches_wait(used)


def cut_off_while_punches_wait(used: Mount) -> None:
    guest = Guest(used.path / "silent")
    os.kill(guest.process.pid, signal.SIGSTOP)
    punch = [str(BIN / "memfs"), "fallocate", "-p", "-l", str(FILE_BYTES), str(guest.path)]
    handles = counts(used)["handles"]
    waiting = [subprocess.Popen(punch, env=ENVIRONMENT, stderr=subprocess.DEVNULL)]
    until(lambda: counts(used)["handles"] > handles, "the first punch has the file open, and now waits for the guest")
    waiting.append(subprocess.Popen(punch, env=ENVIRONMENT, stderr=subprocess.DEVNULL))
    waiting[0].send_signal(signal.SIGINT)  # the kernel tells the daemon FUSE_INTERRUPT
    waiting[0].kill()
    for process in waiting:
        process.wait(DEADLINE_S)
    assert counts(used)["quarantined"] > 0, "who stops and goes on again could still reach it"
    os.kill(guest.process.pid, signal.SIGCONT)
    guest.kill()
    os.unlink(guest.path)


def interrupted(call: Callable[[], object], times: int) -> None:
    """Repeat a call while signals come every millisecond, and interrupt whatever can be interrupted."""
    old = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.siginterrupt(signal.SIGALRM, True)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        for _ in range(times):
            with contextlib.suppress(OSError):
                call()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def test_system_calls_that_signals_interrupt(used: Mount) -> None:
    path = used.path / "file"
    libc = ctypes.CDLL(None)  # Python itself would try again after EINTR

    def everything() -> None:
        fd = libc.open(os.fsencode(path), os.O_RDWR | os.O_CREAT, 0o600)
        if fd >= 0:
            libc.write(fd, bytes(PAGE * 8), PAGE * 8)
            libc.fallocate(fd, 0, ctypes.c_long(0), ctypes.c_long(PAGE * 64))
            libc.fallocate(fd, PUNCH_HOLE | KEEP_SIZE, ctypes.c_long(0), ctypes.c_long(PAGE * 64))
            libc.pread(fd, ctypes.create_string_buffer(PAGE * 8), PAGE * 8, ctypes.c_long(0))
            libc.fsync(fd)
            libc.close(fd)
        libc.unlink(os.fsencode(path))

    interrupted(everything, 3000 if LONG else 300)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
