"""Plays a recorded case: every op, in order, in a separate process.

machine    what stands for KVM: linux_kvm.LinuxKvm or simulated.Simulated
"""

import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, Protocol

from .descriptors import Args, Descriptors
from .mappings import Mappings
from .outcomes import Outcome, outcome_of

CASE_DEADLINE_S = 60.0

Do = Callable[[Args], Any]
NOT_ASKED: Outcome = {"skipped": "not asked here"}
"""Nobody here knows the op."""


class NotAsked(Exception):
    """The op is known, and cannot be asked here."""


class Machine(Protocol):
    """The ops that are KVM's, or that KVM's stand-in does in its own way."""

    def find(self, op: str) -> Do | None: ...


Make = Callable[[Descriptors, Mappings], Machine]


class Player:
    """One case's handles. An op that nobody here knows is NOT_ASKED."""

    def __init__(self, place: str, make: Make) -> None:
        self._descriptors = Descriptors(place)
        self._mappings = Mappings(self._descriptors)
        self._machine = make(self._descriptors, self._mappings)

    def play(self, ops: list[dict[str, Any]]) -> list[Outcome]:
        return [self._outcome(op) for op in ops]

    def _outcome(self, op: dict[str, Any]) -> Outcome:
        name, args = op["op"], op["args"] | {"as": op.get("as")}
        if name == "fork":
            return {"result": self._fork(args["ops"])}
        for owner in (self._machine, self._descriptors, self._mappings):
            do = owner.find(name)
            if do is not None:
                try:
                    return outcome_of(do, args)
                except NotAsked:
                    return NOT_ASKED
        return NOT_ASKED

    def _fork(self, ops: list[dict[str, Any]]) -> list[Outcome]:
        return in_child(lambda: self.play(ops))


def play(ops: list[dict[str, Any]], place: str, make: Make) -> list[Outcome]:
    """In a child of this process, which no op can hurt. TimeoutError; RuntimeError when the child came to nothing."""
    return in_child(lambda: Player(place, make).play(ops))


def in_child(body: Callable[[], list[Outcome]]) -> list[Outcome]:
    """body's outcomes, made in a child."""
    read_end, write_end = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        _be_child(body, write_end)
    os.close(write_end)
    try:
        text = _read_all(read_end, time.monotonic() + CASE_DEADLINE_S)
    except TimeoutError:
        os.kill(pid, signal.SIGKILL)
        raise
    finally:
        os.close(read_end)
        _, status = os.waitpid(pid, 0)
    if status:
        raise RuntimeError(f"a case's process ended with {status:#x}: {text.decode(errors='replace')[-2000:]}")
    found: list[Outcome] = json.loads(text)
    return found


def _be_child(body: Callable[[], list[Outcome]], write_end: int) -> None:
    status = 1
    try:
        text = json.dumps(body()).encode()
        status = 0
    except BaseException:
        text = traceback.format_exc().encode()
    try:
        while text:
            text = text[os.write(write_end, text) :]
    finally:
        os._exit(status)


def _read_all(fd: int, until: float) -> bytes:
    text = b""
    ready = select.poll()  # select(2) knows no descriptor from 1024 on
    ready.register(fd, select.POLLIN)
    while True:
        if not ready.poll(max(until - time.monotonic(), 0) * 1000):
            raise TimeoutError(f"a case did not end within {CASE_DEADLINE_S:g} s")
        part = os.read(fd, 1 << 16)
        if not part:
            return text
        text += part
