"""Threads in tests: run something beside the test, wait for a condition, never for a time."""

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Generic, TypeVar

from memfsd.uapi.errors import Refused

T = TypeVar("T")

DEADLINE_S = 60.0
"""How long a test waits for what must happen before it fails: no busy machine takes as long."""


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition that another thread makes true."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.0005)


class Beside(Generic[T]):
    """A call on its own thread. Its result or its exception is the test's."""

    def __init__(self, call: Callable[[], T]) -> None:
        self._result: list[T] = []
        self._error: list[BaseException] = []
        self._thread = threading.Thread(target=self._run, args=(call,), daemon=True)
        self._thread.start()

    def _run(self, call: Callable[[], T]) -> None:
        try:
            self._result.append(call())
        except BaseException as error:
            self._error.append(error)

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def result(self) -> T:
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive(), "the call hangs"
        if self._error:
            raise self._error[0]
        return self._result[0]


@contextlib.contextmanager
def over_and_over(steps: list[Callable[[random.Random], object]], times: int) -> Iterator[None]:
    """Each step on its own thread, with a dice of its own, again and again until the end; refusals are no matter.
    At the end each was done so many times at least."""
    stop = threading.Event()
    counts = [0] * len(steps)

    def loop(index: int) -> None:
        dice = random.Random(index)
        while not stop.is_set():
            with contextlib.suppress(Refused):
                steps[index](dice)
            counts[index] += 1

    loops = [Beside(partial(loop, index)) for index in range(len(steps))]
    try:
        yield
        until(lambda: min(counts) >= times, "every thread gets on")
    finally:
        stop.set()
    for one in loops:
        one.result()


class Gate:
    """Holds a thread at a point until the test lets it go on."""

    def __init__(self) -> None:
        self._reached = threading.Event()
        self._opened = threading.Event()

    def wait(self) -> None:
        """The held thread calls this."""
        self._reached.set()
        assert self._opened.wait(DEADLINE_S), "the test never opened the gate"

    def reached(self) -> None:
        """The test waits until the thread is held."""
        assert self._reached.wait(DEADLINE_S), "nobody came to the gate"

    @property
    def is_open(self) -> bool:
        return self._opened.is_set()

    def open(self) -> None:
        self._opened.set()
