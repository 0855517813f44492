"""The journal: a line of JSON for every message that a process sent or received, and for the facts beside them.

    {"type":"journal", ...}   first record of a process: format version, side, pid
    {"type":"message", ...}   one packet, of either channel, sent or received
    {"type":"note", ...}      a local fact that a rule of the protocol is about
    {"type":"end", ...}       last record: the process ended, or the journal is full

Times are CLOCK_MONOTONIC nanoseconds, the same clock in every process of a machine, so that journals of several
processes can be merged. A sent packet is recorded before it is sent, a received one after it came: what another process
can have seen is in the journal even if this one is killed. docs/reliability.md says what each note means.

Recording stands in the way of nobody: a `Recording` is installed where a process is put together, in place of
the `Journal` that records nothing, and wraps the sockets; without it they are the sockets themselves.
"""

import errno
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import msgspec

from memfsd.uapi.framing import BadBody, BadPacket, Header, decode_failure, decode_header, decode_reply, decode_request
from memfsd.uapi.messages import Body, Hello, PairReply

from . import sync
from .sockets import Options, peer_of

FORMAT_VERSION = 1
_END_ROOM = 256
"""Bytes kept for the last record."""

S = TypeVar("S", bound=Options)


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


class Journal:
    """Records nothing: what a process has unless a journal is asked for."""

    def down(self, sock: S) -> S:
        """The socket of a down channel, recorded from now on."""
        return sock

    def up(self, down: object, sock: S) -> S:
        """That of the up channel which belongs to a down channel."""
        return sock

    def conn_of(self, down: object) -> int:
        """The number of a connection in the journal."""
        return -1

    def note(self, what: str, *, vm: str = "", ino: int = -1, conn: int = -1, **data: Any) -> None:
        """A fact, at the time when it is one."""

    def close(self) -> None:
        """The process ends."""


NO_JOURNAL = Journal()


class Recording(Journal):
    """`write` appends bytes to the journal and answers how many; `now_ns` is CLOCK_MONOTONIC. Safe from any thread.

    OSError when the first record can not be written. Later nothing stops the process, and `warn` is told once: after
    room_bytes the journal ends with a record that says so, and where it is when a write fails.
    """

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
        with self._lock:
            self._append(_encode(Opening(now_ns(), FORMAT_VERSION, side, pid)) + b"\n")

    def down(self, sock: S) -> S:
        return cast(S, JournaledSocket(self, sock, "down", About(next(self._numbers), peer_of(sock).pid)))

    def up(self, down: object, sock: S) -> S:
        assert isinstance(down, JournaledSocket)
        return cast(S, JournaledSocket(self, sock, "up", down.about))

    def conn_of(self, down: object) -> int:
        assert isinstance(down, JournaledSocket)
        return down.about.conn

    def note(self, what: str, *, vm: str = "", ino: int = -1, conn: int = -1, **data: Any) -> None:
        self._put(Note(0, what, vm, ino, conn, data))

    def closed(self, channel: str, about: "About") -> None:
        """The other end of a channel has closed it."""
        self._put(Note(0, "closed", about.vm, about.ino, about.conn, {"channel": channel}))

    def unsent(self, channel: str, about: "About", why: str) -> None:
        """The packet recorded last on this channel could not be sent."""
        self._put(Note(0, "unsent", about.vm, about.ino, about.conn, {"channel": channel, "why": why}))

    def packet(self, channel: str, about: "About", packet: bytes, fds: int, *, sent: bool) -> None:
        message = Message(0, about.conn, about.peer, channel, sent, fds=fds)
        header, body = _decoded(packet)
        if header is not None:
            message.kind, message.id = header.kind.name, header.id
            message.reply, message.errno = header.is_reply, header.errno
        if body is None:
            message.raw = packet[:512].hex()
        else:
            message.body = {name: getattr(body, name) for name in body.__struct_fields__}
            if isinstance(body, Hello):
                about.vm = body.vm
            elif isinstance(body, PairReply):
                about.ino = body.ino
        message.vm, message.ino = about.vm, about.ino
        self._put(message)

    def close(self) -> None:
        self._put(End(0, "closed"))
        self._room = 0

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
                self._warn(f"the journal can not be written and has ended: {error.strerror}")
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


@dataclass(slots=True)
class About:
    """What both channels of a connection have in common; vm and ino once they are known."""

    conn: int
    peer: int
    vm: str = ""
    ino: int = -1


class JournaledSocket:
    """A socket whose packets are recorded; everything else is the socket's own."""

    def __init__(self, journal: Recording, sock: Any, channel: str, about: About) -> None:
        self.about = about
        self._journal = journal
        self._sock = sock
        self._channel = channel

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def send(self, packet: bytes, *flags: int) -> int:
        return self._sending(packet, 0, lambda: self._sock.send(packet, *flags))

    def sendmsg(self, buffers: list[bytes], ancillary: Any = (), *more: Any) -> int:
        fds = sum(len(data) for _, _, data in ancillary)
        return self._sending(b"".join(buffers), fds, lambda: self._sock.sendmsg(buffers, ancillary, *more))

    def recv_into(self, buffer: bytearray, nbytes: int = 0, flags: int = 0) -> int:
        size = self._receiving(lambda: self._sock.recv_into(buffer, nbytes, flags))
        self._received(bytes(memoryview(buffer)[:size]), 0)
        return cast(int, size)

    def recvmsg(self, bufsize: int, *more: Any) -> Any:
        received = self._receiving(lambda: self._sock.recvmsg(bufsize, *more))
        self._received(received[0], sum(len(data) // 4 for _, _, data in received[1]))
        return received

    def _sending(self, packet: bytes, fds: int, send: Callable[[], int]) -> int:
        self._journal.packet(self._channel, self.about, packet, fds, sent=True)
        try:
            return send()
        except OSError as error:
            self._journal.unsent(self._channel, self.about, error.strerror or str(error))
            raise

    def _receiving(self, receive: Callable[[], Any]) -> Any:
        try:
            return receive()
        except BlockingIOError:
            raise
        except OSError:
            self._journal.closed(self._channel, self.about)
            raise

    def _received(self, packet: bytes, fds: int) -> None:
        if packet:
            self._journal.packet(self._channel, self.about, packet, fds, sent=False)
        else:
            self._journal.closed(self._channel, self.about)


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
