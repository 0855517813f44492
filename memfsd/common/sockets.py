"""What both ends ask of an AF_UNIX socket, given as the object that `socket` made."""

import socket
import struct
from typing import Any, NamedTuple, Protocol

_SOL_SOCKET, _SO_PEERCRED = 1, 17
_CREDENTIALS = struct.Struct("iii")


class Options(Protocol):
    """A socket, or what has its options."""

    def getsockopt(self, level: int, option: int, size: int, /) -> bytes: ...


class Receives(Protocol):
    """A socket, or what is in the place of one."""

    def recvmsg(self, bufsize: int, ancbufsize: int = ..., flags: int = ..., /) -> Any: ...


class Credentials(NamedTuple):
    """struct ucred."""

    pid: int
    uid: int
    gid: int


def peer_of(connection: Options) -> Credentials:
    """Who connected, or on the connecting side who listens: the kernel's word (SO_PEERCRED)."""
    return Credentials(*_CREDENTIALS.unpack(connection.getsockopt(_SOL_SOCKET, _SO_PEERCRED, _CREDENTIALS.size)))


def receive_with_fds(sock: Receives, size: int, most: int) -> tuple[bytes, list[int], int]:
    """One packet, the descriptors that came with it (close-on-exec, the caller's), and recvmsg(2)'s flags.

    socket.recv_fds of Python 3.11 drops its flags.
    """
    packet, ancillary, flags, _ = sock.recvmsg(size, socket.CMSG_LEN(most * 4), socket.MSG_CMSG_CLOEXEC)
    fds = [
        fd
        for level, kind, data in ancillary
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS
        for fd in struct.unpack(f"{len(data) // 4}i", data[: len(data) // 4 * 4])
    ]
    return packet, fds, flags
