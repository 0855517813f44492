"""Recording: whole lines, bounded, and in nobody's way when the disk is full."""

import json
import os
import socket
import time
from pathlib import Path

import pytest

from memfsd.uapi import messages as m
from memfsd.uapi.errors import Refused
from memfsd.uapi.framing import encode_failure, encode_reply, encode_request
from memfsd.uapi.journal import NO_JOURNAL, Recording
from memfsd.uapi.journalfile import open_journal, start_journal
from memfsd.uapi.limits import MAX_RECORD_BYTES
from memfsd.uapi.messages import Kind
from tests.support.journaled import read_lines, recording


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


def test_without_a_journal_sockets_are_themselves(ends: list[socket.socket]) -> None:
    """So that a fault pays nothing for what nobody asked for."""
    assert NO_JOURNAL.down(ends[0]) is ends[0]
    assert NO_JOURNAL.up(ends[0], ends[1]) is ends[1]
    NO_JOURNAL.note("freed", ino=1)
    NO_JOURNAL.close()
    for end in ends:
        end.close()


def test_packets_of_both_directions_are_recorded_with_what_is_known(ends: list[socket.socket]) -> None:
    disk, warnings = Disk(), list[str]()
    journal = recorded(disk, warnings)
    mine, other = journal.down(ends[0]), ends[1]
    mine.send(encode_request(1, Kind.HELLO, m.Hello(1, m.Role.GUEST, "alice", [32, 33])))
    other.recv(4096)
    pair = encode_reply(2, Kind.PAIR, m.PairReply(9, 4096, 0, 5))
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
    mine = recorded(disk, []).down(ends[0])
    ends[1].close()
    with pytest.raises(BrokenPipeError):
        mine.send(encode_request(1, Kind.PING, m.Empty()))
    mine.close()
    assert [line.get("kind", line.get("what")) for line in disk.lines[1:]] == ["PING", "unsent"]


def test_the_up_channel_is_of_the_same_connection(ends: list[socket.socket]) -> None:
    disk = Disk()
    journal = recorded(disk, [])
    down = journal.down(ends[0])
    up = journal.up(down, ends[1])
    up.send(encode_request(1, Kind.REPORT, m.Report(0)))
    down.close()
    up.close()
    assert (disk.lines[1]["conn"], disk.lines[1]["channel"]) == (journal.conn_of(down), "up")


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


@pytest.mark.parametrize("room", [0, 50, 200, 500])
def test_a_full_disk_is_one_warning_and_the_end_of_the_journal(room: int) -> None:
    disk, warnings = Disk(room), list[str]()
    journal = recorded(disk, warnings)
    for number in range(20):
        journal.note("freed", ino=number)
    journal.close()
    assert len(warnings) == 1
    assert "\n" not in warnings[0]
    assert len(disk.data) <= room


def test_a_device_that_is_always_full() -> None:
    warnings: list[str] = []
    fd = open_journal("/dev/full")
    start_journal(fd, "memfsd", time.monotonic_ns, warnings.append).note("out")
    os.close(fd)
    assert warnings == ["the journal can not be written and has ended: No space left on device"]


def test_a_journal_is_appended_to_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    for _ in range(2):
        with recording(path, "memfsd") as journal:
            journal.note("out")
    assert [line["type"] for line in read_lines(path)] == ["journal", "note", "end"] * 2
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_line_that_a_crash_tore_is_closed_first(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(b'{"type":"jour')
    with recording(path, "memfsd"):
        pass
    torn, opening, _ = path.read_bytes().splitlines()
    assert torn == b'{"type":"jour'
    assert json.loads(opening)["type"] == "journal"


def test_a_journal_that_is_full_already_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(b"x" * 5000)
    fd = open_journal(str(path))
    with pytest.raises(Refused, match="is full"):
        start_journal(fd, "memfsd", time.monotonic_ns, print, MAX_RECORD_BYTES)
    os.close(fd)


@pytest.mark.parametrize("path", ["/nowhere/journal", "/", "/proc/self/fd/-1"])
def test_a_journal_that_can_not_be_opened_is_refused_with_its_name(path: str) -> None:
    with pytest.raises(Refused, match=f"journal {path}: "):
        open_journal(path)


def test_a_fifo_that_nobody_reads_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(Refused, match="fifo"):
        open_journal(str(tmp_path / "fifo"))
