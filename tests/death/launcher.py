"""memfsd, kvmsim and memfs as real processes: forked, so that the imports are paid for once, then the product's own
main(). Their deadlines are those of `deadlines`.
"""

import ctypes
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from . import deadlines as deadlines  # isort: skip - before anything that uses them

import trio._core._thread_cache as thread_cache

import kvmsim.cli
import kvmsim.shell.script_command  # which kvmsim imports only when it runs a script
import memfsd.commands.check  # as of memfs' commands: these two are what cells ask most
import memfsd.commands.memfs
import memfsd.commands.memfsd
import memfsd.commands.pages
import memfsd.daemon

from .traps import Board, Hold, Trap

_PR_SET_PDEATHSIG = 1
_POLL_S = 0.002
thread_cache.IDLE_TIMEOUT = 0.02  # type: ignore[assignment]
"""trio's: threads that nobody uses any more are gone before they are counted."""

MAINS: dict[str, Callable[[], None]] = {
    "memfsd": memfsd.commands.memfsd.main,
    "kvmsim": kvmsim.cli.main,
    "memfs": memfsd.commands.memfs.main,
}


class Child:
    """A process of ours."""

    def __init__(self, pid: int, name: str, out: Path, err: Path) -> None:
        self.pid = pid
        self.name = name
        self.status: int | None = None
        """As of subprocess: negative for a signal."""
        self._out, self._err = out, err

    def poll(self) -> int | None:
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status

    def kill(self, number: int = signal.SIGKILL) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()


def launch(
    name: str,
    arguments: list[str],
    base: Path,
    board: Board | None = None,
    stdin: str = "",
    holds: tuple[Hold, ...] = (),
) -> Child:
    """memfsd, kvmsim or memfs with these arguments. With a board its points are wired to it."""
    out, err = base / f"{name}.out", base / f"{name}.err"
    source = base / f"{name}.in"
    source.write_text(stdin)
    pid = os.fork()
    if pid:
        return Child(pid, name, out, err)
    status = 70
    try:
        # With the bench a store unmounts; a VM has nothing that stays.
        last = signal.SIGTERM if name == "memfsd" else signal.SIGKILL
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, last, 0, 0, 0)
        for number, (path, flags) in enumerate(
            ((source, os.O_RDONLY), (out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND),
             (err, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND))
        ):  # fmt: skip
            fd = os.open(path, flags, 0o600)
            os.dup2(fd, number)
            os.close(fd)
        os.closerange(3, 4096)
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115
        sys.argv = [name, *arguments]
        status = _run(name, board, holds)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _run(name: str, board: Board | None, holds: tuple[Hold, ...]) -> int:
    try:
        if board is None:
            MAINS[name]()
        else:
            side = "store" if name == "memfsd" else "vm"
            board.set_pid(side, os.getpid())
            with Trap(board, side, holds).installed():
                MAINS[name]()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return 0


class TooLate(Exception):
    """What must happen did not, before its deadline."""


def until(condition: Callable[[], bool], what: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TooLate(f"not within {seconds:g} s: {what}")
        time.sleep(_POLL_S)
