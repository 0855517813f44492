"""The head of an ELF core (ET_CORE, x86-64) of a pool: headers and notes, before the contents.

A frame's physical and virtual address is its number * 4096. Frames with contents are PT_LOAD segments with p_filesz =
p_memsz, frames that are left out with p_filesz 0 and no access rights; free frames have none. More than 65534 segments:
e_phnum is PN_XNUM, and section 0 has their number (elf(5)).
"""

import struct
from collections.abc import Sequence
from typing import NamedTuple

from memfsd.uapi.units import PAGE_SHIFT, PAGE_SIZE

NOTE_NAME = b"memfsd\0"
NT_POOL = 0x4D460001
"""Text, a line each: what this is a dump of, and when."""
NT_LEFT_OUT = 0x4D460002
"""Text, a line for each run without contents: `0xSTART-0xEND REASON`, physical addresses, END exclusive."""

_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
_SHDR = struct.Struct("<IIQQQQIIQQ")
_NHDR = struct.Struct("<III")
_IDENT = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
_ET_CORE, _EM_X86_64, _PT_LOAD, _PT_NOTE, _PF_R, _PF_W = 4, 62, 1, 4, 4, 2
_PN_XNUM = 0xFFFF


class Segment(NamedTuple):
    """Frames [pfn, pfn + frame_count)."""

    pfn: int
    frame_count: int
    has_contents: bool


class Head(NamedTuple):
    """What the file begins with, and where the contents follow: of all segments that have some, in their order."""

    data: bytes
    contents_at: int
    size_bytes: int


def head(segments: Sequence[Segment], notes: Sequence[tuple[int, bytes]]) -> Head:
    """notes: types and texts."""
    said = b"".join(_note(kind, text) for kind, text in notes)
    number = 1 + len(segments)
    is_extended = number >= _PN_XNUM
    sections_at = _EHDR.size + number * _PHDR.size
    notes_at = sections_at + (_SHDR.size if is_extended else 0)
    contents_at = at = -(-(notes_at + len(said)) // PAGE_SIZE) * PAGE_SIZE
    headers = [_PHDR.pack(_PT_NOTE, 0, notes_at, 0, 0, len(said), 0, 4)]
    for pfn, count, has_contents in segments:
        address, size = pfn << PAGE_SHIFT, count << PAGE_SHIFT
        flags, stored = (_PF_R | _PF_W, size) if has_contents else (0, 0)
        headers.append(_PHDR.pack(_PT_LOAD, flags, at, address, address, stored, size, PAGE_SIZE))
        at += stored
    ehdr = _EHDR.pack(
        _IDENT, _ET_CORE, _EM_X86_64, 1, 0, _EHDR.size, sections_at if is_extended else 0, 0, _EHDR.size, _PHDR.size,
        _PN_XNUM if is_extended else number, _SHDR.size, 1 if is_extended else 0, 0,
    )  # fmt: skip
    section = _SHDR.pack(0, 0, 0, 0, 0, 0, 0, number, 0, 0) if is_extended else b""
    data = b"".join([ehdr, *headers, section, said])
    return Head(data.ljust(contents_at, b"\0"), contents_at, at)


def _note(kind: int, text: bytes) -> bytes:
    return _NHDR.pack(len(NOTE_NAME), len(text), kind) + _padded(NOTE_NAME) + _padded(text)


def _padded(data: bytes) -> bytes:
    return data.ljust(-(-len(data) // 4) * 4, b"\0")
