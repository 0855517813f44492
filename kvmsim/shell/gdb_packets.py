"""gdb's packets: $DATA#SUM, acknowledged with +, and a lone 0x03 for Ctrl-C. And the registers as 'g' has them."""

import socket
import struct

_GENERAL = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{number}" for number in range(8, 16)), "rip")
_SHORT = ("rflags", "cs", "ss", "ds", "es", "fs", "gs")
_LAYOUT = struct.Struct(f"<{len(_GENERAL)}Q{len(_SHORT)}I")
_NOT_SHOWN = b"xx" * (8 * 10 + 8 * 4 + 16 * 16 + 4)
"""x87 and SSE."""
_INTERRUPT = b"\x03"


def registers_to(values: dict[str, int]) -> bytes:
    packed = _LAYOUT.pack(*(values[name] for name in _GENERAL), *(values[name] & 0xFFFFFFFF for name in _SHORT))
    return packed.hex().encode() + _NOT_SHOWN


def registers_from(text: bytes) -> dict[str, int]:
    """Of a 'G'; segments stay as they are. ValueError for what is none."""
    digits = text[: _LAYOUT.size * 2].decode()
    try:
        values = _LAYOUT.unpack(bytes.fromhex(digits))
    except struct.error:
        raise ValueError("too few registers") from None
    return dict(zip((*_GENERAL, "rflags"), values, strict=False))


class Packets:
    """Of one connection. Whatever is no packet is passed over; None ends it: gdb has gone, or sends without end."""

    def __init__(self, connection: socket.socket, max_bytes: int) -> None:
        self._connection = connection
        self._max_bytes = max_bytes
        self._read = b""

    @property
    def has_more(self) -> bool:
        """Something was read already that is not an acknowledgement alone."""
        return bool(self._read.lstrip(b"+-"))

    def receive(self) -> bytes | None:
        while True:
            self._read = self._read.lstrip(b"+-")
            if self._read.startswith(_INTERRUPT):
                self._read = self._read[1:]
                return _INTERRUPT
            start, end = self._read.find(b"$"), self._read.find(b"#")
            if 0 <= start < end and len(self._read) >= end + 3:
                body, sum_ = self._read[start + 1 : end], self._read[end + 1 : end + 3]
                self._read = self._read[end + 3 :]
                if sum_ == _sum(body):
                    self._connection.sendall(b"+")
                    return body
                self._connection.sendall(b"-")
                continue
            if len(self._read) > 2 * self._max_bytes:
                return None
            more = self._connection.recv(self._max_bytes)
            if not more:
                return None
            self._read += more

    def send(self, body: bytes) -> None:
        self._connection.sendall(b"$" + body + b"#" + _sum(body))


def _sum(body: bytes) -> bytes:
    return b"%02x" % (sum(body) & 0xFF)
