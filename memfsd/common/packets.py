"""The packets of a connection, observed: a socket that shows each of them to an instrument.

`down` and `up` return the socket that they were given unless somebody observes when the connection is made: then, and
only then, a packet pays for it.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

from .sockets import Options, peer_of
from .trace import Connection, Instrument

S = TypeVar("S", bound=Options)


def down(sock: S, to: Instrument | None) -> S:
    """One end of a down channel."""
    if to is None or not to.sees_packets:
        return sock
    connection = Connection(peer_of(sock).pid)
    to.connected(connection)
    return cast(S, ObservedSocket(to, sock, "down", connection))


def up(down: object, sock: S) -> S:
    """The same end of the up channel which belongs to a down channel."""
    if not isinstance(down, ObservedSocket):
        return sock
    return cast(S, ObservedSocket(down.to, sock, "up", down.connection))


def number_of(down: object) -> int:
    """The connection's number in the journal, -1 without one."""
    return down.connection.number if isinstance(down, ObservedSocket) else -1


class ObservedSocket:
    """Everything but packets is the socket's own."""

    def __init__(self, to: Instrument, sock: Any, channel: str, connection: Connection) -> None:
        self.to = to
        self.connection = connection
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
        self.to.packet_sent(self._channel, self.connection, packet, fds)
        try:
            return send()
        except OSError as error:
            self.to.packet_unsent(self._channel, self.connection, error.strerror or str(error))
            raise

    def _receiving(self, receive: Callable[[], Any]) -> Any:
        try:
            return receive()
        except BlockingIOError:
            raise
        except OSError:
            self.to.channel_closed(self._channel, self.connection)
            raise

    def _received(self, packet: bytes, fds: int) -> None:
        if packet:
            self.to.packet_received(self._channel, self.connection, packet, fds)
        else:
            self.to.channel_closed(self._channel, self.connection)
