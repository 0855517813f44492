"""Packets that make no sense, as many as wanted, each batch from one seed."""

import random
import struct
from enum import IntEnum
from typing import Any

import msgspec
from msgspec import inspect

from memfsd.uapi.limits import MAX_PACKET_BYTES
from memfsd.uapi.messages import REPLIES, REPLY, REQUESTS, Body, Kind
from tests.support.bodies import bounds_of

HEADER = struct.Struct("<IHH")
_WORDS = (0, 1, 2, 7, 8, 63, 64, 127, 128, 255, 256, 4096, 65535, 65536, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32)
_EDGES = (*_WORDS, 1 << 40, (1 << 51) - 1, 1 << 51, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, -1, -(1 << 31), -(1 << 63))
_INFOS: dict[type[Body], inspect.Type] = {
    cls: inspect.type_info(cls) for cls in {*REQUESTS.values(), *REPLIES.values()}
}
_encode = msgspec.msgpack.Encoder().encode


class Hostile:
    """One stream of packets. `small`: integers that mean something are small, so that many packets get far."""

    def __init__(self, seed: int, kinds: list[Kind], *, replies: bool = False) -> None:
        self.dice = random.Random(seed)
        self._kinds = kinds
        self._bodies = REPLIES if replies else REQUESTS
        self._flag = REPLY if replies else 0
        self._said: list[bytes] = []

    def legal(self, kind: Kind, id_: int) -> bytes:
        """A body of the kind's type, each field within its bounds."""
        cls = self._bodies.get(kind)
        body = b"\x90" if cls is None else _encode(self._value(_INFOS[cls]))
        return HEADER.pack(id_, kind | self._flag, 0) + body

    def answerable(self, id_: int, kind: Kind | None = None) -> bytes:
        """A well-formed header; what follows it is anything. It must be answered."""
        dice = self.dice
        kind = kind or dice.choice(self._kinds)
        packet = self.legal(kind, id_)
        way = dice.random()
        if way < 0.35:
            return packet
        head, body = packet[: HEADER.size], bytearray(packet[HEADER.size :])
        if way < 0.55:
            for _ in range(dice.randrange(1, 4)):
                at = dice.randrange(len(body))
                body[at] ^= 1 << dice.randrange(8)
        elif way < 0.65:
            del body[dice.randrange(len(body)) :]
        elif way < 0.72:
            body += dice.randbytes(dice.choice((1, 2, 9, 200)))
        elif way < 0.80:
            body = bytearray(dice.randbytes(dice.randrange(40)))
        elif way < 0.90 and self._said:
            body = bytearray(dice.choice(self._said)[HEADER.size :])
        elif way < 0.91:
            body = bytearray(bytes([dice.choice((0x91, 0x81, 0xDC, 0xDD, 0xC6))]) * dice.randrange(1, 4000))
        elif way < 0.92:
            body += bytes(dice.randrange(MAX_PACKET_BYTES - HEADER.size - len(body)))
        else:
            body = bytearray(_encode([self._junk(2) for _ in range(dice.randrange(7))]))
        self._remember(packet)
        return head + bytes(body)

    def anything(self, id_: int) -> bytes:
        """Also what ends a connection."""
        dice = self.dice
        way = dice.random()
        if way < 0.80:
            return self.answerable(id_)
        packet = self.answerable(id_)
        if way < 0.84:
            return packet[: dice.randrange(1, HEADER.size)]
        if way < 0.88:
            return HEADER.pack(id_, dice.getrandbits(16), dice.choice((0, 0, 22, 65535))) + packet[HEADER.size :]
        if way < 0.92:
            return dice.randbytes(dice.randrange(1, 64))
        if way < 0.95 and self._said:
            return dice.choice(self._said)
        if way < 0.96:
            return packet + bytes(MAX_PACKET_BYTES)
        if way < 0.98:
            return HEADER.pack(id_, int(dice.choice(list(Kind))) | REPLY ^ self._flag, 0) + packet[HEADER.size :]
        return packet[HEADER.size :] + packet[: HEADER.size] or b"\0"

    def _remember(self, packet: bytes) -> None:
        self._said.append(packet)
        if len(self._said) > 64:
            del self._said[self.dice.randrange(64)]

    def _value(self, info: inspect.Type) -> Any:
        dice = self.dice
        match info:
            case inspect.StructType(fields=fields):
                return [self._value(field.type) for field in fields]
            case inspect.EnumType(cls=cls):
                assert issubclass(cls, IntEnum)
                return dice.choice([int(member) for member in cls])
            case inspect.IntType():
                low, high = bounds_of(info)
                if dice.random() < 0.7:
                    return min(max(dice.randrange(12), low), high)
                return dice.choice((low, high, dice.randint(low, high)))
            case inspect.StrType(max_length=high):
                assert high is not None
                return "".join(dice.choice("a=é\n\0😀") for _ in range(dice.randrange(1, min(high, 12))))
            case inspect.BytesType(min_length=low):
                return dice.randbytes(low or 0)
            case inspect.TupleType(item_types=items):
                return [self._value(item) for item in items]
            case inspect.ListType(item_type=item, max_length=high):
                assert high is not None
                return [self._value(item) for _ in range(dice.randrange(min(high, 4)))]
            case inspect.DictType(key_type=key, value_type=value):
                return {self._value(key): self._value(value) for _ in range(dice.randrange(3))}
        raise AssertionError(info)

    def _junk(self, depth: int) -> Any:
        dice = self.dice
        way = dice.randrange(7 if depth else 5)
        if way < 2:
            return max(min(dice.choice(_EDGES), (1 << 64) - 1), -(1 << 63))
        if way == 2:
            return dice.randbytes(dice.randrange(20))
        if way == 3:
            return dice.choice((None, True, 1.5, float("nan"), "text", "😀" * 80))
        if way == 4:
            return dice.randrange(200)
        if way == 5:
            return [self._junk(depth - 1) for _ in range(dice.randrange(5))]
        return {str(n): self._junk(depth - 1) for n in range(dice.randrange(3))}
