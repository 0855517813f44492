"""Files that a vCPU boots, and those that are none."""

import struct

import pytest

from kvmsim.cpu.x86.program import Image, Segment, parse
from kvmsim.kvm.region import GPA_END
from memfsd.uapi.limits import MAX_BOOT_BYTES
from tests.support.both_sides import alias, errno_of

CODE = b"\x90\xf4"


def elf(
    *,
    class_: int = 2,
    order: int = 1,
    machine: int = 62,
    kind: int = 2,
    entry: int = 0x100000,
    segments: tuple[tuple[int, int, bytes, int], ...] = ((1, 0x100000, CODE, 2),),
    cut: int | None = None,
) -> bytes:
    """(type, gpa, bytes, size in memory) of each segment."""
    header = struct.pack(
        "<4sBBBBB7xHHIQQQIHHHHHH",
        *(b"\x7fELF", class_, order, 1, 0, 0, kind, machine, 1, entry, 64, 0, 0, 64, 56, len(segments), 0, 0, 0),
    )
    offset, table, data = 64 + 56 * len(segments), b"", b""
    for type_, gpa, content, size in segments:
        table += struct.pack("<IIQQQQQQ", type_, 5, offset + len(data), gpa, gpa, len(content), size, 1)
        data += content
    return (header + table + data)[:cut]


def test_a_flat_binary_begins_where_it_is_put() -> None:
    assert parse("f", CODE, None, None) == Image((Segment(0x1000, CODE, 2, True),), 0x1000)
    assert parse("f", CODE, 0x8000, 0x8001).entry == 0x8001
    assert parse("f", CODE, alias(0x8000), None).entry == alias(0x8000)


def test_an_elf_program_says_where_it_lies() -> None:
    segments = ((1, 0x100000, CODE, 2), (1, 0x200000, b"data", 4096), (4, 0, b"note", 4))
    image = parse("f", elf(segments=segments), None, None)
    assert [(s.gpa, s.data, s.size) for s in image.segments] == [(0x100000, CODE, 2), (0x200000, b"data", 4096)]
    assert image.entry == 0x100000
    assert image.size == 4098


@pytest.mark.parametrize(
    ("content", "at", "entry", "errno"),
    [
        (b"", None, None, "ENOEXEC"),
        (b"\x7fELF", None, None, "ENOEXEC"),
        (elf(machine=183), None, None, "ENOEXEC"),
        (elf(machine=9999), None, None, "ENOEXEC"),
        (elf(class_=1), None, None, "ENOEXEC"),
        (elf(order=2), None, None, "ENOEXEC"),
        (elf(kind=3), None, None, "ENOEXEC"),
        (elf(cut=100), None, None, "ENOEXEC"),
        (elf(cut=-1), None, None, "ENOEXEC"),
        (elf(segments=((1, 0x100000, CODE, 1),)), None, None, "ENOEXEC"),
        (elf(segments=()), None, None, "ENOEXEC"),
        (elf(segments=((1, 0x100000, CODE, MAX_BOOT_BYTES + 1),)), None, None, "EFBIG"),
        (elf(entry=0x100002), None, None, "EINVAL"),
        (elf(segments=((1, GPA_END - 1, CODE, 2),), entry=GPA_END - 1), None, None, "EINVAL"),
        (elf(), 0x1000, None, "EINVAL"),
        (elf(), None, 0x300000, "EINVAL"),
        (CODE, 0x1000, 0x1002, "EINVAL"),
        (CODE, 0x1000, 0xFFF, "EINVAL"),
        (CODE, GPA_END, None, "EINVAL"),
    ],
)
def test_what_is_no_program_is_refused(content: bytes, at: int | None, entry: int | None, errno: str) -> None:
    assert errno_of(parse, "f", content, at, entry) == errno
