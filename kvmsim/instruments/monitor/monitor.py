"""The monitor of a process: a thread for the sockets of all clients, and one for the commands of each client.

So a command that has to wait (`stop`, while a vCPU waits for the store) delays neither other clients nor events. Nobody
waits for the monitor: an event is put into a bounded queue, and a client that reads nothing is disconnected.
What only a client needs is loaded and attached when the first one comes.
"""

import contextlib
import itertools
import logging
import os
import queue
import select
import socket
import time
import weakref
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kvmsim.shell.execute import Executor
from memfsd.common import sync, trace
from memfsd.common.qmp import NO_ID, QmpError
from memfsd.uapi.limits import (
    MAX_QMP_BACKLOG_BYTES,
    MAX_QMP_CLIENTS,
    MAX_QMP_EVENTS,
    MAX_QMP_REPLY_BYTES,
    MONITOR_END_DEADLINE_S,
)

from . import protocol
from .places import Listener
from .protocol import Framer

if TYPE_CHECKING:
    from .handlers import Handlers

log = logging.getLogger("kvmsim.monitor")

_CHUNK_BYTES = 1 << 16
_ACCEPT_AGAIN_S = 1.0
"""When this process has no descriptor left for a client."""
_READ, _WRITE = select.POLLIN, select.POLLOUT
_GONE = select.POLLHUP | select.POLLERR | select.POLLNVAL

Message = bytes | QmpError


@dataclass(slots=True, eq=False)
class _Client:
    """Owned by the monitor's thread, but for `requests`, which its worker takes."""

    socket: socket.socket
    framer: Framer = field(default_factory=Framer)
    requests: "queue.SimpleQueue[Message | None]" = field(default_factory=queue.SimpleQueue)
    out: bytearray = field(default_factory=bytearray)
    unanswered: int = 0
    is_negotiated: bool = False
    is_ending: bool = False
    """Nothing more comes from it, or is taken: it goes when it has its answers."""
    has_worker: bool = False


@dataclass(frozen=True, slots=True)
class _Answer:
    client: _Client
    line: bytes
    negotiates: bool


class Monitor:
    """Serves on the thread that calls `serve`, until `end`; then close, then detach, when no VM can be at a trace point
    any more."""

    def __init__(self, listeners: list[Listener], executor: Executor) -> None:
        self._listeners = listeners
        self._executor = executor
        self._clients: dict[int, _Client] = {}
        """By file descriptor."""
        self._handlers: Handlers | None = None
        self._observing = contextlib.ExitStack()
        self._events: deque[tuple[int, str, dict[str, Any], int]] = deque(maxlen=MAX_QMP_EVENTS)
        self._answers: deque[_Answer] = deque()
        self._numbers = itertools.count(1)
        self._last_number = 0
        """Of an event that was taken from the queue; fewer were, when others were dropped."""
        self._sent_count = 0
        self._is_heard = False
        """A client is there for events."""
        self._is_woken = False
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        weakref.finalize(self, os.close, self._wake_fd)  # not before: a client's thread may be late with its answer
        self._ends_because: str | None = None
        self._accepts_at = 0.0
        self._poll = select.poll()
        self.dropped_clients = 0

    def end(self, why: str) -> None:
        """From any thread: SHUTDOWN for all clients, and the end of their connections, by a deadline."""
        self._ends_because = why
        self._wake()

    def detach(self) -> None:
        self._observing.close()

    # -- what commands and trace points ask, from any thread

    @property
    def sockets(self) -> list[str]:
        return [listener.path for listener in self._listeners]

    @property
    def client_count(self) -> int:
        return len(self._clients)

    @property
    def dropped_events(self) -> int:
        return max(0, self._last_number - self._sent_count)

    def emit(self, name: str, data: dict[str, Any]) -> None:
        """To all clients, or to the count of those dropped: the oldest goes when the queue is full."""
        if self._is_heard:
            self._events.append((next(self._numbers), name, data, time.time_ns()))
            self._wake()

    def _wake(self) -> None:
        if not self._is_woken:
            self._is_woken = True
            with contextlib.suppress(BlockingIOError):
                os.eventfd_write(self._wake_fd, 1)

    # -- the monitor's thread

    def serve(self) -> None:
        """Until `end`."""
        for fd in (self._wake_fd, *(listener.socket.fileno() for listener in self._listeners)):
            self._poll.register(fd, _READ)
        while self._ends_because is None:
            self._turn(None if not self._accepts_at else _ACCEPT_AGAIN_S)
        self._say_goodbye(self._ends_because)

    def close(self) -> None:
        self._is_heard = False
        for client in list(self._clients.values()):
            self._drop(client)

    def _say_goodbye(self, why: str) -> None:
        until = time.monotonic() + MONITOR_END_DEADLINE_S
        self.emit("SHUTDOWN", {"guest": False, "reason": why})
        self._pass_on()
        for client in list(self._clients.values()):
            client.is_ending = True
            self._settle(client)
        while self._clients and time.monotonic() < until:
            self._turn(until - time.monotonic())

    def _turn(self, timeout_s: float | None) -> None:
        ready = dict(self._poll.poll(None if timeout_s is None else max(timeout_s, 0) * 1000))
        if self._wake_fd in ready:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wake_fd)
        self._is_woken = False
        self._pass_on()
        if self._accepts_at and time.monotonic() >= self._accepts_at:
            self._accepts_at = 0.0
            for listener in self._listeners:
                self._poll.register(listener.socket, _READ)
        for fd, what in ready.items():
            client = self._clients.get(fd)
            if client is not None:
                self._io(client, what)
        for listener in self._listeners:
            if listener.socket.fileno() in ready and self._ends_because is None:
                self._accept(listener.socket)

    def _pass_on(self) -> None:
        """Events first: what a command has caused comes before its answer."""
        answers = [self._answers.popleft() for _ in range(len(self._answers))]
        for _ in range(len(self._events)):
            number, name, data, time_ns = self._events.popleft()
            self._last_number = max(self._last_number, number)
            self._sent_count += 1
            line = protocol.event(name, data, time_ns)
            for client in list(self._clients.values()):
                if client.is_negotiated:
                    self._send(client, line)
        for answer in answers:
            client = answer.client
            client.unanswered -= 1
            if self._clients.get(client.socket.fileno()) is client:
                client.is_negotiated |= answer.negotiates
                self._is_heard |= answer.negotiates
                self._send(client, answer.line)

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            log.warning("a client of the monitor was refused: %s", error.strerror)
            self._accepts_at = time.monotonic() + _ACCEPT_AGAIN_S
            for one in self._listeners:
                self._poll.unregister(one.socket)
            return
        sock.setblocking(False)
        if len(self._clients) >= MAX_QMP_CLIENTS:
            full = QmpError(f"{MAX_QMP_CLIENTS} clients are connected, no more are served: disconnect one")
            with sock, contextlib.suppress(OSError):
                sock.send(protocol.failure(full, NO_ID))
            return
        self._load()
        client = self._clients[sock.fileno()] = _Client(sock)
        self._poll.register(sock, _READ)
        self._send(client, protocol.greeting())

    def _load(self) -> None:
        if self._handlers is None:
            from .events import Events
            from .handlers import Handlers

            self._handlers = Handlers(self._executor, self)
            self._observing.enter_context(trace.observed(vm=Events(self.emit)))

    def _io(self, client: _Client, what: int) -> None:
        if what & _READ and not client.is_ending:
            self._receive(client)
        elif what & _GONE:
            self._drop(client)
            return
        self._settle(client)

    def _receive(self, client: _Client) -> None:
        try:
            data = client.socket.recv(_CHUNK_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        client.is_ending = not data
        messages: list[Message] = [*client.framer.feed(data)]
        client.is_ending |= client.framer.is_over
        if messages and not client.has_worker:
            client.has_worker = True
            try:
                sync.thread(self._work, "monitor-client", (client,)).start()
            except RuntimeError:
                self._send(client, protocol.failure(QmpError("no thread is left to serve you"), NO_ID))
                client.is_ending = True
                return
        client.unanswered += len(messages)
        for message in messages:
            client.requests.put(message)

    def _send(self, client: _Client, line: bytes) -> None:
        if len(client.out) + len(line) > MAX_QMP_BACKLOG_BYTES:
            log.warning("a client of the monitor reads nothing and was disconnected")
            self.dropped_clients += 1
            self._drop(client)
            return
        client.out += line
        self._settle(client)

    def _settle(self, client: _Client) -> None:
        """Send what can be sent, and see what can be waited for: a client is read when it has all its answers."""
        if client.socket.fileno() < 0:
            return
        if client.out:
            try:
                sent = client.socket.send(memoryview(client.out)[: _CHUNK_BYTES * 4])
                del client.out[:sent]
            except BlockingIOError:
                pass
            except OSError:
                self._drop(client)
                return
        if client.is_ending and not client.unanswered and not client.out:
            self._drop(client)
            return
        reads = not client.is_ending and not client.unanswered and len(client.out) < _CHUNK_BYTES
        self._poll.modify(client.socket, _READ * reads | (_WRITE if client.out else 0))

    def _drop(self, client: _Client) -> None:
        if client.socket.fileno() < 0:
            return
        del self._clients[client.socket.fileno()]
        self._poll.unregister(client.socket)
        client.socket.close()
        client.requests.put(None)
        client.out.clear()
        self._is_heard = any(one.is_negotiated for one in self._clients.values())

    # -- the thread of a client

    def _work(self, client: _Client) -> None:
        is_negotiated = False
        while (message := client.requests.get()) is not None:
            line, name = self._answer(message, negotiated=is_negotiated)
            negotiates = name == "qmp_capabilities"
            is_negotiated |= negotiates
            self._answers.append(_Answer(client, line, negotiates))
            self._wake()
            if name == "quit":
                self._executor.interrupt.quit()

    def _answer(self, message: Message, *, negotiated: bool) -> tuple[bytes, str]:
        """The line, and the command that has been done; "" for an error."""
        id_ = NO_ID
        try:
            if isinstance(message, QmpError):
                raise message
            request = protocol.parse_request(message)
            id_ = request.id
            assert self._handlers is not None
            line = protocol.success(self._handlers.execute(request, negotiated=negotiated), id_)
            if len(line) > MAX_QMP_REPLY_BYTES:
                raise QmpError(f"the answer is longer than {MAX_QMP_REPLY_BYTES} bytes: ask for less at a time")
        except QmpError as error:
            return protocol.failure(error, error.id if id_ is NO_ID else id_), ""
        except Exception as error:
            log.exception("a command of the monitor has failed")
            return protocol.failure(QmpError(f"internal error: {error!r}"), id_), ""
        return line, request.name
