"""A socket that shows its packets: each once, in its order, with what came of it."""

import os
import socket
from collections.abc import Iterator

import pytest

from memfsd.common import packets
from memfsd.common.trace import Connection, Instrument


class Eyes(Instrument):
    """Notes what it is shown."""

    sees_packets = True

    def __init__(self) -> None:
        self.seen: list[tuple[object, ...]] = []

    def connected(self, connection: Connection) -> None:
        self.seen.append(("connected", connection.peer))

    def packet_sent(self, channel: str, connection: Connection, packet: bytes, fds: int) -> None:
        self.seen.append(("sent", channel, packet, fds))

    def packet_unsent(self, channel: str, connection: Connection, why: str) -> None:
        self.seen.append(("unsent", channel, why))

    def packet_received(self, channel: str, connection: Connection, packet: bytes, fds: int) -> None:
        self.seen.append(("received", channel, packet, fds))

    def channel_closed(self, channel: str, connection: Connection) -> None:
        self.seen.append(("closed", channel))


@pytest.fixture
def eyes() -> Eyes:
    return Eyes()


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


def test_what_is_sent_is_seen_before_the_peer_has_it(eyes: Eyes, ends: tuple[socket.socket, socket.socket]) -> None:
    ours = packets.down(ends[0], eyes)
    ours.send(b"one")
    socket.send_fds(ours, [b"t", b"wo"], [0, 1, 2])
    assert eyes.seen == [("connected", os.getpid()), ("sent", "down", b"one", 0), ("sent", "down", b"two", 3)]
    assert [ends[1].recv(16), ends[1].recv(16)] == [b"one", b"two"]


def test_what_comes_is_seen_with_its_descriptors_and_so_is_the_end(
    eyes: Eyes, ends: tuple[socket.socket, socket.socket]
) -> None:
    ours = packets.down(ends[0], eyes)
    socket.send_fds(ends[1], [b"two"], [0, 1])
    _, fds, _, _ = socket.recv_fds(ours, 16, 4)
    for fd in fds:
        os.close(fd)
    ends[1].send(b"three")
    buffer = bytearray(b"\xff" * 16)
    assert ours.recv_into(buffer) == 5
    ends[1].close()
    assert ours.recv_into(buffer) == 0
    assert eyes.seen[1:] == [("received", "down", b"two", 2), ("received", "down", b"three", 0), ("closed", "down")]


def test_a_packet_that_could_not_be_sent_is_taken_back(eyes: Eyes, ends: tuple[socket.socket, socket.socket]) -> None:
    ours = packets.down(ends[0], eyes)
    ends[1].close()
    with pytest.raises(BrokenPipeError):
        ours.send(b"one")
    assert eyes.seen[1:] == [("sent", "down", b"one", 0), ("unsent", "down", "Broken pipe")]


def test_nothing_there_yet_is_nothing_to_see(eyes: Eyes, ends: tuple[socket.socket, socket.socket]) -> None:
    ours = packets.down(ends[0], eyes)
    ends[0].setblocking(False)
    with pytest.raises(BlockingIOError):
        ours.recv_into(bytearray(16))
    assert eyes.seen == [("connected", os.getpid())]


def test_the_up_channel_belongs_to_the_connection_of_its_down_channel(
    eyes: Eyes, ends: tuple[socket.socket, socket.socket]
) -> None:
    down = packets.down(ends[0], eyes)
    assert packets.up(ends[1], ends[0]) is ends[0], "of one that nobody observes"
    up = packets.up(down, ends[1])
    up.send(b"call")
    assert eyes.seen[1:] == [("sent", "up", b"call", 0)]
    assert isinstance(up, packets.ObservedSocket) and isinstance(down, packets.ObservedSocket)
    assert up.connection is down.connection
