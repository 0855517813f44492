"""Packets: an 8-byte header and a msgpack body, one message in one SEQPACKET.

Header, little endian: id u32, kind u16 (REPLY set in replies), errno u16 (0 in requests).
"""

import struct
from collections.abc import Callable

import msgspec

from .errors import PeerLost
from .limits import MAX_PACKET_BYTES
from .messages import REPLIES, REPLY, REQUESTS, Body, Failure, Kind

NOT_LET_IN = 0
"""The id of a failure that answers no request: the store has no place for this connection, and says why."""

Packet = bytes | bytearray | memoryview

_HEADER = struct.Struct("<IHH")
HEADER_BYTES = _HEADER.size
_pack_header = _HEADER.pack
unpack_header = _HEADER.unpack_from
"""Id, kind with REPLY or without, errno: as they are, of at least HEADER_BYTES."""
request_words = struct.Struct("<II").unpack_from
"""Id and kind of a request. Of anything else, the second word is no kind: `decode_request_header` says what it is.
Of at least HEADER_BYTES."""
_encode = msgspec.msgpack.Encoder().encode
_KINDS = {int(kind): kind for kind in Kind}
"""Kind(word) takes a microsecond, of which a page fault has few: hence a table."""
REQUEST_DECODERS: dict[Kind, Callable[[Packet], Body]] = {
    kind: msgspec.msgpack.Decoder(body).decode for kind, body in REQUESTS.items()
}
_reply_decoders: dict[Kind, Callable[[Packet], Body]] = {
    kind: msgspec.msgpack.Decoder(body).decode for kind, body in REPLIES.items()
}
_decode_failure = msgspec.msgpack.Decoder(Failure).decode
NO_BODY = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What a decoder raises when the bytes are not its body."""


class BadPacket(PeerLost):
    """Not a packet of this protocol: the connection ends."""


class BadBody(Exception):
    """A well-formed header with a body that is not the kind's: answered with an errno."""


class Header(msgspec.Struct, frozen=True):
    """What a packet begins with."""

    id: int
    kind: Kind
    errno: int
    is_reply: bool


def encode_request(id_: int, kind: Kind, body: Body) -> bytes:
    packet = _pack_header(id_, kind, 0) + _encode(body)
    assert len(packet) <= MAX_PACKET_BYTES, (kind, len(packet))
    return packet


def encode_reply(id_: int, kind: Kind, body: Body) -> bytes:
    packet = _pack_header(id_, kind | REPLY, 0) + _encode(body)
    assert len(packet) <= MAX_PACKET_BYTES, (kind, len(packet))
    return packet


def encode_failure(id_: int, kind: Kind, errno: int, reason: str) -> bytes:
    assert 0 < errno < 1 << 16, errno
    return _pack_header(id_, kind | REPLY, errno) + _encode(Failure(reason[:4096]))


def decode_header(packet: Packet) -> Header:
    """BadPacket when it is too short, too long, of no known kind, or a request with an errno."""
    if not HEADER_BYTES <= len(packet) <= MAX_PACKET_BYTES:
        raise BadPacket(f"a packet of {len(packet)} bytes: {HEADER_BYTES} to {MAX_PACKET_BYTES} exist")
    id_, word, errno = unpack_header(packet)
    is_reply = word >= REPLY
    kind = _KINDS.get(word - REPLY if is_reply else word)
    if kind is None:
        raise BadPacket(f"message kind {word & ~REPLY} does not exist")
    if errno and not is_reply:
        raise BadPacket(f"{kind.name} request with errno {errno}")
    return Header(id_, kind, errno, is_reply)


def decode_request_header(packet: Packet) -> tuple[int, Kind]:
    """Id and kind where a request is due; BadPacket for all else, also for a reply."""
    header = decode_header(packet)
    if header.is_reply:
        raise BadPacket(f"a reply ({header.kind.name}) where a request was due")
    return header.id, header.kind


def decode_request(kind: Kind, packet: Packet) -> Body:
    """BadBody when the body is not the kind's, or a field is out of its bounds."""
    try:
        return REQUEST_DECODERS[kind](packet[HEADER_BYTES:])
    except KeyError:
        raise BadBody(f"{kind.name} is reserved and not implemented") from None
    except NO_BODY as error:
        raise BadBody(f"{kind.name}: {error}") from None


def decode_reply(kind: Kind, packet: Packet) -> Body:
    try:
        return _reply_decoders[kind](packet[HEADER_BYTES:])
    except KeyError:
        raise BadBody(f"{kind.name} is reserved and not implemented") from None
    except NO_BODY as error:
        raise BadBody(f"{kind.name}: {error}") from None


def decode_success(buffer: bytes | bytearray, size: int, id_: int, kind: Kind) -> Body | None:
    """The body of the packet in buffer's first bytes if it is the reply to this request, and None if it is anything
    else. BadBody as `decode_reply`."""
    if size < HEADER_BYTES or not buffer.startswith(_pack_header(id_, kind | REPLY, 0)):
        return None
    try:
        return _reply_decoders[kind](buffer[HEADER_BYTES:size])
    except NO_BODY as error:
        raise BadBody(f"{kind.name}: {error}") from None


def decode_failure(packet: Packet) -> Failure:
    try:
        return _decode_failure(packet[HEADER_BYTES:])
    except NO_BODY as error:
        raise BadBody(f"failure: {error}") from None
