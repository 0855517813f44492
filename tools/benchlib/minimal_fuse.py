"""P5's peer: the smallest possible pyfuse3 filesystem, and the request rates of any mount.

minimal_server serves it: whoever measures with this module may need to load pyfuse3 in another way.
"""

import ctypes
import os
import re
import resource
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import monotonic, perf_counter
from typing import NamedTuple

FILE_NAME = "file"
_MOUNT_DEADLINE_S = 20.0
_EXIT_DEADLINE_S = 10.0
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


class Mount(NamedTuple):
    """A live minimal filesystem: where it is, its one file, and the process that serves it."""

    mountpoint: Path
    file: Path
    pid: int


@contextmanager
def mounted(memfd: bool = False) -> Iterator[Mount]:
    """The filesystem in its own process, on a new directory; both are gone afterwards.

    RuntimeError when it cannot be mounted.
    """
    mountpoint = Path(tempfile.mkdtemp(prefix="minimal_fuse.")).resolve()
    command = [sys.executable, "-m", "benchlib.minimal_server", *["--memfd"] * memfd, str(mountpoint)]
    try:
        with daemon(mountpoint, command) as pid:
            yield Mount(mountpoint, mountpoint / FILE_NAME, pid)
    finally:
        mountpoint.rmdir()


@contextmanager
def daemon(mountpoint: Path, command: list[str]) -> Iterator[int]:
    """The pid of a filesystem's process, while it serves; afterwards, and if this process dies, it ends and its
    mount goes.

    RuntimeError when it ends or stays silent before the mount shows in /proc/self/mountinfo; then, and only
    then, what it wrote to stderr is passed on.
    """
    path = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
            stderr=errors,
            preexec_fn=_terminate_with_parent,
        )
        try:
            try:
                _wait_until_mounted(mountpoint, process.pid)
            except RuntimeError as error:
                errors.seek(0)
                last = errors.read().decode(errors="replace").rstrip().rpartition("\n")[2]
                raise RuntimeError(f"{error}: {last}" if last else str(error)) from None
            yield process.pid
        finally:
            _end(process)
            if is_mounted(mountpoint):
                subprocess.run(["umount", "-l", str(mountpoint)], check=True)


def is_mounted(mountpoint: Path) -> bool:
    """Whether something is mounted there, by mountinfo alone: a stat would wait for the daemon."""
    return _listed(mountpoint, Path("/proc/self/mountinfo").read_bytes())


def getattr_rate(path: Path, count: int = 2000, repeats: int = 5) -> float:
    """GETATTR requests a second that a mount answers for this file: the median of the repeats.

    It asks through an O_PATH descriptor, as os.stat(path) would be a LOOKUP as well on a mount whose
    names are not cached. RuntimeError when the kernel answers from its cache.
    """
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        return _rate(lambda: os.fstat(fd), count, repeats)
    finally:
        os.close(fd)


def rejected_write_rate(path: Path, count: int = 2000, repeats: int = 5) -> float:
    """WRITE requests a second that a mount refuses with EPERM: the median of the repeats.

    RuntimeError when a write succeeds or the kernel refuses it without asking; other errors propagate.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)

    def rejected_write() -> None:
        try:
            os.pwrite(fd, b"x", 0)
        except PermissionError:
            return
        raise RuntimeError(f"{path}: the write was accepted")

    try:
        return _rate(rejected_write, count, repeats)
    finally:
        os.close(fd)


def _rate(request: Callable[[], object], count: int, repeats: int) -> float:
    rates = []
    for _ in range(repeats):
        slept = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
        start = perf_counter()
        for _ in range(count):
            request()
        rates.append(count / (perf_counter() - start))
        # Whoever waits for a daemon gives up the processor; an answer from the cache comes without.
        slept = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - slept
        if slept < count / 2:
            raise RuntimeError(f"{count} requests, {slept} waits: the kernel answers without the daemon")
    return median(rates)


def _terminate_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _wait_until_mounted(mountpoint: Path, pid: int) -> None:
    deadline_s = monotonic() + _MOUNT_DEADLINE_S
    pidfd = os.pidfd_open(pid)
    try:
        with open("/proc/self/mountinfo", "rb", buffering=0) as mountinfo:
            poll = select.poll()
            poll.register(mountinfo, select.POLLPRI)
            poll.register(pidfd, select.POLLIN)
            while not _listed(mountpoint, mountinfo.read()):
                events = poll.poll(max(0.0, deadline_s - monotonic()) * 1e3)
                if not events:
                    raise RuntimeError(f"{mountpoint}: not mounted after {_MOUNT_DEADLINE_S:.0f} s")
                if any(fd == pidfd for fd, _ in events):
                    raise RuntimeError(f"{mountpoint}: the filesystem ended before it was mounted")
                mountinfo.seek(0)
    finally:
        os.close(pidfd)


def _listed(mountpoint: Path, mountinfo: bytes) -> bool:
    # proc(5): field 5 is the mount point, with blanks and backslashes in octal.
    fields = (line.split(b" ")[4] for line in mountinfo.splitlines())
    decoded = (re.sub(rb"\\([0-7]{3})", lambda octal: bytes([int(octal[1], 8)]), field) for field in fields)
    return os.fsencode(mountpoint) in decoded


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_EXIT_DEADLINE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
