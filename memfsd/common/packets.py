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
        # A fault makes these two calls. They use no attribute of this object: __getattr__ makes all of them slow.
        self.send = self._sending(sock.send, to.packet_sent)
        self.recv_into = self._receiving(sock.recv_into, to.packet_received)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def _sending(self, send: Callable[..., int], sent: Callable[..., None]) -> Callable[..., int]:
        channel, connection, unsent = self._channel, self.connection, self._unsent

        def observed(packet: bytes, *flags: int) -> int:
            sent(channel, connection, packet, 0)
            try:
                return send(packet, *flags)
            except OSError as error:
                unsent(error)
                raise

        return observed

    def _receiving(self, receive: Callable[..., int], received: Callable[..., None]) -> Callable[..., int]:
        channel, connection, failed, ended = self._channel, self.connection, self._not_received, self._received

        def observed(buffer: bytearray, nbytes: int = 0, flags: int = 0) -> int:
            try:
                size = receive(buffer, nbytes, flags)
            except OSError as error:
                failed(error)
                raise
            if size:
                received(channel, connection, bytes(memoryview(buffer)[:size]), 0)
            else:
                ended(b"", 0)
            return size

        return observed

    def sendmsg(self, buffers: list[bytes], ancillary: Any = (), *more: Any) -> int:
        fds = sum(len(data) for _, _, data in ancillary)
        self.to.packet_sent(self._channel, self.connection, b"".join(buffers), fds)
        try:
            return cast(int, self._sock.sendmsg(buffers, ancillary, *more))
        except OSError as error:
            self._unsent(error)
            raise

    def recvmsg(self, bufsize: int, *more: Any) -> Any:
        try:
            received = self._sock.recvmsg(bufsize, *more)
        except OSError as error:
            self._not_received(error)
            raise
        self._received(received[0], sum(len(data) // 4 for _, _, data in received[1]))
        return received

    def _unsent(self, error: OSError) -> None:
        self.to.packet_unsent(self._channel, self.connection, error.strerror or str(error))

    def _not_received(self, error: OSError) -> None:
        if not isinstance(error, BlockingIOError):
            self.to.channel_closed(self._channel, self.connection)

    def _received(self, packet: bytes, fds: int) -> None:
        if packet:
            self.to.packet_received(self._channel, self.connection, packet, fds)
        else:
            self.to.channel_closed(self._channel, self.connection)
