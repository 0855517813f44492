"""Calls from the store to a VM, each with a deadline: the "function pointers" that KVM gave it."""

import socket
import struct
import time
from collections.abc import Callable
from typing import TypeVar, cast

from memfsd.common import sync
from memfsd.store.peer import PeerGone, PeerRefused, PeerSilent
from memfsd.uapi.errors import PeerLost, errno_name, one_line
from memfsd.uapi.framing import BadBody, decode_failure, decode_header, decode_reply, encode_request
from memfsd.uapi.limits import ACK_DEADLINE_S, MAX_PACKET_BYTES
from memfsd.uapi.messages import Body, Kind

_MAX_ABANDONED = 64
_Reply = TypeVar("_Reply", bound=Body)


def timeval(timeout_s: float) -> bytes:
    """struct timeval for SO_RCVTIMEO and SO_SNDTIMEO."""
    micros = -(-timeout_s * 1_000_000 // 1)
    return struct.pack("ll", *divmod(int(micros), 1_000_000))


def set_deadline(sock: socket.socket, timeout_s: float) -> None:
    """Kernel timeouts on a blocking socket: no poll before each call. 0 waits forever."""
    value = timeval(timeout_s)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)


class UpChannel:
    """One call at a time; `_lock` guards the socket, `_next_id` and the buffer."""

    def __init__(
        self, sock: socket.socket, deadline_s: float = ACK_DEADLINE_S, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._sock = sync.channel(sock, "store.up")
        self._deadline_s = self._armed_s = deadline_s
        self._now_s = now_s
        self.last_call_s = 0.0
        """How long the VM took for its last call: who was quick is asked first when the pool is full."""
        set_deadline(self._sock, deadline_s)
        self._lock = sync.lock("UpChannel.lock")
        self._next_id = 1
        self._abandoned: set[int] = set()
        """Calls that nobody waits for any more; their answers may still come."""
        self._buffer = bytearray(MAX_PACKET_BYTES)

    def call(self, kind: Kind, body: Body, reply: type[_Reply]) -> _Reply:
        """PeerSilent at the deadline, which counts from here; PeerGone at end of file; PeerRefused; PeerLost for a
        broken answer."""
        begun = self._now_s()
        if not self._lock.acquire(timeout=self._deadline_s):
            raise PeerSilent(f"{kind.name} could not be sent: the call before it is not answered")
        try:
            return self._call(kind, body, reply, begun + self._deadline_s)
        finally:
            self.last_call_s = self._now_s() - begun
            self._lock.release()

    def _call(self, kind: Kind, body: Body, reply: type[_Reply], until: float) -> _Reply:
        id_, self._next_id = self._next_id, self._next_id % 0xFFFFFFFF + 1
        try:
            self._sock.send(encode_request(id_, kind, body))
            packet = self._receive(kind, until)
            header = decode_header(packet)
            while header.is_reply and header.id in self._abandoned:
                self._abandoned.remove(header.id)
                packet = self._receive(kind, until)
                header = decode_header(packet)
        except BlockingIOError:
            if len(self._abandoned) >= _MAX_ABANDONED:
                raise PeerLost(f"{_MAX_ABANDONED} calls were not answered") from None
            self._abandoned.add(id_)
            raise PeerSilent(f"no answer to {kind.name} in time") from None
        except OSError as error:
            raise PeerGone(f"{kind.name}: {error.strerror}") from None
        if not header.is_reply or header.kind is not kind or header.id != id_:
            raise PeerLost(f"{header.kind.name} {header.id} does not answer {kind.name} {id_}")
        try:
            if header.errno:
                reason = one_line(decode_failure(packet).reason)
                raise PeerRefused(header.errno, f"{kind.name} refused with {errno_name(header.errno)}: {reason}")
            return cast(_Reply, decode_reply(kind, packet))
        except BadBody as error:
            raise PeerLost(str(error)) from None

    def _receive(self, kind: Kind, until: float) -> memoryview:
        self._arm(until - self._now_s())
        size = self._sock.recv_into(self._buffer, 0, socket.MSG_TRUNC)
        if size == 0:
            raise PeerGone(f"the VM closed its side before it answered {kind.name}")
        if size > MAX_PACKET_BYTES:
            raise PeerLost(f"the answer to {kind.name} has {size} bytes")
        return memoryview(self._buffer)[:size]

    def _arm(self, left_s: float) -> None:
        """The kernel's timeout for the next packet is what is left of the call: as a rule all of it, and set."""
        if left_s <= 0:
            raise BlockingIOError
        wanted = self._deadline_s if left_s > 0.9 * self._deadline_s else left_s
        if wanted != self._armed_s:
            set_deadline(self._sock, wanted)
            self._armed_s = wanted

    def shut(self) -> None:
        """Wake whoever waits here; later calls fail at once."""
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            return

    def close(self) -> None:
        with self._lock:
            self._sock.close()
