"""What a written page holds: whose it is, 64 times, with a checksum, so that any other content says what it is."""

import struct
import zlib
from typing import NamedTuple

PAGE = 4096
ZEROS = bytes(PAGE)
_FACTS = struct.Struct("<8sIIII")
_MAGIC = b"memfsoak"
_LINE_BYTES = 64


class Stamp(NamedTuple):
    """File number over the whole run, page of the file, alias (0 private, 1 shared), generation from 1 on."""

    file: int
    page: int
    shared: int
    generation: int

    def __str__(self) -> str:
        alias = "shared" if self.shared else "private"
        return f"file {self.file}, {alias} page {self.page:#x}, generation {self.generation}"


def render(stamp: Stamp) -> bytes:
    facts = _FACTS.pack(_MAGIC, *stamp)
    line = facts + zlib.crc32(facts).to_bytes(4, "little")
    return line.ljust(_LINE_BYTES, b"\0") * (PAGE // _LINE_BYTES)


def stamps_of(page: bytes) -> set[Stamp | None]:
    """The stamp of each line; None stands for zeros. ValueError where a line is neither."""
    found: set[Stamp | None] = set()
    for at in range(0, PAGE, _LINE_BYTES):
        line = page[at : at + _LINE_BYTES]
        magic, *facts = _FACTS.unpack_from(line)
        stamp = Stamp(*facts)
        if not any(line):
            found.add(None)
        elif magic == _MAGIC and line == render(stamp)[:_LINE_BYTES]:
            found.add(stamp)
        else:
            raise ValueError(f"byte {at:#x} of the page: {line[:32].hex(' ')}")
    return found


def describe(page: bytes) -> str:
    """For a person, who has to find out where this came from."""
    try:
        return " and ".join(sorted("zeros" if stamp is None else str(stamp) for stamp in stamps_of(page)))
    except ValueError as error:
        return f"nothing that was ever written ({error})"
