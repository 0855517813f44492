"""A memfsd of our own, and what it holds. Nothing here waits without a deadline."""

import contextlib
import ctypes
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from memfsd.common.fields import counted
from memfsd.common.observer import Observer
from memfsd.common.stores import store_of
from memfsd.uapi.errors import Refused
from memfsd.uapi.messages import Kind, MemoryFailure, MemoryFailureReply, PageOut, PageOutReply
from memfsd.uapi.names import FSTYPE, XATTR_POOL
from memfsd.uapi.units import Pgoff

DEADLINE_S = 60.0
BIN = Path(sys.executable).parent
_PR_SET_PDEATHSIG = 1


class Failure(Exception):
    """What must not be: the message says it to a person."""


class Levels(NamedTuple):
    """What a process holds now."""

    rss_kib: int
    fds: int
    threads: int


def until(true: Callable[[], bool], what: str, deadline_s: float = DEADLINE_S) -> None:
    end = time.monotonic() + deadline_s
    pause = threading.Event()
    while not true():
        if time.monotonic() > end:
            raise Failure(f"within {deadline_s:.0f} s it did not come true that {what}")
        pause.wait(0.01)


class Daemon:
    """`memfsd -f` on its own directory, with a swap file beside it."""

    def __init__(self, base: Path, options: str, program: Path) -> None:
        self.path = base / "mnt"
        self.path.mkdir(parents=True)
        self._socket = base / "memfsd.sock"
        self._options = f"{options},swap={base / 'swap'},swap_reset"
        self._program = program
        self._log = base / "memfsd.log"
        self._swapped = {"swapped_out": 0, "swapped_in": 0}
        self.process = self._start()

    def restart(self) -> None:
        """After its end, on the same mount point, whatever is still mounted there."""
        self._swapped = dict.fromkeys(self._swapped, 0)
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                [self._program, "-f", "-o", f"socket={self._socket},{self._options}", self.path],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=_end_with_parent,
            )
        try:
            until(lambda: self.is_live(process) or process.poll() is not None, "memfsd mounts")
            if process.poll() is not None:
                raise Failure(f"memfsd ended with {process.returncode}: {self.log.strip()}")
        except BaseException:
            process.kill()
            process.wait()
            raise
        return process

    def is_live(self, process: subprocess.Popen[bytes]) -> bool:
        """Its own mount is there: that of a dead daemon does not listen."""
        if self.minor() is None or process.poll() is not None:
            return False
        with contextlib.suppress(OSError):
            os.getxattr(self.path, XATTR_POOL)
            return True
        return False

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def minor(self) -> int | None:
        """The device minor of what is mounted here, found without asking the mount."""
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            fields = line.split()
            if fields[4] == str(self.path) and f" - fuse.{FSTYPE} " in line:
                return int(fields[2].split(":")[1])
        return None

    def pool(self) -> dict[str, int]:
        """Frames by state, and in all."""
        return counted(os.getxattr(self.path, XATTR_POOL).decode())

    def newly_swapped(self) -> dict[str, int]:
        """Pages that have left, and that have come back, since it was asked last."""
        before, pool = self._swapped, self.pool()
        self._swapped = {name: pool[name] for name in before}
        return {name: count - before[name] for name, count in self._swapped.items()}

    def levels(self) -> Levels:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        fields = {key: value.split() for key, _, value in (line.partition(":") for line in status.splitlines())}
        fds = len(os.listdir(f"/proc/{self.process.pid}/fd"))
        return Levels(int(fields["VmRSS"][0]), fds, int(fields["Threads"][0]))

    def check(self) -> None:
        """`memfs check` finds nothing."""
        done = subprocess.run(
            [BIN / "memfs", "check", "--json", self.path],
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        if done.returncode:
            report = done.stderr.strip()
            with contextlib.suppress(ValueError):
                report = "; ".join(f"{found['rule']}: {found['text']}" for found in json.loads(done.stdout)["findings"])
            raise Failure(f"memfs check: {report}")

    def poison(self, ino: int, page: int) -> bool:
        """`memfs poison`: whether the page had a frame that could fail. ETIMEDOUT (OSError) as for a punch."""
        with Observer(store_of(str(self.path))) as observer:
            try:
                observer.ask(Kind.MEMORY_FAILURE, MemoryFailure(ino, page), MemoryFailureReply)
            except Refused as refused:
                if refused.errno == errno.ENXIO:
                    return False
                raise OSError(refused.errno, refused.reason) from None
        return True

    def swap_out(self, ino: int, first: int, end: int) -> None:
        """`memfs swapout`: pages [first, end) leave, as far as there is room for them. OSError: not one of them may."""
        at = first
        with Observer(store_of(str(self.path))) as observer:
            while 0 <= at < end:
                try:
                    reply = observer.ask(Kind.PAGE_OUT, PageOut(ino, Pgoff(at), Pgoff(end)), PageOutReply)
                except Refused as refused:
                    raise OSError(refused.errno, refused.reason) from None
                if reply.errno not in (0, errno.ENOSPC):
                    raise Failure(f"{reply.stayed} pages of inode {ino} cannot be swapped out: {reply.reason}")
                at = reply.next_pgoff

    def end(self, number: signal.Signals) -> None:
        """By SIGKILL, or as a person ends it: then with exit status 0 and without a mount left."""
        self.process.send_signal(number)
        try:
            status = self.process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            raise Failure(f"memfsd does not end on {number.name}") from None
        if number is not signal.SIGKILL and (status or self.minor() is not None):
            raise Failure(f"memfsd ended on {number.name} with {status}; mounted: {self.minor() is not None}")

    def abort(self) -> None:
        """Free everyone who waits on the mount."""
        if (minor := self.minor()) is not None:
            with contextlib.suppress(OSError):
                Path(f"/sys/fs/fuse/connections/{minor}/abort").write_text("1")

    def remove(self) -> None:
        """Whatever became of it, no process and no mount stay."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(DEADLINE_S)
            except subprocess.TimeoutExpired:
                self.abort()
                self.process.kill()
                self.process.wait()
        while self.minor() is not None:
            self.abort()
            subprocess.run(["umount", "-l", self.path], check=True, timeout=DEADLINE_S)


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
