"""The journal: a line of JSON for every message that a process sent or received, and for the facts beside them.

    {"type":"journal", ...}   first record of a process: format version, side, pid
    {"type":"message", ...}   one packet, of either channel, sent or received
    {"type":"note", ...}      a local fact that a rule of the protocol is about
    {"type":"end", ...}       last record: the process ended, or the journal is full

Times are CLOCK_MONOTONIC nanoseconds, the same clock in every process of a machine, so that journals of several
processes can be merged. A sent packet is recorded before it is sent, a received one after it came: what another process
can have seen is in the journal even if this one is killed. docs/reliability.md says what each note means.

Recording blocks nobody: a `Recording` is an instrument, which observes the trace points of one side
(common/trace.py) for as long as the process has a journal.
"""

import errno
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from memfsd.uapi.framing import BadBody, BadPacket, Header, decode_failure, decode_header, decode_reply, decode_request
from memfsd.uapi.limits import MAX_RUNS_PER_REPORT
from memfsd.uapi.messages import Body, Hello, PairReply
from memfsd.uapi.units import Gfn, GfnRange, Pfn, Pgoff

from . import sync, trace
from .ratelimit import Ratelimit
from .trace import Connection

FORMAT_VERSION = 1
_END_ROOM = 256
"""Bytes kept for the last record."""


class Opening(msgspec.Struct, tag="journal"):
    """side: memfsd or kvmsim."""

    t: int
    version: int
    side: str
    pid: int


class Message(msgspec.Struct, tag="message"):
    """One packet. conn counts the connections of this process; peer is the pid at its other end.

    channel: down or up. kind, id, reply, errno: its header, absent if that makes no sense. body: its fields by name, or
    None and raw: the packet in hex (cut to 512 bytes). vm and ino as far as they are known. fds came along.
    """

    t: int
    conn: int
    peer: int
    channel: str
    sent: bool
    vm: str = ""
    ino: int = -1
    kind: str = ""
    id: int = -1
    reply: bool = False
    errno: int = 0
    body: dict[str, Any] | None = None
    raw: str = ""
    fds: int = 0


class Note(msgspec.Struct, tag="note"):
    """what happened, in which file and VM; data by the kind of fact."""

    t: int
    what: str
    vm: str = ""
    ino: int = -1
    conn: int = -1
    data: dict[str, Any] = {}


class End(msgspec.Struct, tag="end"):
    """The last record: why nothing follows."""

    t: int
    why: str


Entry = Opening | Message | Note | End
_encode = msgspec.json.Encoder().encode
decode_entry: Callable[[bytes], Entry] = msgspec.json.Decoder(Opening | Message | Note | End).decode
"""msgspec.MsgspecError when the line is no record."""


class Recording(trace.Instrument):
    """`write` appends bytes to the journal and answers how many; `now_ns` is CLOCK_MONOTONIC. Safe from any thread.

    OSError when the first record cannot be written. Later nothing stops the process, and `warn` is called once: after
    room_bytes the journal ends with a record that says so, and where it is when a write fails.
    """

    sees_packets = True

    def __init__(
        self,
        side: str,
        pid: int,
        write: Callable[[bytes], int],
        now_ns: Callable[[], int],
        warn: Callable[[str], None],
        room_bytes: int,
    ) -> None:
        self._write = write
        self._now_ns = now_ns
        self._warn = warn
        self._room = room_bytes
        self._lock = sync.lock("Recording.lock")
        self._numbers = itertools.count(1)
        self._counting = Ratelimit()
        self._flushing: dict[str, int] = {}
        """By VM: when the flush of the TLBs began that follows its last zap. Guarded by its Mmu.lock."""
        with self._lock:
            self._append(_encode(Opening(now_ns(), FORMAT_VERSION, side, pid)) + b"\n")

    def note(self, what: str, *, vm: str = "", ino: int = -1, conn: int = -1, **data: Any) -> None:
        self._put(Note(0, what, vm, ino, conn, data))

    def close(self) -> None:
        """The process ends."""
        self._put(End(0, "closed"))
        self._room = 0

    # -- trace points, of the side whose journal it is

    def connected(self, connection: Connection) -> None:
        connection.number = next(self._numbers)

    def packet_sent(self, channel: str, connection: Connection, packet: bytes, fds: int) -> None:
        self._packet(channel, connection, packet, fds, sent=True)

    def packet_unsent(self, channel: str, connection: Connection, why: str) -> None:
        """It is the packet recorded last on this channel."""
        self._put(Note(0, "unsent", connection.vm, connection.ino, connection.number, {"channel": channel, "why": why}))

    def packet_received(self, channel: str, connection: Connection, packet: bytes, fds: int) -> None:
        self._packet(channel, connection, packet, fds, sent=False)

    def channel_closed(self, channel: str, connection: Connection) -> None:
        self._put(Note(0, "closed", connection.vm, connection.ino, connection.number, {"channel": channel}))

    def frames_zeroed(self, window: int | None, runs: Sequence[tuple[int, int]]) -> None:
        """In parts that fit in a line; ordinary files are nobody's business."""
        if window is not None:
            for part in range(0, len(runs), MAX_RUNS_PER_REPORT):
                self.note("freed", ino=window, runs=runs[part : part + MAX_RUNS_PER_REPORT])

    def vm_disconnected(self, ino: int, vm: str, why: str) -> None:
        self.note("cut", vm=vm, ino=ino, why=why)

    def vm_exited(self, ino: int, vm: str, pid: int, said_bye: bool) -> None:
        self.note("gone", vm=vm, ino=ino, pid=pid, said_bye=said_bye)

    def installed(self, vm: str, ino: int, conn: int, gfn: Gfn, pgoff: Pgoff, pfn: Pfn, page_count: int) -> None:
        self.note("installed", vm=vm, ino=ino, conn=conn, gfn=gfn, pgoff=pgoff, pfn=pfn, pages=page_count)

    def frames_found(self, vm: str, ino: int, conn: int, pgoff: Pgoff, pfn: Pfn, page_count: int, seq: int) -> None:
        self.note("found", vm=vm, ino=ino, conn=conn, pgoff=pgoff, pfn=pfn, pages=page_count, seq=seq)

    def flush_begun(self, vm: str) -> None:
        self._flushing[vm] = self._now_ns()

    def zapped(self, vm: str, start: Gfn, end: Gfn, kept: list[GfnRange]) -> None:
        """flush: when the TLBs' began; those of a reclaim need none."""
        began = self._flushing.pop(vm, None)
        flush = {} if began is None else {"flush": began}
        self.note("zapped", vm=vm, start=start, end=end, kept=kept, **flush)

    def kicked_out(self, vm: str, since_ns: int) -> None:
        self.note("out", vm=vm, since=since_ns)

    def slot_changed(self, vm: str, private: bool, slot: int, segments: Callable[[], list[GfnRange]]) -> None:
        self.note("slot", vm=vm, private=private, slot=slot, segments=segments()[:MAX_RUNS_PER_REPORT])

    def userspace_exit(self, vm: str, vcpu: int, reason: str, number: int, fields: trace.Fields) -> None:
        self.note("exit", vm=vm, vcpu=vcpu, reason=reason)

    def memory_error(self, vm: str, vcpu: int, fields: Mapping[str, int | str | bool], why: str) -> None:
        self._put(Note(0, "memory_error", vm, data={"vcpu": vcpu, "why": why, **fields}))

    def contents_destroyed(self, memory: object, frame: int, frame_count: int) -> None:
        self.note("destroyed", pages=frame_count)

    def converted(self, vm: str, start: Gfn, end: Gfn, private: bool, held: Callable[[], tuple[int, int]]) -> None:
        """What is held takes a look at all memory: now and then is enough."""
        memory, now = {}, self._now_ns()
        if self._counting.allows(now):
            shared, doubled = held()
            memory = {"shared": shared, "doubled": doubled}
            self._counting.spent(self._now_ns() - now)
        self.note("converted", vm=vm, start=start, end=end, private=private, **memory)

    def _packet(self, channel: str, connection: Connection, packet: bytes, fds: int, *, sent: bool) -> None:
        message = Message(0, connection.number, connection.peer, channel, sent, fds=fds)
        header, body = _decoded(packet)
        if header is not None:
            message.kind, message.id = header.kind.name, header.id
            message.reply, message.errno = header.is_reply, header.errno
        if body is None:
            message.raw = packet[:512].hex()
        else:
            message.body = {name: getattr(body, name) for name in body.__struct_fields__}
            if isinstance(body, Hello):
                connection.vm = body.vm
            elif isinstance(body, PairReply):
                connection.ino = body.ino
        message.vm, message.ino = connection.vm, connection.ino
        self._put(message)

    def _put(self, entry: Entry) -> None:
        with self._lock:
            if not self._room:
                return
            # Taken with the lock held: the order of the lines is that of their times.
            entry.t = self._now_ns()
            line = _encode(entry) + b"\n"
            is_full = len(line) > self._room - _END_ROOM and not isinstance(entry, End)
            if is_full:
                line = _encode(End(entry.t, "full: the limit of a journal's size is reached")) + b"\n"
            try:
                self._append(line)
            except OSError as error:
                self._room = 0
                self._warn(f"the journal cannot be written and has ended: {error.strerror}")
            else:
                if is_full:
                    self._room = 0
                    self._warn("the journal is full and has ended: nothing is recorded any more")

    def _append(self, line: bytes) -> None:
        """Under the lock. OSError unless the whole line was written."""
        written = self._write(line)
        if written != len(line):
            raise OSError(errno.ENOSPC, "the disk is full")
        self._room -= written


def _decoded(packet: bytes) -> tuple[Header | None, Body | None]:
    try:
        header = decode_header(packet)
    except BadPacket:
        return None, None
    try:
        if header.errno:
            return header, decode_failure(packet)
        return header, (decode_reply if header.is_reply else decode_request)(header.kind, packet)
    except BadBody:
        return header, None
