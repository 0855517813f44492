"""What an attack is aimed at, and the process that carries it out.

Each attack runs in its own process, as some user. What it gets hold of it puts into the loot, memory that it
shares with the test, so nothing that came out is lost when a signal ends it.
"""

import contextlib
import ctypes
import faulthandler
import mmap
import os
import resource
import signal
import struct
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.attack.syscalls import PR_SET_DUMPABLE, address_of, call, errno_of

PAGE = 4096
SECRET = b"\xc5SECRET\x9d"
"""Any 15 bytes of memory filled with it hold it whole."""
HOST_WROTE = b"\xc5INTRUD\x9d" * (PAGE // 8)
"""One page of what attacks try to put into guest memory."""
FILE_BYTES = 16 * PAGE
ROOT, OWNER, OTHER = 0, 60001, 60002
USERS = {"root": ROOT, "owner": OWNER, "other": OTHER}
LOOT_BYTES = 16 * PAGE

WORKS = "works"
ENDLESS = "endless"
DEADLINE_S = 60.0
SHORT_DEADLINE_S = 0.3


@dataclass(eq=False)
class Target:
    """A file under attack. fd: the handle to use, if the attack is given one; here: ordinary files to help.

    `here` lies on the same mount, `outside` on the host; both directories are anyone's.
    """

    path: str
    here: str
    outside: str
    loot: mmap.mmap
    fd: int = -1
    _taken: int = 0

    @classmethod
    @contextlib.contextmanager
    def with_own_loot(cls, path: str, outside: str, fd: int) -> Iterator["Target"]:
        with mmap.mmap(-1, LOOT_BYTES) as loot:
            yield cls(path, outside, outside, loot, fd)

    def buffer(self, length: int = PAGE) -> memoryview:
        """A part of the loot, page aligned, to read into."""
        start = self._taken
        self._taken += -(-length // PAGE) * PAGE
        assert self._taken <= LOOT_BYTES
        return memoryview(self.loot)[start : start + length]

    def address(self, length: int = PAGE) -> int:
        return address_of(self.buffer(length))

    def payload(self) -> int:
        """The address of a page of HOST_WROTE. It is no loot: the loot is searched for what comes out."""
        self._payload = mmap.mmap(-1, PAGE)
        self._payload[:] = HOST_WROTE
        return address_of(memoryview(self._payload))

    def take(self, data: bytes) -> None:
        self.buffer(len(data))[:] = data

    def take_from(self, address: int, length: int = PAGE) -> None:
        """Read memory: SIGBUS ends the process where it cannot be."""
        ctypes.memmove(self.address(length), address, length)

    def take_file(self, path: str) -> None:
        with open(path, "rb") as file:
            self.take(file.read(PAGE))

    def open(self, flags: int) -> int:
        return os.open(self.path, flags | os.O_CLOEXEC)

    def ordinary(self, *, same_mount: bool = False, content: bytes = b"") -> str:
        """A new ordinary file beside the target."""
        path = f"{self.here if same_mount else self.outside}/{os.getpid()}"
        Path(path).write_bytes(content)
        return path


Action = Callable[[Target], None]


def attempt(action: Action, target: Target, uid: int, flags: int | None = None, deadline_s: float = DEADLINE_S) -> str:
    """Run an attack as a user: "works", an errno, "open: ERRNO", a signal, or "endless" at the deadline.

    flags: open the target with them first, for target.fd.
    """
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        faulthandler.disable()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, deadline_s)
        os.write(write_end, _outcome(action, target, uid, flags).encode())
        os._exit(0)
    os.close(write_end)
    with open(read_end, "rb") as answer:
        said = answer.read().decode()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        number = signal.Signals(os.WTERMSIG(status))
        return ENDLESS if number is signal.SIGALRM else number.name
    return said


def _outcome(action: Action, target: Target, uid: int, flags: int | None) -> str:
    try:
        if uid:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            call("prctl", PR_SET_DUMPABLE, 1, 0, 0, 0)  # as any process of that user is
        if flags is not None:
            try:
                target.fd = target.open(flags)
            except OSError as error:
                return f"open: {errno_of(error)}"
        action(target)
    except OSError as error:
        return errno_of(error)
    except BaseException:
        return traceback.format_exc()
    return WORKS


def in_child(body: Callable[[], None]) -> None:
    """Run it in a process forked from the attacker; its OSError is ours, its signal ends us too."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        number = 0
        try:
            body()
        except OSError as error:
            number = error.errno or 255
        os.write(write_end, struct.pack("i", number))
        os._exit(0)
    os.close(write_end)
    answer = os.read(read_end, 4)
    os.close(read_end)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    (number,) = struct.unpack("i", answer)
    if number:
        raise OSError(number, "in the other process")


@contextlib.contextmanager
def child_that_waits() -> Iterator[int]:
    """A process that holds what its parent holds, and does nothing."""
    child = os.fork()
    if child == 0:
        while True:
            signal.pause()
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
