"""What both ends ask of an AF_UNIX socket, given as the object that `socket` made."""

import struct
from typing import NamedTuple, Protocol

_SOL_SOCKET, _SO_PEERCRED = 1, 17
_CREDENTIALS = struct.Struct("iii")


class Options(Protocol):
    """A socket, or what has its options."""

    def getsockopt(self, level: int, option: int, size: int, /) -> bytes: ...


class Credentials(NamedTuple):
    """struct ucred."""

    pid: int
    uid: int
    gid: int


def peer_of(connection: Options) -> Credentials:
    """Who connected, or on the connecting side who listens: the kernel's word (SO_PEERCRED)."""
    return Credentials(*_CREDENTIALS.unpack(connection.getsockopt(_SOL_SOCKET, _SO_PEERCRED, _CREDENTIALS.size)))
