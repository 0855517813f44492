"""What happens at one named point of one process. The product has no switch for it: the launcher wires it in.

A scenario may also hold threads at points until others have come to theirs, so that they meet by design.

The names are those of the race scheduler's table (kvmsim.instruments.race.points). A board in shared memory,
made before the processes are forked, says which point is armed and counts how often each is reached.
"""

import contextlib
import mmap
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from kvmsim.instruments.race import points
from memfsd.common import sync

NAMES: list[tuple[str, str]] = points.all_names()
"""(name, side) of every point."""
INDEX = {name: index for index, (name, _) in enumerate(NAMES)}

_WORDS = 16
_ARMED, _TARGET, _NTH, _ACTION, _STORE, _VM, _FIRED, _TARGET2, _NTH2, _ACTION2 = range(10)


class Action(IntEnum):
    NONE = 0
    KILL_SELF = 1
    KILL_PEER = 2
    STOP_SELF = 3
    STOP_PEER = 4
    CUT = 5
    """shutdown(2) of every connection that this process has with the other one."""


class Fired(IntEnum):
    NO = 0
    YES = 1
    NO_CONNECTION = 2
    """There was nothing to cut yet, or no more."""
    NO_PEER = 3
    """The other process had not begun, or was gone."""


HOLD_DEADLINE_S = 30.0
"""Whom nobody meets goes on, and the point that needed it is missed."""


@dataclass(frozen=True, slots=True)
class Hold:
    """From the nth time on that a thread comes to `point`, it waits there until `until` has been reached `count` times.

    Of kvmsim's threads; counted since the board was armed.
    """

    point: str
    nth: int
    until: str
    count: int = 1


class Board:
    """Shared by the harness and what it forks; each word is written by one of them at a time."""

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, 8 * (_WORDS + len(NAMES)))
        self.words = memoryview(self._map).cast("q")

    def arm(self, name: str | None, nth: int, action: Action, also: tuple[str, int, Action] | None = None) -> None:
        """The nth time that this point is reached from now on. also: a second one, part of the scenario."""
        words = self.words
        words[_ARMED] = 0
        for index in range(len(NAMES)):
            words[_WORDS + index] = 0
        words[_TARGET], words[_NTH], words[_ACTION] = -1 if name is None else INDEX[name], nth, action
        words[_TARGET2], words[_NTH2], words[_ACTION2] = (INDEX[also[0]], *also[1:]) if also else (-1, 0, 0)
        words[_FIRED] = words[_VM] = 0
        words[_ARMED] = 1

    def disarm(self) -> None:
        self.words[_ARMED] = 0

    @property
    def fired(self) -> Fired:
        return Fired(self.words[_FIRED])

    def set_pid(self, side: str, pid: int) -> None:
        self.words[_STORE if side == "store" else _VM] = pid

    def count(self, name: str) -> int:
        """How often it was reached, since it was armed."""
        return self.words[_WORDS + INDEX[name]]

    def reached(self) -> dict[str, int]:
        """How often each point was, since it was armed."""
        return {name: count for name, index in INDEX.items() if (count := self.words[_WORDS + index])}


class Trap:
    """One process's: counts, acts, and holds."""

    def __init__(self, board: Board, side: str, holds: Iterable[Hold] = ()) -> None:
        self._words = board.words
        self._side = side
        self._counted = threading.Condition(threading.Lock())
        self._holds: dict[str, list[Hold]] = {}
        for hold in holds:
            self._holds.setdefault(hold.point, []).append(hold)
        self.connections: list[socket.socket] = []

    def at(self, name: str) -> None:
        words = self._words
        index = INDEX.get(name)
        if index is None or not words[_ARMED]:
            return
        with self._counted:
            words[_WORDS + index] += 1
            self._counted.notify_all()
            count = words[_WORDS + index]
            also = words[_TARGET2] == index and words[_NTH2] == count
            meant = words[_TARGET] == index and words[_NTH] == count and not words[_FIRED]
        if also:
            self._do(Action(words[_ACTION2]))
        if meant:
            action = Action(words[_ACTION])
            if action is not Action.STOP_PEER:  # it is told when the peer has stopped: then the harness may wake it
                words[_FIRED] = Fired.YES
            words[_FIRED] = self._do(action)
        for hold in self._holds.get(name, ()):
            if count >= hold.nth:
                self._hold(hold)

    def _hold(self, hold: Hold) -> None:
        with self._counted:
            self._counted.wait_for(lambda: self._words[_WORDS + INDEX[hold.until]] >= hold.count, HOLD_DEADLINE_S)

    def _do(self, action: Action) -> Fired:
        if action is Action.CUT:
            return self._cut()
        number = signal.SIGKILL if action in (Action.KILL_SELF, Action.KILL_PEER) else signal.SIGSTOP
        if action in (Action.KILL_SELF, Action.STOP_SELF):
            # To this thread: one to the process is another thread's to take, and this one would go on until then.
            signal.pthread_kill(threading.get_ident(), number)
            return Fired.YES
        peer = self._words[_VM if self._side == "store" else _STORE]
        if not peer:
            return Fired.NO_PEER
        try:
            os.kill(peer, number)
        except ProcessLookupError:
            return Fired.NO_PEER
        if number == signal.SIGSTOP:
            end = time.monotonic() + HOLD_DEADLINE_S
            while not is_stopped(peer, or_dead=True) and time.monotonic() < end:
                time.sleep(0.001)
        return Fired.YES

    def _cut(self) -> Fired:
        done = Fired.NO_CONNECTION
        for sock in list(self.connections):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
                done = Fired.YES
        return done

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Every point of what is made from now on."""
        with (
            sync.use(_Makers(self)),
            points.installed(
                lambda name, *_: self.at(name), lambda: self.at(points.RETRY.name), contextlib.nullcontext
            ),
        ):
            yield


class _Makers(sync.Makers):
    def __init__(self, trap: Trap) -> None:
        self._trap = trap

    def lock(self, name: str) -> Any:
        return _Lock(self._trap, name)

    def condition(self, name: str, lock: Any) -> threading.Condition:
        return _Condition(self._trap, name, lock)

    def event(self, name: str) -> threading.Event:
        return _Event(self._trap, name)

    def channel(self, sock: Any, name: str) -> Any:
        return _Channel(self._trap, sock, name)

    def poll(self, poll: sync.Poll, timeout_ms: float | None, name: str) -> list[tuple[int, int]]:
        self._trap.at(name)
        return poll.poll(timeout_ms)


class _Lock:
    """Its point is right after it was taken: who dies there, dies holding it."""

    def __init__(self, trap: Trap, name: str) -> None:
        self.plain = threading.Lock()
        self.release = self.plain.release
        self.locked = self.plain.locked
        self._trap = trap
        self._name = f"{name} taken"

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        taken = self.plain.acquire(blocking, timeout)
        if taken:
            self._trap.at(self._name)
        return taken

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class _Condition(threading.Condition):
    """On the plain lock, so that to go on after a wait is no point; whoever takes it first comes to that lock's."""

    def __init__(self, trap: Trap, name: str, lock: "_Lock") -> None:
        super().__init__(lock.plain)
        self._enter = lock.acquire
        self._trap = trap
        self._name = f"{name} waited for"

    def __enter__(self) -> bool:
        return self._enter()

    def wait(self, timeout: float | None = None) -> bool:
        self._trap.at(self._name)
        return super().wait(timeout)


class _Event(threading.Event):
    def __init__(self, trap: Trap, name: str) -> None:
        super().__init__()
        self._trap = trap
        self._name = f"{name} waited for"

    def wait(self, timeout: float | None = None) -> bool:
        if not self.is_set():
            self._trap.at(self._name)
        return super().wait(timeout)


class _Channel:
    """One end of a connection. Its points: before a packet is sent, after one was received, before it ends."""

    def __init__(self, trap: Trap, sock: socket.socket, name: str) -> None:
        self._trap = trap
        self._sock = sock
        self._where = name.replace(".", " ")
        trap.connections.append(sock)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def send(self, packet: bytes) -> int:
        self._trap.at(self._name("send", packet))
        return self._sock.send(packet)

    def sendmsg(self, buffers: list[bytes], *rest: Any) -> int:
        self._trap.at(self._name("send", buffers[0]))
        return self._sock.sendmsg(buffers, *rest)

    def recv_into(self, buffer: Any, size: int = 0, flags: int = 0) -> int:
        received: int = self._in_time(self._sock.recv_into, buffer, size, flags)
        self._trap.at(self._name("receive", memoryview(buffer)[:received]))
        return received

    def recvmsg(self, *arguments: Any) -> Any:
        answer = self._in_time(self._sock.recvmsg, *arguments)
        self._trap.at(self._name("receive", answer[0]))
        return answer

    def _in_time(self, receive: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return receive(*arguments)
        except BlockingIOError:
            self._trap.at(f"{self._where} receive nothing in time")
            raise

    def shutdown(self, how: int) -> None:
        self._trap.at(f"{self._where} shut")
        self._sock.shutdown(how)

    def close(self) -> None:
        self._trap.at(f"{self._where} closed")
        with contextlib.suppress(ValueError):
            self._trap.connections.remove(self._sock)
        self._sock.close()

    def _name(self, verb: str, packet: Any) -> str:
        return points.of_packet(self._where, verb, packet)


def is_stopped(pid: int, *, or_dead: bool = False) -> bool:
    """Every thread of it is stopped."""
    return all(_state(thread) in ("TZX" if or_dead else "T") for thread in _threads(pid))


def _state(thread: str) -> str:
    try:
        with open(f"{thread}/stat") as file:
            return file.read().rpartition(") ")[2][0]
    except (FileNotFoundError, ProcessLookupError):
        return "T"  # gone meanwhile


def has_busy_child(pid: int) -> bool:
    """A child that has not ended: a command of its script goes on while it is stopped."""
    return any(_state(f"/proc/{child}") not in "ZT" for child in children(pid))


def waits_on_mount(pid: int) -> bool:
    """A thread of it, or of a child, is in a system call that a file system in user space has to answer."""
    for thread in _threads(pid):
        with contextlib.suppress(OSError), open(f"{thread}/wchan") as file:
            if "fuse" in (where := file.read()) or where == "request_wait_answer":
                return True
    return any(waits_on_mount(child) for child in children(pid))


def _threads(pid: int) -> list[str]:
    try:
        return [f"/proc/{pid}/task/{name}" for name in os.listdir(f"/proc/{pid}/task")]
    except (FileNotFoundError, ProcessLookupError):
        return []


def children(pid: int) -> list[int]:
    found = []
    for thread in _threads(pid):
        with contextlib.suppress(OSError), open(f"{thread}/children") as file:
            found += [int(word) for word in file.read().split()]
    return found
