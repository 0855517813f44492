"""A file that a vCPU boots: a flat binary, or an ELF program for x86-64 that is linked to its addresses."""

import errno
import struct
from dataclasses import dataclass

from kvmsim.kvm.hypercalls import SHARED_BIT
from kvmsim.kvm.region import GPA_END
from memfsd.common.quote import quoted
from memfsd.uapi.errors import Refused
from memfsd.uapi.limits import MAX_BOOT_BYTES

FLAT_AT = 0x1000
"""Where a flat binary begins unless it is said."""
_MAGIC = b"\x7fELF"
_HEADER = struct.Struct("<4sBBBBB7xHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_CLASS_64, _LITTLE, _EXECUTABLE, _X86_64, _LOAD, _EXECUTE = 2, 1, 2, 62, 1, 1
_MACHINES = {3: "i386", 40: "ARM", 183: "aarch64", 243: "RISC-V", 8: "MIPS", 21: "PowerPC", 22: "s390"}


@dataclass(frozen=True, slots=True)
class Segment:
    """Bytes at a guest physical address, with zeros behind them up to size."""

    gpa: int
    data: bytes
    size: int
    executable: bool


@dataclass(frozen=True, slots=True)
class Image:
    """Segments to load, and where to begin."""

    segments: tuple[Segment, ...]
    entry: int

    @property
    def size(self) -> int:
        return sum(segment.size for segment in self.segments)


def parse(path: str, content: bytes, at: int | None, entry: int | None) -> Image:
    """ENOEXEC: no program for this CPU, or a damaged one. EINVAL: at or entry do not fit."""
    name = quoted(path)
    if not content:
        raise Refused(errno.ENOEXEC, f"{name}: the file is empty: give a flat binary or an ELF program")
    if content.startswith(_MAGIC):
        if at is not None:
            raise Refused(errno.EINVAL, f"{name}: an ELF program says itself where it lies: leave at= out")
        image = _elf(name, content, entry)
    else:
        start = FLAT_AT if at is None else at
        image = Image((Segment(start, content, len(content), True),), start if entry is None else entry)
    for segment in image.segments:
        if (segment.gpa & ~SHARED_BIT) + segment.size > GPA_END:
            raise Refused(errno.EINVAL, f"{name}: gpa {segment.gpa:#x}+{segment.size:#x} is past the last address")
    if not any(s.executable and s.gpa <= image.entry < s.gpa + s.size for s in image.segments):
        raise Refused(errno.EINVAL, f"{name}: entry {image.entry:#x} is outside of its code: choose another entry=")
    return image


def _elf(name: str, content: bytes, entry: int | None) -> Image:
    if len(content) < _HEADER.size:
        raise _damaged(name, "its header is cut off")
    (_, class_, order, _, _, _, kind, machine, _, at, table, _, _, _, entry_size, count, _, _, _) = _HEADER.unpack_from(
        content
    )
    if class_ != _CLASS_64 or order != _LITTLE or machine != _X86_64:
        what = "32-bit code" if class_ != _CLASS_64 else "a big-endian processor"
        what = _MACHINES.get(machine, f"machine {machine}") if machine != _X86_64 else what
        raise Refused(errno.ENOEXEC, f"{name}: it is a program for {what}: build it for x86-64 (gcc -m64)")
    if kind != _EXECUTABLE:
        raise Refused(errno.ENOEXEC, f"{name}: it is not linked to addresses: link it with -static -no-pie -Ttext=")
    if entry_size != _SEGMENT.size or table + count * entry_size > len(content):
        raise _damaged(name, "its program headers are cut off")
    segments = []
    for number in range(count):
        type_, flags, offset, _, gpa, file_size, size, _ = _SEGMENT.unpack_from(content, table + number * entry_size)
        if type_ != _LOAD or not size:
            continue
        if offset + file_size > len(content) or file_size > size:
            raise _damaged(name, f"segment {number} is cut off")
        if size > MAX_BOOT_BYTES:
            raise Refused(errno.EFBIG, f"{name}: segment {number} has {size} bytes, and {MAX_BOOT_BYTES} are the limit")
        segments.append(Segment(gpa, content[offset : offset + file_size], size, bool(flags & _EXECUTE)))
    if not segments:
        raise _damaged(name, "it loads nothing")
    return Image(tuple(segments), at if entry is None else entry)


def _damaged(name: str, why: str) -> Refused:
    return Refused(errno.ENOEXEC, f"{name}: damaged ELF: {why}: build it again")
