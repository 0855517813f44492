"""Everything at which two threads or two processes can meet is made here: locks, threads, the ends of sockets.

    lock condition event thread      what threads of one process meet at
    current                          which of them this is
    channel                          one end of the connection of two processes
    poll                             a wait for the end of a process

Each has a name, which is that of the point where a schedule can choose who goes on (docs/reliability.md). In normal
use these functions return the plain object of `threading`, or the socket itself, so that nothing is paid for it. Only
who calls `use` gets others: the race scheduler, and tests that stop or kill a process at a point.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

S = TypeVar("S")


class Poll(Protocol):
    """What is used of select.poll()."""

    def poll(self, timeout: float | None = None, /) -> list[tuple[int, int]]: ...


class Makers:
    """The plain objects. A scheduler overrides what it wants to see."""

    def lock(self, name: str) -> threading.Lock:
        return threading.Lock()

    def condition(self, name: str, lock: threading.Lock) -> threading.Condition:
        return threading.Condition(lock)

    def event(self, name: str) -> threading.Event:
        return threading.Event()

    def thread(self, target: Callable[..., object], name: str, args: tuple[Any, ...]) -> threading.Thread:
        return threading.Thread(target=target, name=name, args=args, daemon=True)

    def current(self) -> int:
        return threading.get_ident()

    def channel(self, sock: S, name: str) -> S:
        return sock

    def poll(self, poll: Poll, timeout_ms: float | None, name: str) -> list[tuple[int, int]]:
        return poll.poll(timeout_ms)


_PLAIN = Makers()
_makers = _PLAIN


@contextlib.contextmanager
def use(makers: Makers) -> Iterator[None]:
    """What is made from now on comes from these makers; the plain ones are back at the end."""
    global _makers  # noqa: PLW0603  in force for the whole process
    assert _makers is _PLAIN, "one scheduler at a time"
    _makers = makers
    try:
        yield
    finally:
        _makers = _PLAIN


def lock(name: str) -> threading.Lock:
    return _makers.lock(name)


def condition(name: str, lock: threading.Lock) -> threading.Condition:
    return _makers.condition(name, lock)


def event(name: str) -> threading.Event:
    return _makers.event(name)


def thread(target: Callable[..., object], name: str, args: tuple[Any, ...] = ()) -> threading.Thread:
    """Not started yet; a daemon thread."""
    return _makers.thread(target, name, args)


def current() -> int:
    """The calling thread, by a number that no other one has meanwhile."""
    return _makers.current()


def channel(sock: S, name: str) -> S:
    """This end of a connection: "store.down", "store.up", "vm.down" or "vm.up"."""
    return _makers.channel(sock, name)


def poll(poll: Poll, timeout_ms: float | None, name: str) -> list[tuple[int, int]]:
    """poll.poll(timeout_ms)."""
    return _makers.poll(poll, timeout_ms, name)
