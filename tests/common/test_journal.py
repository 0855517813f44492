"""Recording: whole lines, bounded, and in nobody's way when the disk is full."""

import json
import os
import socket

import pytest

from memfsd.common import packets
from memfsd.common.journal import Recording
from memfsd.uapi import messages as m
from memfsd.uapi.framing import encode_failure, encode_reply, encode_request
from memfsd.uapi.messages import Kind

OPENING = b'{"type":"journal","t":1,"version":1,"side":"memfsd","pid":7}\n'


class Disk:
    """Takes so many bytes."""

    def __init__(self, room: int = 1 << 20) -> None:
        self.room = room
        self.data = b""

    def write(self, line: bytes) -> int:
        if not self.room:
            raise OSError(28, os.strerror(28))
        taken = line[: self.room]
        self.room -= len(taken)
        self.data += taken
        return len(taken)

    @property
    def lines(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.data.splitlines()]


def recorded(disk: Disk, warnings: list[str], room: int = 1 << 20) -> Recording:
    clock = iter(range(1, 10**6))
    return Recording("kvmsim", 42, disk.write, lambda: next(clock), warnings.append, room)


@pytest.fixture
def ends() -> "list[socket.socket]":
    return list(socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))


def test_packets_of_both_directions_are_recorded_with_what_is_known(ends: list[socket.socket]) -> None:
    disk, warnings = Disk(), list[str]()
    journal = recorded(disk, warnings)
    mine, other = packets.down(ends[0], journal), ends[1]
    mine.send(
        encode_request(1, Kind.HELLO, m.Hello(m.PROTOCOL_VERSION, m.Role.GUEST, "alice", [32, 33], b"", bytes(16)))
    )
    other.recv(4096)
    pair = encode_reply(2, Kind.PAIR, m.PairReply(9, 4096, 0, 5, 64, m.MemoryType.WB, 0, 0, 0))
    socket.send_fds(other, [pair], [0, 1])
    socket.recv_fds(mine, 4096, 2) and None
    other.send(encode_failure(3, Kind.BIND, 22, "no"))
    buffer = bytearray(4096)
    assert mine.recv_into(buffer, 0, socket.MSG_TRUNC) > 8
    other.send(b"junk")
    mine.recv_into(buffer)
    other.close()
    assert mine.recv_into(buffer) == 0
    journal.close()
    mine.close()
    opening, hello, paired, refused, junk, closed, end = disk.lines
    assert (opening["type"], opening["side"], opening["pid"]) == ("journal", "kvmsim", 42)
    assert (hello["sent"], hello["kind"], hello["vm"], hello["peer"]) == (True, "HELLO", "alice", os.getpid())
    assert (paired["sent"], paired["reply"], paired["fds"], paired["ino"]) == (False, True, 2, 9)
    assert (refused["errno"], refused["body"], refused["ino"]) == (22, {"reason": "no"}, 9)
    assert (junk["kind"], junk["raw"], junk["body"]) == ("", b"junk".hex(), None)
    assert (closed["what"], closed["conn"], closed["data"]) == ("closed", 1, {"channel": "down"})
    assert (end["type"], end["why"]) == ("end", "closed")
    assert [line["t"] for line in disk.lines] == list(range(1, 8))
    assert warnings == []


def test_a_packet_that_can_not_be_sent_is_marked(ends: list[socket.socket]) -> None:
    disk = Disk()
    mine = packets.down(ends[0], recorded(disk, []))
    ends[1].close()
    with pytest.raises(BrokenPipeError):
        mine.send(encode_request(1, Kind.PING, m.Empty()))
    mine.close()
    assert [line.get("kind", line.get("what")) for line in disk.lines[1:]] == ["PING", "unsent"]


def test_the_up_channel_is_of_the_same_connection(ends: list[socket.socket]) -> None:
    disk = Disk()
    journal = recorded(disk, [])
    down = packets.down(ends[0], journal)
    up = packets.up(down, ends[1])
    up.send(encode_request(1, Kind.REPORT, m.Report(0)))
    down.close()
    up.close()
    assert (disk.lines[1]["conn"], disk.lines[1]["channel"]) == (packets.number_of(down), "up")


def test_at_its_limit_a_journal_ends_with_a_record_that_says_so() -> None:
    disk, warnings = Disk(), list[str]()
    journal = recorded(disk, warnings, room=2000)
    for number in range(100):
        journal.note("freed", ino=number, runs=[[0, 1]])
    journal.close()
    assert len(disk.data) <= 2000
    assert disk.data.endswith(b"\n")
    assert disk.lines[-1]["type"] == "end"
    assert "full" in str(disk.lines[-1]["why"])
    assert len(warnings) == 1


@pytest.mark.parametrize("room", [100, 200, 500])
def test_a_full_disk_is_one_warning_and_the_end_of_the_journal(room: int) -> None:
    disk, warnings = Disk(room), list[str]()
    journal = recorded(disk, warnings)
    for number in range(20):
        journal.note("freed", ino=number)
    journal.close()
    assert len(warnings) == 1
    assert "\n" not in warnings[0]
    assert len(disk.data) <= room


@pytest.mark.parametrize("room", [0, 50])
def test_a_first_record_that_can_not_be_written_is_an_error(room: int) -> None:
    with pytest.raises(OSError, match=r"No space left on device|the disk is full"):
        recorded(Disk(room), [])
