"""Packets: an 8-byte header and a msgpack body, one message in one SEQPACKET.

Header, little endian: id u32, kind u16 (REPLY set in replies), errno u16 (0 in requests).
"""

import struct
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import msgspec

from .errors import PeerLost
from .limits import MAX_PACKET_BYTES
from .messages import REPLIES, REPLY, REQUESTS, RESERVED_KINDS, Body, Failure, Kind

_B = TypeVar("_B", bound=Body)
_HEADER = struct.Struct("<IHH")
HEADER_BYTES = _HEADER.size
_encode = msgspec.msgpack.Encoder().encode
_request_decoders: dict[Kind, Callable[[memoryview], Body]] = {
    kind: msgspec.msgpack.Decoder(body).decode for kind, body in REQUESTS.items()
}
_reply_decoders: dict[Kind, Callable[[memoryview], Body]] = {
    kind: msgspec.msgpack.Decoder(body).decode for kind, body in REPLIES.items()
}
_decode_failure = msgspec.msgpack.Decoder(Failure).decode


class BadPacket(PeerLost):
    """Not a packet of this protocol: the connection ends."""


class BadBody(Exception):
    """A well-formed header with a body that is not the kind's: answered with an errno."""


class Header(NamedTuple):
    id: int
    kind: Kind
    errno: int
    is_reply: bool


def encode_request(id_: int, kind: Kind, body: Body) -> bytes:
    return _pack(id_, kind, 0, body)


def encode_reply(id_: int, kind: Kind, body: Body) -> bytes:
    return _pack(id_, kind | REPLY, 0, body)


def encode_failure(id_: int, kind: Kind, errno: int, reason: str) -> bytes:
    assert 0 < errno < 1 << 16, errno
    return _pack(id_, kind | REPLY, errno, Failure(reason[:4096]))


def _pack(id_: int, kind: int, errno: int, body: Body) -> bytes:
    packet = _HEADER.pack(id_, kind, errno) + _encode(body)
    assert len(packet) <= MAX_PACKET_BYTES, (kind, len(packet))
    return packet


def decode_header(packet: bytes | memoryview) -> Header:
    """BadPacket when it is too short, too long, of no known kind, or a request with an errno."""
    if not HEADER_BYTES <= len(packet) <= MAX_PACKET_BYTES:
        raise BadPacket(f"a packet of {len(packet)} bytes: {HEADER_BYTES} to {MAX_PACKET_BYTES} exist")
    id_, word, errno = _HEADER.unpack_from(packet)
    try:
        kind = Kind(word & ~REPLY)
    except ValueError:
        raise BadPacket(f"message kind {word & ~REPLY} does not exist") from None
    is_reply = bool(word & REPLY)
    if errno and not is_reply:
        raise BadPacket(f"{kind.name} request with errno {errno}")
    return Header(id_, kind, errno, is_reply)


def decode_request(kind: Kind, packet: bytes | memoryview) -> Body:
    """BadBody when the body is not the kind's, or a field is out of its bounds."""
    if kind in RESERVED_KINDS:
        raise BadBody(f"{kind.name} is reserved and not implemented")
    return _decode(_request_decoders[kind], kind.name, packet)


def decode_reply(kind: Kind, packet: bytes | memoryview) -> Body:
    if kind in RESERVED_KINDS:
        raise BadBody(f"{kind.name} is reserved and not implemented")
    return _decode(_reply_decoders[kind], kind.name, packet)


def decode_failure(packet: bytes | memoryview) -> Failure:
    return _decode(_decode_failure, "failure", packet)


def _decode(decode: Callable[[memoryview], _B], name: str, packet: bytes | memoryview) -> _B:
    try:
        return decode(memoryview(packet)[HEADER_BYTES:])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadBody(f"{name}: {error}") from None
