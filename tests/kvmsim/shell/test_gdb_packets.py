"""gdb's packets, whole and damaged."""

import socket
import struct
from collections.abc import Iterator

import pytest

from kvmsim.shell.gdb_packets import Packets, registers_from, registers_to


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, Packets]]:
    here, there = socket.socketpair()
    with here, there:
        yield here, Packets(there, 64)


def test_a_packet_is_acknowledged(ends: tuple[socket.socket, Packets]) -> None:
    gdb, packets = ends
    gdb.sendall(b"+$g#67$g#67")
    assert packets.receive() == b"g"
    assert packets.has_more
    assert packets.receive() == b"g"
    packets.send(b"OK")
    assert b"$OK#9a" in gdb.recv(64)


def test_a_damaged_one_is_asked_for_again(ends: tuple[socket.socket, Packets]) -> None:
    gdb, packets = ends
    gdb.sendall(b"$g#00noise$g#67")
    assert packets.receive() == b"g"
    assert gdb.recv(64) == b"-+"


def test_ctrl_c_is_no_packet(ends: tuple[socket.socket, Packets]) -> None:
    gdb, packets = ends
    gdb.sendall(b"+\x03$g#67")
    assert (packets.receive(), packets.receive()) == (b"\x03", b"g")


@pytest.mark.parametrize("sent", [b"", b"$", b"$g#6", b"x" * 200, b"$" + b"x" * 200])
def test_the_end_and_what_never_ends(ends: tuple[socket.socket, Packets], sent: bytes) -> None:
    gdb, packets = ends
    gdb.sendall(sent)
    gdb.shutdown(socket.SHUT_WR)
    assert packets.receive() is None


def test_registers() -> None:
    names = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{n}" for n in range(8, 16)), "rip")
    values = {name: number << 40 | 1 for number, name in enumerate(names)} | {"rflags": 2}
    text = registers_to(values | dict.fromkeys(("cs", "ss", "ds", "es", "fs", "gs"), 0))
    assert text[16:32] == struct.pack("<Q", values["rbx"]).hex().encode()
    assert registers_from(text) == values
    with pytest.raises(ValueError, match="too few"):
        registers_from(b"00")
