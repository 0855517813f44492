"""Packets that make no sense: answered with an error if the header is well formed, else the connection ends;
nothing else is harmed."""

import os
import random
import socket
import struct
from collections.abc import Iterator

import pytest

import memfsd.peers.server
import memfsd.peers.session
from memfsd.uapi import messages as m
from memfsd.uapi.framing import NOT_LET_IN, decode_failure, decode_header, encode_reply, encode_request
from memfsd.uapi.limits import MAX_PACKET_BYTES, MAX_RUN_PAGES
from memfsd.uapi.messages import Kind
from tests.support.both_sides import LocalStore, page
from tests.support.threads import until
from tests.support.wire import HEADER, Wire

REFUSED_BODIES = [
    (Kind.BIND, b""),
    (Kind.BIND, b"\xc0"),
    (Kind.BIND, b"\x94\x00\x00\x00"),
    (Kind.BIND, b"\x94\x00\x00\x00\x00"),
    (Kind.BIND, b"\x94\xff\x00\x00\x01"),
    (Kind.BIND, b"\x94\x00\x00\x00\x01\x00"),
    (Kind.BIND, b"\x95\x00\x00\x00\x01\x00"),
    (Kind.BIND, b"\x94\x00\xcf" + b"\xff" * 8 + b"\x00\x01"),
    (Kind.BIND, b"\x94\xa1x\x00\x00\x01"),
    (Kind.UNBIND, b"\x92\x00\x00"),
    (Kind.GET_PFN, b"\x92\x00\x00"),
    (Kind.GET_PFN, b"\x92\x00" + b"\xce" + struct.pack(">I", MAX_RUN_PAGES + 1)),
    (Kind.GET_PFN, b"\x91" * 2000),
    (Kind.GET_PFN, random.Random(20210818).randbytes(64)),
    (Kind.STAT, b"\x91\x00"),
    (Kind.PING, b"\x90\x90"),
]


@pytest.fixture
def wire(store: LocalStore) -> Iterator[Wire]:
    """A paired VM by hand, and beside it a real one that must not notice anything."""
    store.create("file", 8)
    store.create("bystander", 8)
    bystander = store.vm("bystander")
    bystander.private_slot(0, 0, page(8), "bystander")
    bystander.write(0, b"mine")
    with Wire(store) as paired:
        paired.paired("file", 8)
        yield paired
    until(lambda: store.guest("file").active is None, "the store settles the end of the VM")
    assert bystander.read(0, 4) == b"mine"
    assert bystander.write(page(3), b"still served") is None


@pytest.mark.parametrize(("kind", "body"), REFUSED_BODIES, ids=lambda v: v.name if isinstance(v, Kind) else v[:6].hex())
def test_a_body_that_is_not_the_kinds_is_einval_and_the_connection_lives(wire: Wire, kind: Kind, body: bytes) -> None:
    wire.id = 7
    assert wire.raw(HEADER.pack(7, kind, 0) + body, kind) == "EINVAL"
    assert wire.get_pfn(0).page_count == 1
    wire.ask(Kind.BYE)


@pytest.mark.parametrize(
    "packet",
    [
        b"\x01",
        HEADER.pack(1, Kind.PING, 0)[:7],
        HEADER.pack(1, 0, 0) + b"\x90",
        HEADER.pack(1, 4242, 0) + b"\x90",
        HEADER.pack(1, 0x7FFF, 0) + b"\x90",
        HEADER.pack(1, Kind.PING, 5) + b"\x90",
        encode_reply(1, Kind.PING, m.Empty()),
        encode_reply(1, Kind.INVALIDATE_BEGIN, m.InvalidateBeginReply([])),
        HEADER.pack(1, Kind.PING, 0) + b"\x90" + bytes(MAX_PACKET_BYTES),
        b"GET / HTTP/1.1\r\n\r\n",
    ],
    ids=[
        "one byte",
        "short header",
        "kind 0",
        "unknown kind",
        "unknown large kind",
        "request with errno",
        "reply",
        "reply of the up channel",
        "oversized",
        "http",
    ],
)
def test_a_packet_without_a_well_formed_header_ends_the_connection(wire: Wire, packet: bytes) -> None:
    wire.down.send(packet)
    assert wire.ended()


@pytest.mark.parametrize("kind", sorted(m.RESERVED_KINDS))
@pytest.mark.parametrize("body", [b"\x90", b"", b"\xff" * 9])
def test_reserved_operations_are_refused_as_not_supported(wire: Wire, kind: Kind, body: bytes) -> None:
    wire.id = 3
    assert wire.raw(HEADER.pack(3, kind, 0) + body, kind) == "EOPNOTSUPP"
    wire.ask(Kind.BYE)


@pytest.mark.parametrize("kind", sorted(m.KVM_OPERATIONS))
def test_operations_of_the_other_side_are_refused_as_not_supported(wire: Wire, kind: Kind) -> None:
    wire.id = 3
    assert wire.raw(HEADER.pack(3, kind, 0) + b"\x90", kind) == "EOPNOTSUPP"
    wire.ask(Kind.BYE)


def test_a_request_may_use_any_id_also_the_one_before(wire: Wire) -> None:
    for id_ in (0xFFFFFFFF, 0, 5, 5):
        wire.id = id_
        assert wire.raw(encode_request(id_, Kind.PING, m.Empty()), Kind.PING) == m.Empty()
    wire.ask(Kind.BYE)


def test_fds_that_come_along_are_closed(wire: Wire) -> None:
    read, write = os.pipe()
    socket.send_fds(wire.down, [encode_request(wire.id + 1, Kind.PING, m.Empty())], [write, write, write])
    wire.id += 1
    assert wire._reply(Kind.PING, wire.down.recv(4096)) == m.Empty()
    socket.send_fds(wire.down, [b"bad"], [write])
    os.close(write)
    assert wire.ended()
    assert os.read(read, 1) == b"", "end of file: no writer is left, here or in the store"
    os.close(read)


def test_an_empty_packet_is_the_end(wire: Wire) -> None:
    wire.down.send(b"")
    assert wire.ended()


def test_random_packets_harm_nothing_else(store: LocalStore, wire: Wire) -> None:
    dice = random.Random(20210817)
    kinds = [*Kind, 0, 99, 0x8001]
    for _ in range(60):
        with Wire(store) as other:
            if dice.random() < 0.7:
                other.hello()
            for _ in range(dice.randrange(1, 6)):
                body = dice.choice(
                    [dice.randbytes(dice.randrange(40)), b"\x92\x00\x01", b"\x90", b"\x94\x00\x00\x00\x01"]
                )
                packet = HEADER.pack(dice.getrandbits(32), int(dice.choice(kinds)), dice.choice([0, 0, 0, 22])) + body
                try:
                    other.down.send(packet)
                    if not other.down.recv(MAX_PACKET_BYTES):
                        break
                except ConnectionError:
                    break
    assert wire.get_pfn(0).page_count == 1
    wire.ask(Kind.BYE)


def test_a_session_that_fails_still_gives_the_frames_back(
    store: LocalStore, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our own bug: the VM is cut off, the store lives."""

    def broken(*_: object) -> m.StatReply:
        raise ZeroDivisionError("a bug of the store")

    wire.get_pfn(0)
    monkeypatch.setattr(store.windows, "populated_count", broken)
    wire.down.send(encode_request(9, Kind.STAT, m.Empty()))
    assert wire.ended()
    until(lambda: store.guest("file").active is None, "the VM is cut off")
    monkeypatch.undo()


def test_a_connection_that_says_nothing_ends_at_the_greeting_deadline(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memfsd.peers.session, "GREETING_DEADLINE_S", 0.05)
    with Wire(store) as mute:
        assert mute.ended()


def test_pings_do_not_extend_the_greeting_deadline(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memfsd.peers.session, "GREETING_DEADLINE_S", 1.0)
    with Wire(store) as chatty:
        chatty.hello()

        def ended() -> bool:
            try:
                chatty.down.send(encode_request(1, Kind.PING, m.Empty()))
                return chatty.down.recv(MAX_PACKET_BYTES) == b""
            except ConnectionError:
                return True

        until(ended, "half-open connections end")


def test_a_paired_vm_may_be_silent_for_as_long_as_it_likes(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.create("file", 8)
    with Wire(store) as wire:
        wire.paired("file", 8)
        monkeypatch.setattr(memfsd.peers.session, "GREETING_DEADLINE_S", 0.05)
        with Wire(store) as mute:
            assert mute.ended(), "the deadline of one that connected later has passed"
        assert wire.get_pfn(0).page_count == 1
        wire.ask(Kind.BYE)


def test_connections_are_limited_and_a_place_that_is_free_can_be_taken(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memfsd.peers.server, "MAX_CONNECTIONS", 3)
    open_ones = [Wire(store) for _ in range(3)]
    for wire in open_ones:
        wire.hello()
    with Wire(store) as one_too_many:
        said = one_too_many.down.recv(MAX_PACKET_BYTES)
        assert decode_header(said).id == NOT_LET_IN
        assert "3 are open" in decode_failure(said).reason
        assert one_too_many.ended()
    open_ones.pop().close()
    until(lambda: store.server.session_count() == 2, "the place is free")
    with Wire(store) as next_one:
        assert isinstance(next_one.hello(), m.HelloReply)
    for wire in open_ones:
        wire.close()
