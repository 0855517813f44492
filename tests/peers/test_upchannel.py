"""Calls from the store to a VM: one deadline for each, whatever the VM says meanwhile."""

import errno
import socket
from collections.abc import Iterator

import pytest

from memfsd.peers.upchannel import UpChannel
from memfsd.store.peer import PeerGone, PeerRefused, PeerSilent
from memfsd.uapi import messages as m
from memfsd.uapi.framing import decode_header, encode_failure, encode_reply
from memfsd.uapi.messages import Kind
from tests.support.threads import Beside, Gate

DEADLINE_S = 100.0
"""By the test's clock."""
OLD_CALLS = 40


class Clock:
    """Of the channel, and of the kernel's timeouts."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class SlowVm:
    """In the place of the socket. Each packet comes after `pace` seconds, or not at all if that is past the timeout."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.timeout = 0.0
        self.packets: list[bytes] = []
        self.pace = 0.0
        self.sent: list[int] = []

    def setsockopt(self, level: int, option: int, value: bytes) -> None:
        seconds, micros = (int.from_bytes(value[at : at + 8], "little") for at in (0, 8))
        self.timeout = seconds + micros / 1e6

    def send(self, packet: bytes) -> int:
        self.sent.append(decode_header(packet).id)
        return len(packet)

    def recv_into(self, buffer: bytearray, size: int, flags: int) -> int:
        if not self.packets or self.pace > self.timeout:
            self._clock.now += self.timeout
            raise BlockingIOError
        self._clock.now += self.pace
        packet = self.packets.pop(0)
        buffer[: len(packet)] = packet
        return len(packet)

    def close(self) -> None:
        pass


@pytest.fixture
def clock() -> Clock:
    return Clock()


def ping(channel: UpChannel) -> None:
    channel.call(Kind.INVALIDATE_END, m.InvalidateEnd(0, 1, 1), m.Empty)


def test_a_vm_that_answers_old_calls_one_by_one_does_not_stretch_the_deadline(clock: Clock) -> None:
    vm = SlowVm(clock)
    channel = UpChannel(vm, DEADLINE_S, clock)  # type: ignore[arg-type]
    for _ in range(OLD_CALLS):
        with pytest.raises(PeerSilent):
            ping(channel)
    vm.packets = [encode_reply(id_, Kind.INVALIDATE_END, m.Empty()) for id_ in vm.sent]
    vm.pace = DEADLINE_S * 0.3
    begun = clock.now
    with pytest.raises(PeerSilent):
        ping(channel)
    assert clock.now - begun == pytest.approx(DEADLINE_S)
    vm.pace = 0.0
    vm.packets.append(encode_reply(vm.sent[-1], Kind.INVALIDATE_END, m.Empty()))
    vm.packets.append(encode_reply(vm.sent[-1] + 1, Kind.INVALIDATE_END, m.Empty()))
    ping(channel)
    assert vm.timeout == DEADLINE_S, "the next call has all of its time again"


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    yield ours, theirs
    theirs.close()


def test_a_call_does_not_wait_behind_another_for_longer_than_its_deadline(
    ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    channel, gate = UpChannel(ends[0], 0.02), Gate()

    def held(*_: object) -> memoryview:
        gate.wait()
        raise PeerGone("the VM closed its side")

    with monkeypatch.context() as patch:
        patch.setattr(channel, "_receive", held)
        first = Beside(lambda: ping(channel))
        gate.reached()
        with pytest.raises(PeerSilent, match="the call before it"):
            ping(channel)
        gate.open()
        with pytest.raises(PeerGone):
            first.result()
    channel.close()


def test_a_refusal_is_no_silence(clock: Clock) -> None:
    vm = SlowVm(clock)
    channel = UpChannel(vm, DEADLINE_S, clock)  # type: ignore[arg-type]
    vm.packets = [encode_failure(1, Kind.INVALIDATE_END, errno.EBUSY, "not now")]
    with pytest.raises(PeerRefused, match="EBUSY: not now"):
        ping(channel)
