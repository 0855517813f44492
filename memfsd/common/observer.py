"""A tool's connection to a running memfsd: HELLO as an observer, then questions."""

import contextlib
import errno
import os
import socket
from types import TracebackType
from typing import TypeVar, cast

from memfsd.common.mounts import check_serves
from memfsd.common.quote import quoted
from memfsd.common.sockets import peer_of, receive_with_fds
from memfsd.common.stores import Store
from memfsd.uapi.errors import PeerLost, Refused
from memfsd.uapi.framing import BadBody, decode_failure, decode_header, decode_reply, encode_request
from memfsd.uapi.limits import ANSWER_DEADLINE_S, MAX_PACKET_BYTES
from memfsd.uapi.messages import PROTOCOL_VERSION, Body, Hello, HelloReply, Kind, Role
from memfsd.uapi.proof import NONCE_BYTES

_Reply = TypeVar("_Reply", bound=Body)


class Observer:
    """One connection; PeerLost when memfsd is gone, silent, or breaks the protocol."""

    def __init__(self, store: Store) -> None:
        """EPERM when who listens there cannot be the mount's memfsd."""
        path = store.socket
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sock.settimeout(ANSWER_DEADLINE_S)
        try:
            self._sock.connect(path)
        except OSError as error:
            self._sock.close()
            raise PeerLost(f"memfsd does not listen at {quoted(path)} ({error.strerror}): is it running?") from None
        try:
            check_serves(store.mount, peer_of(self._sock).uid, path)
        except Refused:
            self._sock.close()
            raise
        self.ask(
            Kind.HELLO, Hello(PROTOCOL_VERSION, Role.OBSERVER, "observer", [], b"", os.urandom(NONCE_BYTES)), HelloReply
        )

    def __enter__(self) -> "Observer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sock.close()

    def ask(self, kind: Kind, body: Body, reply: type[_Reply]) -> _Reply:
        """Refused when memfsd says no."""
        answer, fds = self._ask(kind, body)
        for fd in fds:
            os.close(fd)
        return cast(_Reply, answer)

    def ask_for_fd(self, kind: Kind, body: Body, reply: type[_Reply]) -> tuple[_Reply, int]:
        """As `ask`, and the descriptor that comes with the answer."""
        answer, fds = self._ask(kind, body)
        if not fds:
            raise PeerLost(f"memfsd passed no descriptor with {kind.name}, or this process has no room for one")
        return cast(_Reply, answer), fds[0]

    def _ask(self, kind: Kind, body: Body) -> tuple[Body, list[int]]:
        fds: list[int] = []
        try:
            with contextlib.suppress(BrokenPipeError):  # it may have said why it hangs up
                self._sock.send(encode_request(1, kind, body))
            try:
                packet, fds, _ = receive_with_fds(self._sock, MAX_PACKET_BYTES, 1)
            except ConnectionResetError:
                packet = self._sock.recv(MAX_PACKET_BYTES)
        except OSError as error:
            if isinstance(error, TimeoutError):
                reason = f"memfsd did not answer {kind.name} within {ANSWER_DEADLINE_S:g} s: it is stopped, or busy"
                raise PeerLost(f"{reason}: try again") from None
            if error.errno not in (errno.EPIPE, errno.ECONNRESET):
                raise PeerLost(f"{kind.name}: {error.strerror}") from None
            packet = b""
        if not packet:
            raise PeerLost(
                f"memfsd closed the connection before it answered {kind.name}: it ends, or is out of connections"
                " or descriptors: see syslog, or its stderr with -f, and try again"
            )
        header = decode_header(packet)
        try:
            if header.errno:
                raise Refused(header.errno, decode_failure(packet).reason)
            return decode_reply(kind, packet), fds
        except BadBody as error:
            raise PeerLost(str(error)) from None
