"""--trace FILE: events in the kernel's text form, as /sys/kernel/tracing/trace_pipe has them.

    # tracer: nop
    # side: kvmsim pid: 4711 clock: mono
               vm0/0-4711    [001] .....  8712.003417: kvm_exit: vcpu 0 reason EPT_VIOLATION rip 0x0 ...

The number after the task is the thread's id; the clock is CLOCK_MONOTONIC, one for all processes of a machine. An event
costs its thread a record in a ring (_ring.c), as in the kernel; a thread of the trace makes text of it. So a slow disk
or a FIFO that nobody reads delays nobody: what finds no room is lost, and counted as the kernel does.
"""

import contextlib
import errno
import functools
import os
import select
import stat
import struct
from collections.abc import Callable, Iterable

from memfsd.uapi.errors import Refused
from memfsd.uapi.framing import unpack_header
from memfsd.uapi.limits import MAX_TRACE_BYTES, MAX_TRACE_QUEUE
from memfsd.uapi.messages import REPLY, Kind

from . import _ring, sync
from . import traceevents as e
from .journalfile import appending, open_record, read_at
from .quote import printable, quoted
from .traceevents import Event, Value
from .tracefilter import BadFilter, Predicate, parse

_FLUSH_S = 0.05
_END_DEADLINE_S = 1.0
_BATCH = 512
"""Events between two writes: their text is made without letting other threads have the GIL, in 0.2 ms."""

Wanted = dict[Event, Predicate | None]
"""Events, with their filter."""


def wanted(chosen: Iterable[tuple[str, str]]) -> Wanted:
    """-e and -f, in pairs; all events when there are none. EINVAL (Refused): names no event, or a bad filter."""
    found: Wanted = {}
    for pattern, text in chosen:
        for event in e.chosen(pattern):
            try:
                found[event] = parse(text, event) if text else None
            except BadFilter as error:
                raise Refused(errno.EINVAL, f"filter {quoted(text)}: {error}") from None
    return found or dict.fromkeys(e.EVENTS.values())


def open_trace(path: str) -> int:
    """As `journalfile.open_journal`."""
    return open_record(path, "trace", is_trace)


def is_trace(first_line: bytes) -> bool:
    return first_line.startswith(b"# tracer: ")


class TraceFile:
    """Owns the fd. `warn` is called once, from the trace's thread, when it cannot go on; nothing else stops.

    Make it after the process has forked: its thread does not survive that. Refused when the head cannot be written.
    """

    def __init__(self, fd: int, side: str, wanted: Wanted, warn: Callable[[str], None]) -> None:
        self._fd, self._warn = fd, warn
        self.wanted = set(wanted)
        """Events that are on. A filter stays an event's when it is off, and on again."""
        self._ring = _ring.Ring(MAX_TRACE_QUEUE, self.wanted, wanted, word, _DECODERS)
        self.put = self._ring.put
        """An event of a task, with its values: from any thread, with whatever lock held. It waits for nothing."""
        status = os.fstat(fd)
        is_regular = stat.S_ISREG(status.st_mode)
        self._room = MAX_TRACE_BYTES - status.st_size
        """Bytes."""
        self._append = appending(fd) if is_regular else functools.partial(os.write, fd)
        self._stop = sync.event("TraceFile.stop")
        self._ended = False
        try:
            if is_regular and status.st_size and read_at(fd, 1, status.st_size - 1) != b"\n":
                self._write(b"\n")  # a line that a crash tore stays a line by itself
            self._write(f"# tracer: nop\n# side: {side} pid: {os.getpid()} clock: mono\n".encode())
        except OSError as error:
            if is_regular:
                with contextlib.suppress(OSError):
                    os.ftruncate(fd, status.st_size)
            os.close(fd)
            raise Refused(error.errno or errno.EIO, f"the trace cannot be written: {error.strerror}") from None
        self._thread = sync.thread(self._pass_on, "trace")
        self._thread.start()

    def close(self) -> None:
        """Writes what is queued, as far as a deadline lets it."""
        self._stop.set()
        self._thread.join(_END_DEADLINE_S)
        if self._thread.is_alive():
            self._end("nobody reads it")
        else:
            os.close(self._fd)

    def _pass_on(self) -> None:
        try:
            while not self._stop.wait(_FLUSH_S):
                self._drain()
            self._drain()
        except OSError as error:
            self._end(error.strerror or str(error))

    def _drain(self) -> None:
        while self._ring and not self._ended:
            lost = self._ring.take_lost()
            if lost:
                self._write(f"CPU:0 [LOST {lost} EVENTS]\n".encode())
            self._write(self._ring.text(_BATCH))

    def _write(self, data: bytes) -> None:
        """OSError when it cannot be written to the end."""
        if len(data) > self._room:
            raise OSError(errno.EFBIG, "the limit of a trace's size is reached")
        while data:
            try:
                written = self._append(data)
            except BlockingIOError:
                self._wait_for_reader()
                continue
            self._room -= written
            data = data[written:]

    def _wait_for_reader(self) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        poll.poll(_END_DEADLINE_S * 1000)
        if self._ended:
            raise OSError(errno.EAGAIN, "nobody reads it")

    def _end(self, why: str) -> None:
        if not self._ended:
            self._ended = True
            self._ring.end()
            self._warn(f"the trace cannot be written and has ended: {why}")


def _packet(channel: str, packet: bytes, vm: str, ino: int, peer: int, fds: int) -> tuple[Value, ...] | None:
    """The fields of a packet's event, by its header."""
    try:
        id_, kind, number = unpack_header(packet)
        name, is_reply = _KINDS[kind]
    except (struct.error, KeyError):
        return None
    return channel, name, id_, is_reply, number, word(vm), ino, peer, fds


_KINDS = {kind | reply: (kind.name, int(reply > 0)) for kind in Kind for reply in (0, REPLY)}
_DECODERS = dict.fromkeys((e.VM_SEND, e.VM_RECEIVE, e.STORE_SEND, e.STORE_RECEIVE), _packet)
"""Of events whose values are raw when they happen."""


@functools.lru_cache(1024)
def word(text: str) -> str:
    """A name in one word, and not empty."""
    return "_".join(printable(text).split()) or "-"
