"""A real memfsd mount, its daemon a subprocess, and small words for what tests do there.

Nothing here touches a mount to find out about it: a stat of a wedged mount never returns. mountinfo and /sys tell.
"""

import contextlib
import ctypes
import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest

from tests.support.threads import until

BIN = Path(sys.executable).parent
"""Where memfsd and memfs are installed."""
DEADLINE_S = 60
"""Of a command, or of what a mount has to do: no busy machine takes as long."""
ENVIRONMENT = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "LC_ALL": "C"}
PAGE = 4096
KEEP_SIZE, PUNCH_HOLE, COLLAPSE_RANGE, ZERO_RANGE, INSERT_RANGE = 1, 2, 8, 16, 32
SEALS = "user.memfsd.seals"

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_libc.renameat2.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]


def mount_minor(mountpoint: Path) -> int | None:
    """The device minor of a memfsd mount, or None when nothing is mounted there."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[4] == str(mountpoint) and " - fuse.memfsd " in line:
            return int(fields[2].split(":")[1])
    return None


def remove_mount(mountpoint: Path) -> None:
    """Free everyone who waits on it and take it away, also when its daemon hangs."""
    while (minor := mount_minor(mountpoint)) is not None:
        abort = Path(f"/sys/fs/fuse/connections/{minor}/abort")
        with contextlib.suppress(FileNotFoundError, OSError):
            abort.write_text("1")
        subprocess.run(["umount", "-l", mountpoint], check=True, timeout=DEADLINE_S)


WITH_US = ("setpriv", "--pdeathsig", "TERM")
"""Before a command: it is asked to end when the thread that started it does."""


class Mount:
    """`memfsd -f` in a subprocess: `path` is live once constructed."""

    def __init__(self, base: Path, options: str, *arguments: str) -> None:
        self.path = base / "mnt"
        self.path.mkdir()
        self.socket = base / "memfsd.sock"
        self._log = base / "stderr"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*WITH_US, BIN / "memfsd", "-f", "-o", f"socket={self.socket},{options}", *arguments, self.path],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=ENVIRONMENT,
            )
        try:
            until(lambda: self.is_mounted or self.process.poll() is not None, f"memfsd -o {options} mounts")
            assert self.is_mounted, f"memfsd ended with {self.process.returncode}: {self.log}"
        except BaseException:
            self.remove()
            raise

    @property
    def is_mounted(self) -> bool:
        return mount_minor(self.path) is not None

    @property
    def log(self) -> str:
        return self._log.read_text()

    def check_log(self) -> None:
        assert "Traceback" not in self.log, self.log

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it as a person does: its exit status."""
        self.process.send_signal(number)
        return self.process.wait(DEADLINE_S)

    def remove(self) -> None:
        """Whatever became of it, no process and no mount stay."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(DEADLINE_S)
            except subprocess.TimeoutExpired:
                remove_mount(self.path)
                self.process.kill()
                self.process.wait(DEADLINE_S)
        remove_mount(self.path)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """A system call that hangs in the mount cannot be interrupted from within: after a deadline, abort it."""
        watchdog = threading.Timer(DEADLINE_S, remove_mount, [self.path])
        watchdog.start()
        try:
            yield
        finally:
            watchdog.cancel()
            watchdog.join()


class MountFactory(Protocol):
    def __call__(self, options: str = ...) -> Mount: ...


DirectoryFactory = Callable[[str], Path]


def sh(command: str, cwd: Path, status: int = 0, **more: str) -> str:
    """What a shell command printed, stderr included; it must end with this status."""
    done = run(command, cwd, **more)
    assert done.returncode == status, f"$ {command}\nended with {done.returncode}: {done.stdout}"
    return done.stdout


def run(command: str, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """stderr is part of stdout, as a person sees it."""
    return subprocess.run(
        ["/bin/bash", "-c", command],
        cwd=cwd,
        env={**ENVIRONMENT, **more},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


@contextlib.contextmanager
def refused(number: int) -> Iterator[None]:
    """The body must fail with this errno and no other."""
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is compared below, where it reads better
        yield
    assert caught.value.errno == number, f"{caught.value}, not {errno.errorcode[number]}"


@contextlib.contextmanager
def opened(path: Path, flags: int, mode: int = 0o600) -> Iterator[int]:
    fd = os.open(path, flags, mode)
    try:
        yield fd
    finally:
        os.close(fd)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    if _libc.fallocate(fd, mode, offset, length) != 0:
        raise OSError(ctypes.get_errno(), "fallocate")


def renameat2(old: Path, new: Path, flags: int) -> None:
    if _libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags) != 0:
        raise OSError(ctypes.get_errno(), "renameat2")


def linkat(fd: int, path: Path) -> None:
    """A name for an open file."""
    if _libc.linkat(-100, b"/proc/self/fd/%d" % fd, -100, os.fsencode(path), 0x400) != 0:
        raise OSError(ctypes.get_errno(), "linkat")


def seal(path: Path, seals: str = "guest") -> None:
    os.setxattr(path, SEALS, seals.encode())


def seals_of(path: Path) -> str:
    return os.getxattr(path, SEALS).decode()


def block_count(path: Path) -> int:
    """512-byte blocks."""
    return os.stat(path).st_blocks


def free_frames(directory: Path) -> int:
    return os.statvfs(directory).f_bfree
