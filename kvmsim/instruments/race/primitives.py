"""Locks, conditions, events, threads and connections whose every use is a point of the scheduler."""

import contextlib
import os
import select
import socket
import stat
import struct
import threading
from collections.abc import Callable
from typing import Any, TypeVar, cast

from memfsd.common import sync
from memfsd.uapi.framing import HEADER_BYTES

from . import points
from .accesses import Kind
from .scheduler import Scheduler, Task

S = TypeVar("S")
_TIMEVAL = struct.Struct("ll")
_CREDENTIALS = struct.Struct("iii")
_SO_PEERPIDFD = 77


LOOKED_UNDER = "Mmu.lock"


class Lock:
    """threading.Lock. Who is dead keeps what it holds; at the end of a run nobody waits any more."""

    def __init__(self, scheduler: Scheduler, name: str) -> None:
        self.name = name
        self.key = ("lock", scheduler.unique(name))
        self.owner: Task | None = None
        self._scheduler = scheduler
        self._looks = False

    def _free(self) -> bool:
        return self.owner is None

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        scheduler = self._scheduler
        ready = self._free if blocking else None
        me = scheduler.me()
        self_looks = me.looks and self.name == LOOKED_UNDER
        kind = Kind.LOOK if self_looks else Kind.TAKE
        if not scheduler.reach(f"{self.name} taken", ready, None if timeout < 0 else timeout, (self.key, kind)) or (
            self.owner is not None and not scheduler.is_over
        ):
            return False
        self.owner, self._looks = me, self_looks
        me.locks += 1
        if self.name == LOOKED_UNDER:
            me.section = self
        return True

    def release(self) -> None:
        if self._scheduler.is_over:
            return
        assert self.owner is not None, f"{self.name} is released and nobody holds it"
        self.owner.locks -= 1
        self.owner.section = None
        self.owner = None
        self._scheduler.touch(self.key, Kind.UNLOOK if self._looks else Kind.RELEASE)

    def only_looks(self) -> None:
        """The section that has just begun reads, and no more."""
        self._looks = True
        self._scheduler.untouch(self.key, Kind.TAKE)
        self._scheduler.touch(self.key, Kind.LOOK)

    def locked(self) -> bool:
        return self.owner is not None

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class Condition:
    """threading.Condition, each wait a point of the scheduler."""

    def __init__(self, scheduler: Scheduler, name: str, lock: Lock) -> None:
        self._scheduler = scheduler
        self._lock = lock
        self._name = name
        self.key = ("event", scheduler.unique(name))
        self._round = 0

    def wait_for(self, predicate: Callable[[], bool], timeout: float | None = None) -> bool:
        end = None if timeout is None else self._scheduler.now + timeout
        while not predicate():
            round_ = self._round
            self._lock.release()
            woken = self._scheduler.reach(
                f"{self._name} waited for",
                lambda round_=round_: self._round != round_,  # type: ignore[misc]
                None if end is None else end - self._scheduler.now,
                (self.key, Kind.RECEIVE),
            )
            self._lock.acquire()
            if not woken:
                return predicate()
        return True

    def wait(self, timeout: float | None = None) -> bool:
        seen = self._round
        return self.wait_for(lambda: self._round != seen, timeout)

    def __enter__(self) -> bool:
        return self._lock.__enter__()

    def __exit__(self, *exc: object) -> None:
        self._lock.__exit__(*exc)

    def notify_all(self) -> None:
        self._round += 1
        self._scheduler.touch(self.key, Kind.SEND)


class Event:
    """threading.Event, each wait a point of the scheduler."""

    def __init__(self, scheduler: Scheduler, name: str) -> None:
        self._scheduler = scheduler
        self._name = name
        self.key = ("event", scheduler.unique(name))
        self._is_set = False

    def is_set(self) -> bool:
        self._scheduler.touch(self.key, Kind.RECEIVE)
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        self._scheduler.touch(self.key, Kind.SEND)

    def clear(self) -> None:
        self._is_set = False
        self._scheduler.touch(self.key, Kind.SHUT)

    def wait(self, timeout: float | None = None) -> bool:
        return self._scheduler.reach(
            f"{self._name} waited for", lambda: self._is_set, timeout, (self.key, Kind.RECEIVE)
        )


class Thread:
    """threading.Thread, of the process of the task that makes it."""

    def __init__(self, scheduler: Scheduler, target: Callable[..., object], name: str, args: tuple[Any, ...]) -> None:
        self._scheduler = scheduler
        self._run = lambda: target(*args)
        process = scheduler.me().process
        self.task = scheduler.add(f"{process} {name}", process)

    def start(self) -> None:
        self._scheduler.start(self.task, self._run)

    def join(self, timeout: float | None = None) -> None:
        task = self.task
        self._scheduler.reach(
            f"{task.name} joined", lambda: task.done or task.dead, timeout, (("end", task.name), Kind.RECEIVE)
        )

    def is_alive(self) -> bool:
        return not self.task.done


class Pipe:
    """Both directions of one connection: "down" or "up" of a file's pairing."""

    def __init__(self, name: str, vm: str) -> None:
        self.name = name
        self.vm = vm
        self.to_store = ("queue", f"{name} to the store")
        self.to_vm = ("queue", f"{name} to the VM")


class Channel:
    """One end of a connection: a real socket that never blocks, with the deadlines its user set."""

    def __init__(
        self,
        scheduler: Scheduler,
        connections: "Connections",
        sock: socket.socket,
        name: str,
        pipe: Pipe,
        life: "ProcessHandle | None",
    ) -> None:
        self._scheduler = scheduler
        self._connections = connections
        self._sock = sock
        self.side, self.channel = name.split(".")
        self.process = "store" if self.side == "store" else pipe.vm
        self.pipe = pipe
        self._life = life
        self._in = pipe.to_store if self.side == "store" else pipe.to_vm
        self._out = pipe.to_vm if self.side == "store" else pipe.to_store
        seconds, micros = _TIMEVAL.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEVAL.size))
        self._timeout: float | None = seconds + micros / 1e6 or None
        sock.setblocking(False)
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    # -- points

    def send(self, packet: bytes) -> int:
        self._say(packet)
        return self._sock.send(packet)

    def sendmsg(self, buffers: list[bytes], ancillary: Any = (), flags: int = 0, *rest: Any) -> int:
        self._say(b"".join(buffers))
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                self._connections.passed(list(data))
        return self._sock.sendmsg(buffers, ancillary, flags)

    def _say(self, packet: bytes) -> None:
        self._scheduler.reach(self._name("send", packet), None, None, (self._out, Kind.SEND))
        self._scheduler.say(packet)

    def recv_into(self, buffer: Any, size: int = 0, flags: int = 0) -> int:
        self._await_packet()
        return self._sock.recv_into(buffer, size, flags)

    def recvmsg(self, size: int, ancillary_size: int = 0, flags: int = 0) -> Any:
        self._await_packet()
        return self._sock.recvmsg(size, ancillary_size, flags)

    def _await_packet(self) -> None:
        task = self._scheduler.me()
        if not self._scheduler.reach(
            f"{self.side} {self.channel} receive", self._readable, self._timeout, (self._in, Kind.RECEIVE)
        ):
            self._scheduler.rename(f"{self.side} {self.channel} receive nothing in time")
            raise BlockingIOError("no packet in time")
        task.point = self._name("receive", self._peek())
        self._scheduler.rename(task.point)

    def shutdown(self, how: int) -> None:
        self._scheduler.reach(f"{self.side} {self.channel} shut", None, None, (self._out, Kind.SHUT))
        self._scheduler.touch(self._in, Kind.SHUT)
        self._sock.shutdown(how)

    def close(self) -> None:
        if self._scheduler.is_over or self._scheduler.me().dead:
            self._sock.close()
            return
        self._scheduler.reach(f"{self.side} {self.channel} closed", None, None, (self._out, Kind.SHUT))
        self._scheduler.touch(self._in, Kind.SHUT)
        self._sock.close()

    def kill(self) -> None:
        """The kernel closes it: its process is dead."""
        self._scheduler.touch(self._out, Kind.SHUT)
        self._scheduler.touch(self._in, Kind.SHUT)
        self._sock.close()

    def cut(self) -> None:
        self._scheduler.touch(self._out, Kind.SHUT)
        self._scheduler.touch(self._in, Kind.SHUT)
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close_now(self) -> None:
        self._sock.close()

    # -- no points

    def setsockopt(self, level: int, option: int, value: Any) -> None:
        if option == socket.SO_RCVTIMEO:
            seconds, micros = _TIMEVAL.unpack(value)
            self._timeout = seconds + micros / 1e6 or None
        elif option != socket.SO_SNDTIMEO:
            self._sock.setsockopt(level, option, value)

    def getsockopt(self, level: int, option: int, size: int = 0) -> Any:
        if self._life is not None and option == socket.SO_PEERCRED:
            return _CREDENTIALS.pack(self._life.pid, os.getuid(), os.getgid())
        if self._life is not None and option == _SO_PEERPIDFD:
            return self._life.pidfd()
        return self._sock.getsockopt(level, option, size)

    def fileno(self) -> int:
        return self._sock.fileno()

    def detach(self) -> int:
        return self._sock.detach()

    def _readable(self) -> bool:
        if self._sock.fileno() < 0:
            return True  # closed by another thread: the call fails at once
        return bool(self._poll.poll(0))

    def _peek(self) -> bytes:
        try:
            return self._sock.recv(HEADER_BYTES, socket.MSG_PEEK)
        except OSError:
            return b""

    def _name(self, verb: str, packet: Any) -> str:
        return points.of_packet(f"{self.side} {self.channel}", verb, packet, tell_refusals=True)


LIVES = ("life", "processes")
"""The ends of all processes are one thing: a poll does not say whose."""


class ProcessHandle:
    """A simulated process: a pipe that is readable at one end once the other is closed, as a pidfd is."""

    def __init__(self, name: str, pid: int) -> None:
        self.name = name
        self.pid = pid
        self._read, self._write = os.pipe2(os.O_CLOEXEC)
        self.is_over = False

    def pidfd(self) -> int:
        return os.dup(self._read)

    def end(self) -> None:
        if not self.is_over:
            self.is_over = True
            os.close(self._write)

    def close(self) -> None:
        self.end()
        os.close(self._read)


class Makers(sync.Makers):
    """For memfsd.common.sync.use."""

    def __init__(self, scheduler: Scheduler, connections: "Connections") -> None:
        self._scheduler = scheduler
        self._connections = connections

    def lock(self, name: str) -> threading.Lock:
        return cast(threading.Lock, Lock(self._scheduler, name))

    def condition(self, name: str, lock: threading.Lock) -> threading.Condition:
        return cast(threading.Condition, Condition(self._scheduler, name, cast(Lock, lock)))

    def event(self, name: str) -> threading.Event:
        return cast(threading.Event, Event(self._scheduler, name))

    def thread(self, target: Callable[..., object], name: str, args: tuple[Any, ...]) -> threading.Thread:
        # Not the whole name: an inode's number is another one in each run.
        return cast(threading.Thread, Thread(self._scheduler, target, name.partition("-")[0], args))

    def current(self) -> int:
        return self._scheduler.me().id

    def channel(self, sock: S, name: str) -> S:
        assert isinstance(sock, socket.socket)
        return cast(S, self._connections.channel(sock, name))

    def poll(self, poll: sync.Poll, timeout_ms: float | None, name: str) -> list[tuple[int, int]]:
        """Zero: a look. Else a wait until it would not be empty."""
        scheduler = self._scheduler
        key = LIVES
        if timeout_ms == 0:
            scheduler.reach(name, None, None, (key, Kind.READ))
            return poll.poll(0)
        timeout_s = None if timeout_ms is None else timeout_ms / 1000
        scheduler.reach(name, lambda: bool(poll.poll(0)), timeout_s, (key, Kind.RECEIVE))
        return poll.poll(0)


class Connections:
    """Which channel is an end of which connection: by the inodes of the sockets, that are passed on as fds."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._pipes: dict[int, Pipe] = {}
        self._lives: dict[str, ProcessHandle] = {}
        self._serving: dict[Task, Pipe] = {}
        """The down connection that a session's task serves."""
        self._made: dict[Task, Pipe] = {}
        """The up connection that a session's task made."""
        self.raw: list[tuple[str, socket.socket]] = []
        self.channels: list[Channel] = []

    def connect(self, life: ProcessHandle) -> tuple[socket.socket, socket.socket]:
        """The store's and the VM's end of a new down connection."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pipe = Pipe(self._scheduler.unique(f"down of {life.name}"), life.name)
        self._lives[life.name] = life
        for sock in (ours, theirs):
            self._pipes[os.fstat(sock.fileno()).st_ino] = pipe
        self.raw += [("store", ours), (life.name, theirs)]
        return ours, theirs

    def channel(self, sock: socket.socket, name: str) -> Channel:
        task = self._scheduler.me()
        if name == "store.up":
            down = self._serving[task]
            pipe = self._made[task] = Pipe(down.name.replace("down", "up"), down.vm)
        else:
            pipe = self._pipes[os.fstat(sock.fileno()).st_ino]
            if name == "store.down":
                self._serving[task] = pipe
        life = self._lives[pipe.vm] if name == "store.down" else None
        channel = Channel(self._scheduler, self, sock, name, pipe, life)
        self.channels.append(channel)
        return channel

    def passed(self, fds: list[int]) -> None:
        """A session sends fds: the VM's end of its up connection is among them."""
        made = self._made.get(self._scheduler.me())
        for fd in fds:
            if made is not None and stat.S_ISSOCK(os.fstat(fd).st_mode):
                self._pipes[os.fstat(fd).st_ino] = made

    def kill(self, process: str) -> None:
        """The kernel closes what a dead process had open."""
        for channel in self.channels:
            if channel.process == process:
                channel.kill()
        for owner, sock in self.raw:
            if owner == process:
                sock.close()

    def cut(self, vm: str) -> None:
        """The connections of a VM end, and both processes live."""
        for channel in self.channels:
            if channel.process == vm:
                channel.cut()

    def close(self) -> None:
        for channel in self.channels:
            channel.close_now()
        for _, sock in self.raw:
            sock.close()
