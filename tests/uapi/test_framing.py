"""Headers and bodies to bytes and back; whatever else arrives is a BadPacket or a BadBody and nothing worse."""

import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memfsd.uapi import messages as m
from memfsd.uapi.framing import (
    HEADER_BYTES,
    BadBody,
    BadPacket,
    Header,
    Packet,
    decode_failure,
    decode_header,
    decode_reply,
    decode_request,
    decode_request_header,
    decode_success,
    encode_failure,
    encode_reply,
    encode_request,
)
from memfsd.uapi.limits import MAX_GFN, MAX_PACKET_BYTES, MAX_RUN_PAGES, MAX_SLOTS, SWAP_BLOB_BYTES
from memfsd.uapi.messages import REPLIES, REPLY, REQUESTS, RESERVED_KINDS, Kind
from tests.support.bodies import bodies

Decode = Callable[[Kind, Packet], m.Body]
SPOKEN = sorted(REQUESTS)
BOTH = [(decode_request, REQUESTS, 0), (decode_reply, REPLIES, REPLY)]
MESSAGES = [(kind, decode, table[kind], mark) for decode, table, mark in BOTH for kind in SPOKEN]
IDS = [f"{kind.name}{'-reply' if mark else ''}" for kind, _, _, mark in MESSAGES]
each_message = pytest.mark.parametrize(("kind", "decode", "cls", "mark"), MESSAGES, ids=IDS)
U32 = st.integers(0, (1 << 32) - 1)
some = settings(max_examples=10, derandomize=True, deadline=None)
many = settings(max_examples=200, derandomize=True, deadline=None)


def packet_of(kind: int, fields: Any, *, id_: int = 1, errno: int = 0) -> bytes:
    """A packet by hand, whatever the rules say."""
    return struct.pack("<IHH", id_, kind, errno) + msgspec.msgpack.encode(fields)


@each_message
@some
@given(st.data(), U32)
def test_every_message_comes_back_as_it_was(
    kind: Kind, decode: Decode, cls: type[m.Body], mark: int, data: st.DataObject, id_: int
) -> None:
    body = data.draw(bodies(cls))
    packet = encode_reply(id_, kind, body) if mark else encode_request(id_, kind, body)
    assert decode_header(packet) == Header(id_, kind, 0, bool(mark))
    for form in (packet, bytearray(packet), memoryview(packet)):
        assert decode(kind, form) == body
    assert decode_success(packet + b"more", len(packet), id_, kind) == (body if mark else None)


@many
@given(st.sampled_from(Kind), U32, st.integers(1, (1 << 16) - 1), st.text(st.characters(exclude_categories=["Cs"])))
def test_a_failure_carries_errno_and_reason(kind: Kind, id_: int, errno: int, reason: str) -> None:
    packet = encode_failure(id_, kind, errno, reason)
    assert decode_header(packet) == Header(id_, kind, errno, True)
    assert decode_failure(packet) == m.Failure(reason)
    assert decode_success(packet, len(packet), id_, kind) is None


def test_a_reason_without_end_is_cut() -> None:
    packet = encode_failure(1, Kind.PING, 22, "\U0001f600" * 100_000)
    assert decode_failure(packet).reason == "\U0001f600" * 4096
    assert len(packet) <= MAX_PACKET_BYTES


def test_the_header_is_little_endian_id_kind_errno() -> None:
    assert HEADER_BYTES == 8
    assert encode_request(0x01020304, Kind.GET_PFN, m.GetPfn(0, 1, 0))[:8] == bytes([4, 3, 2, 1, 5, 0, 0, 0])
    assert encode_reply(0x01020304, Kind.REPORT, m.Empty())[:8] == bytes([4, 3, 2, 1, 39, 0x80, 0, 0])
    assert encode_failure(1, Kind.BIND, 17, "")[:8] == bytes([1, 0, 0, 0, 3, 0x80, 17, 0])


# -- headers


@pytest.mark.parametrize("size", [0, 1, HEADER_BYTES - 1, MAX_PACKET_BYTES + 1])
def test_too_short_or_too_long_is_no_packet(size: int) -> None:
    packet = (encode_request(1, Kind.PING, m.Empty()) + bytes(MAX_PACKET_BYTES))[:size]
    for decode in (decode_header, decode_request_header):
        with pytest.raises(BadPacket, match=f"a packet of {size} bytes"):
            decode(packet)


@pytest.mark.parametrize("kind", [0, 10, 15, 28, 31, 40, 0x7FFF])
def test_a_kind_that_does_not_exist_is_no_packet(kind: int) -> None:
    for packet in (packet_of(kind, []), packet_of(kind | REPLY, [])):
        for decode in (decode_header, decode_request_header):
            with pytest.raises(BadPacket, match=f"message kind {kind} does not exist"):
                decode(packet)


@pytest.mark.parametrize("kind", Kind)
def test_a_request_with_an_errno_is_no_packet(kind: Kind) -> None:
    for decode in (decode_header, decode_request_header):
        with pytest.raises(BadPacket, match=f"{kind.name} request with errno 22"):
            decode(packet_of(kind, [], errno=22))


@pytest.mark.parametrize("kind", Kind)
def test_a_reply_is_no_request(kind: Kind) -> None:
    for errno in (0, 22):
        with pytest.raises(BadPacket, match="a reply"):
            decode_request_header(packet_of(kind | REPLY, [], errno=errno))
    assert decode_request_header(packet_of(kind, [], id_=77)) == (77, kind)


def test_only_the_reply_to_this_request_is_its_success() -> None:
    reply = encode_reply(5, Kind.STAT, m.StatReply(0, 0, 0, 0))
    others = [encode_request(5, Kind.STAT, m.Empty()), encode_failure(5, Kind.STAT, 5, ""), b""]
    assert decode_success(reply, len(reply), 5, Kind.STAT) == m.StatReply(0, 0, 0, 0)
    assert decode_success(reply, len(reply), 6, Kind.STAT) is None
    assert decode_success(reply, len(reply), 5, Kind.PING) is None
    assert [decode_success(other, len(other), 5, Kind.STAT) for other in others] == [None] * 3


def test_what_the_buffer_held_before_is_not_part_of_a_reply() -> None:
    buffer = bytearray(encode_reply(5, Kind.STAT, m.StatReply(0, 0, 0, 0)))
    for size in range(HEADER_BYTES):
        assert decode_success(buffer, size, 5, Kind.STAT) is None
    for size in range(HEADER_BYTES, len(buffer)):
        with pytest.raises(BadBody):
            decode_success(buffer, size, 5, Kind.STAT)


# -- bodies


@each_message
@some
@given(data=st.data())
def test_a_truncated_body_is_bad(kind: Kind, decode: Decode, cls: type[m.Body], mark: int, data: st.DataObject) -> None:
    packet = packet_of(kind | mark, data.draw(bodies(cls)))
    cut = data.draw(st.integers(HEADER_BYTES, len(packet) - 1))
    with pytest.raises(BadBody, match=kind.name):
        decode(kind, packet[:cut])


@each_message
def test_fields_too_many_or_too_few_are_bad(kind: Kind, decode: Decode, cls: type[m.Body], mark: int) -> None:
    fields = list(msgspec.to_builtins(next_example(cls)))
    wrong = [[*fields, 0], dict.fromkeys("abc", 0), None, 0, "text", [fields]]
    wrong += [fields[:-1]] if fields else []
    for body in wrong:
        with pytest.raises(BadBody):
            decode(kind, packet_of(kind | mark, body))


@each_message
def test_what_follows_the_body_is_bad(kind: Kind, decode: Decode, cls: type[m.Body], mark: int) -> None:
    packet = packet_of(kind | mark, next_example(cls))
    assert decode(kind, packet) is not None
    with pytest.raises(BadBody):
        decode(kind, packet + b"\x90")


@each_message
def test_a_field_of_another_type_is_bad(kind: Kind, decode: Decode, cls: type[m.Body], mark: int) -> None:
    fields = list(msgspec.to_builtins(next_example(cls)))
    of_another_type: list[object] = [None, True, 0.5, [[[]]], {"a": []}]
    for at in range(len(fields)):
        for other in of_another_type:
            with pytest.raises(BadBody):
                decode(kind, packet_of(kind | mark, [*fields[:at], other, *fields[at + 1 :]]))


def next_example(cls: type[m.Body]) -> m.Body:
    """One legal body of each class, the same each time."""
    return EXAMPLES[cls]


EXAMPLES: dict[type[m.Body], m.Body] = {
    type(body): body
    for body in (
        m.Empty(),
        m.Hello(m.PROTOCOL_VERSION, m.Role.GUEST, "vm0", [32, 33], bytes(16), bytes(16)),
        m.HelloReply(1, [2, 3], bytes(16), bytes(32)),
        m.Pair(bytes(32), bytes(16)),
        m.PairReply(2, 4096, 0, 0, 64, m.MemoryType.WB, 0, 0, 0),
        m.Bind(1, 0x100, 0, 8),
        m.Attributes(3),
        m.AttributesReply(1, 5),
        m.Unbind(0, 8),
        m.GetPfn(0, 8, 0),
        m.GetPfnReply(5, 8, 0, 3),
        m.StatReply(4096, 1, 0, 0),
        m.CheckReply([("R1", "frame 0x1 is in two files")], 1, 1, 64),
        m.Map(2, 0),
        m.MapReply([(0, 5, 8, -1, 2, 0, 0)], -1),
        m.DeviceFile(2),
        m.MemoryFailure(2, 5),
        m.MemoryFailureReply(5, 1),
        m.Kcore(0),
        m.KcoreReply(64, [(0, 8, 1), (8, 56, 0)], -1),
        m.ListReply({"free": 64}, 1, 8, [m.FileReport(2, b"vm.mem", "none", 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0)], 1),
        m.PageOut(2, 0, 8),
        m.PageOutReply(8, -1, 0, 0, ""),
        m.SwapOff(2, 8),
        m.SwapOffReply(8, 1, 74, "page 0x3 is altered", b"vm.mem", "vm0", 1, 2, -1),
        m.SwapOut([(3, 7)]),
        m.SwapOutReply([bytes(SWAP_BLOB_BYTES), b""], [4]),
        m.SwapIn(3, 7, [bytes(SWAP_BLOB_BYTES)]),
        m.InvalidateBegin(0, 8, 3, m.Reason.PUNCH),
        m.InvalidateBeginReply([(0, 4)]),
        m.InvalidateEnd(0, 8, 4),
        m.SetNode(1, online=0),
        m.SetNodeReply(3, {"shared": 2}, goes_on=0),
        m.CompactReply(3, 1, 0, 2, 0, goes_on=1),
        m.Move(0, 8, 3, [(2, 5, 9, 4)]),
        m.MoveReply([(2, 3)]),
        m.Revoke("unmount"),
        m.Report(0),
        m.ReportReply([(1, 0x100, 0, 8)], [(0x100, 5, 8)], 3, (4, 8), -1),
    )
}


def test_there_is_an_example_of_each_body() -> None:
    assert set(EXAMPLES) == {*REQUESTS.values(), *REPLIES.values()}


OUT_OF_BOUNDS = [
    (Kind.HELLO, [1 << 32, 0, "vm", [], b"", bytes(16)]),
    (Kind.HELLO, [-1, 0, "vm", [], b"", bytes(16)]),
    (Kind.HELLO, [1, 2, "vm", [], b"", bytes(16)]),
    (Kind.HELLO, [1, 0, "", [], b"", bytes(16)]),
    (Kind.HELLO, [1, 0, "v" * 65, [], b"", bytes(16)]),
    (Kind.HELLO, [1, 0, "vm", [1 << 16], b"", bytes(16)]),
    (Kind.HELLO, [1, 0, "vm", [-1], b"", bytes(16)]),
    (Kind.HELLO, [1, 0, "vm", [32] * 65, b"", bytes(16)]),
    (Kind.HELLO, [1, 0, "vm", [], bytes(17), bytes(16)]),
    (Kind.HELLO, [1, 0, "vm", [], b"", bytes(15)]),
    (Kind.PAIR, [bytes(31)]),
    (Kind.PAIR, [bytes(33)]),
    (Kind.PAIR, ["0123456789abcdef" * 2]),
    (Kind.BIND, [MAX_SLOTS, 0, 0, 1]),
    (Kind.BIND, [-1, 0, 0, 1]),
    (Kind.BIND, [0, MAX_GFN, 0, 1]),
    (Kind.BIND, [0, 0, 1 << 51, 1]),
    (Kind.BIND, [0, 0, -1, 1]),
    (Kind.BIND, [0, 0, 0, 0]),
    (Kind.BIND, [0, 0, 0, 1 << 51]),
    (Kind.BIND, [0, 0, 0, (1 << 64) - 1]),
    (Kind.UNBIND, [0, 0]),
    (Kind.GET_PFN, [0, 0]),
    (Kind.GET_PFN, [0, MAX_RUN_PAGES + 1]),
    (Kind.GET_PFN, [1 << 51, 1]),
    (Kind.MAP, [1 << 63, 0]),
    (Kind.INVALIDATE_BEGIN, [0, 1, 0, 9]),
    (Kind.SWAP_OUT, [[]]),
    (Kind.SWAP_OUT, [[[0, 0]] * 16]),
    (Kind.SWAP_IN, [0, 0, []]),
    (Kind.SWAP_IN, [0, 0, [bytes(4096)]]),
    (Kind.INVALIDATE_BEGIN, [0, 1, 1 << 63, 0]),
    (Kind.SET_NODE, [0, 2]),
    (Kind.MOVE, [0, 1, 0, [[0, 0, 1, 0]]]),
    (Kind.MOVE, [0, 1, 0, [[0, 0, 1 << 32, 1]]]),
    (Kind.MOVE, [0, 1, 0, [[0, 0, 1, 1]] * 513]),
    (Kind.REVOKE, ["x" * 4097]),
    (Kind.REPORT, [-1]),
    (Kind.REPORT, [MAX_GFN]),
]
REPLIES_OUT_OF_BOUNDS = [
    (Kind.HELLO, [1, [], -1]),
    (Kind.GET_PFN, [1 << 32, 1, 0, 0]),
    (Kind.GET_PFN, [0, 0, 0, 0]),
    (Kind.GET_PFN, [0, MAX_RUN_PAGES + 1, 0, 0]),
    (Kind.GET_PFN, [0, 1, 0, -1]),
    (Kind.CHECK, [[["R1", "x" * 201]], 0, 0, 0]),
    (Kind.CHECK, [[["R1", "x"]] * 65, 0, 0, 0]),
    (Kind.MAP, [[[0, 0, 1, -2, 0]], -1]),
    (Kind.MAP, [[], -2]),
    (Kind.INVALIDATE_BEGIN, [[[0, 1]] * 1025]),
    (Kind.INVALIDATE_BEGIN, [[[0]]]),
    (Kind.INVALIDATE_BEGIN, [[[0, 1, 2]]]),
    (Kind.REPORT, [[], [], 0, MAX_GFN]),
    (Kind.REPORT, [[], [[0, 0, 0]], 0, -1]),
]


@pytest.mark.parametrize(("kind", "fields"), OUT_OF_BOUNDS)
def test_a_request_out_of_its_bounds_is_bad(kind: Kind, fields: list[Any]) -> None:
    with pytest.raises(BadBody, match=kind.name):
        decode_request(kind, packet_of(kind, fields))


@pytest.mark.parametrize(("kind", "fields"), REPLIES_OUT_OF_BOUNDS)
def test_a_reply_out_of_its_bounds_is_bad(kind: Kind, fields: list[Any]) -> None:
    with pytest.raises(BadBody, match=kind.name):
        decode_reply(kind, packet_of(kind | REPLY, fields))


@pytest.mark.parametrize("kind", sorted(RESERVED_KINDS))
def test_a_reserved_kind_has_a_header_and_no_body(kind: Kind) -> None:
    packet = packet_of(kind, [])
    assert decode_header(packet).kind is kind
    for decode in (decode_request, decode_reply):
        with pytest.raises(BadBody, match="reserved"):
            decode(kind, packet)


# -- anything at all


@many
@given(st.binary(max_size=200))
def test_any_bytes_are_a_packet_or_a_bad_one(packet: bytes) -> None:
    for form in (packet, memoryview(packet)):
        for decode in (decode_header, decode_request_header):
            with suppress(BadPacket):
                decode(form)


ODD_BODIES = st.one_of(
    st.binary(max_size=300),
    st.integers(0, 30_000).map(lambda depth: b"\x91" * depth),
    st.recursive(
        st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text() | st.binary(),
        lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.integers() | st.text(), inner, max_size=4),
        max_leaves=20,
    ).map(lambda value: _encoded(value)),
)


def _encoded(value: Any) -> bytes:
    try:
        return msgspec.msgpack.encode(value)
    except (OverflowError, UnicodeEncodeError):
        return b"\xc1"


@many
@given(st.sampled_from(Kind), ODD_BODIES)
def test_any_body_is_the_kinds_or_a_bad_one(kind: Kind, body: bytes) -> None:
    packet = struct.pack("<IHH", 1, kind, 0) + body
    with suppress(BadBody):
        assert type(decode_request(kind, packet)) is REQUESTS[kind]
    with suppress(BadBody):
        assert type(decode_reply(kind, packet)) is REPLIES[kind]
    with suppress(BadBody):
        assert isinstance(decode_failure(packet), m.Failure)


@many
@given(st.data())
def test_a_flipped_byte_is_harmless(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(SPOKEN))
    packet = bytearray(encode_request(1, kind, EXAMPLES[REQUESTS[kind]]))
    packet[data.draw(st.integers(0, len(packet) - 1))] = data.draw(st.integers(0, 255))
    with suppress(BadPacket, BadBody):
        _, kind = decode_request_header(packet)
        assert type(decode_request(kind, packet)) is REQUESTS[kind]
