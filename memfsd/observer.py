"""A tool's connection to a running memfsd: HELLO as an observer, then questions."""

import errno
import os
import socket
from types import TracebackType
from typing import TypeVar, cast

from memfsd.uapi.errors import PeerLost, Refused
from memfsd.uapi.framing import BadBody, decode_failure, decode_header, decode_reply, encode_request
from memfsd.uapi.limits import ANSWER_DEADLINE_S, MAX_PACKET_BYTES
from memfsd.uapi.messages import PROTOCOL_VERSION, Body, Hello, HelloReply, Kind, Role
from memfsd.uapi.names import XATTR_SOCKET

_Reply = TypeVar("_Reply", bound=Body)


def socket_of(path: str) -> str:
    """The socket of the memfsd that serves this path. Refused when none does."""
    try:
        return os.fsdecode(os.getxattr(path, XATTR_SOCKET))
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            raise Refused(errno.EOPNOTSUPP, f"{path} is not on a memfsd mount") from None
        raise Refused(error.errno or errno.EIO, f"{path}: {error.strerror}") from None


class Observer:
    """One connection; PeerLost when memfsd is gone, silent, or breaks the protocol."""

    def __init__(self, path: str) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sock.settimeout(ANSWER_DEADLINE_S)
        try:
            self._sock.connect(path)
        except OSError as error:
            self._sock.close()
            raise PeerLost(f"memfsd does not listen at {path}: {error.strerror}") from None
        self.ask(Kind.HELLO, Hello(PROTOCOL_VERSION, Role.OBSERVER, "observer", []), HelloReply)

    def __enter__(self) -> "Observer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sock.close()

    def ask(self, kind: Kind, body: Body, reply: type[_Reply]) -> _Reply:
        """Refused when memfsd says no."""
        try:
            self._sock.send(encode_request(1, kind, body))
            packet = self._sock.recv(MAX_PACKET_BYTES)
        except OSError as error:
            raise PeerLost(f"{kind.name}: {error.strerror or 'no answer in time'}") from None
        if not packet:
            raise PeerLost(f"memfsd closed the connection before it answered {kind.name}")
        header = decode_header(packet)
        try:
            if header.errno:
                raise Refused(header.errno, decode_failure(packet).reason)
            return cast(_Reply, decode_reply(kind, packet))
        except BadBody as error:
            raise PeerLost(str(error)) from None
