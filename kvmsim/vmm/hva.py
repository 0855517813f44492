"""The host address space of a VMM, with the sticky VMAs of Hildenbrand's memfd_encrypted().

An *encrypted* VMA stands for a whole sealed file. It is marker entries only: something is there, and nothing can be
reached. From the thread, rule by rule:

    each page is mapped exactly once, in one process    a second mmap of the file is EBUSY, wherever it is made
    the whole file, MAP_SHARED only                     EINVAL
    it cannot vanish, not even in parts                munmap over it is EPERM, as of a mseal(2)ed mapping
    skipped by fork and dump                            VM_DONTCOPY, VM_DONTDUMP
    accesses fault like swap markers                    SIGBUS, here EFAULT

Anonymous VMAs are there beside them, to be shared guest memory and to be distinguished.
"""

import errno
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace

from memfsd.common.quote import quoted
from memfsd.uapi.errors import Refused
from memfsd.uapi.limits import MAX_VMAS
from memfsd.uapi.units import PAGE_SIZE, page_aligned

TASK_SIZE = (1 << 47) - PAGE_SIZE
"""User addresses end here (x86-64, four levels)."""
_MMAP_MIN = 1 << 16
_MMAP_BASE = 0x7F00_0000_0000
"""Without a wish, mappings are placed from here down."""


@dataclass(frozen=True, slots=True)
class Vma:
    """Addresses [start, end). file: what an encrypted one maps whole; None for an anonymous one.

    memory, memory_offset: what is behind it (an encrypted one: the open file), and where in it the VMA begins.
    """

    start: int
    end: int
    file: object = None
    name: str = "(anonymous)"
    memory: object = None
    memory_offset: int = 0

    @property
    def size(self) -> int:
        return self.end - self.start

    @property
    def flags(self) -> tuple[str, ...]:
        return ("VM_SHARED", "VM_DONTCOPY", "VM_DONTDUMP") if self.file is not None else ("VM_SHARED",)

    def __str__(self) -> str:
        return f"{self.start:#x}-{self.end:#x} ({self.name if self.file is None else quoted(self.name)})"


class HostAddressSpace:
    """One process's VMAs. `owners` is one for all processes: which process maps each encrypted file."""

    def __init__(self, process: str, owners: dict[object, str]) -> None:
        self.process = process
        self._owners = owners
        self._starts: list[int] = []
        self._vmas: dict[int, Vma] = {}

    def __iter__(self) -> Iterator[Vma]:
        """By address."""
        return iter([self._vmas[start] for start in self._starts])

    def map_encrypted(
        self,
        file: object,
        name: str,
        file_size: int,
        memory: object,
        *,
        length: int,
        offset: int,
        shared: bool,
        at: int | None = None,
    ) -> Vma:
        """mmap(2) of a sealed file: EINVAL private, a part, or an empty file; EBUSY it is mapped already; EEXIST at a
        place that is taken (MAP_FIXED_NOREPLACE)."""
        if not shared:
            raise Refused(errno.EINVAL, f"{quoted(name)}: encrypted memory is mapped MAP_SHARED only")
        if file_size == 0:
            raise Refused(errno.EINVAL, f"{quoted(name)}: an empty file cannot be mapped: set its size first")
        if offset or length != file_size:
            raise Refused(
                errno.EINVAL,
                f"{quoted(name)}: encrypted memory is mapped whole: leave offset and length out ({file_size:#x})",
            )
        owner = self._owners.get(file)
        if owner is not None:
            raise Refused(
                errno.EBUSY,
                f"{quoted(name)}: process {quoted(owner)} maps it already, and each page is mapped exactly once",
            )
        vma = self._place(length, at, file, name, memory)
        self._owners[file] = self.process
        return vma

    def map_anonymous(self, length: int, memory: object, at: int | None = None) -> Vma:
        """mmap(2) of shared anonymous memory. length: bytes, whole pages."""
        return self._place(length, at, None, "(anonymous)", memory)

    def unmap(self, start: int, length: int) -> list[Vma]:
        """munmap(2): what was removed, cut to the range. EPERM, and nothing changed, if any of it is encrypted."""
        end = start + length
        if not page_aligned(start) or length <= 0 or not page_aligned(length) or end > TASK_SIZE:
            raise Refused(
                errno.EINVAL, f"{start:#x}+{length:#x} is not a range of pages of the process: give multiples of 4096"
            )
        found = self.within(start, end)
        for vma in found:
            if vma.file is not None:
                raise Refused(
                    errno.EPERM,
                    f"{vma} is encrypted memory and cannot be unmapped, not even in part: end its process (hva exit)",
                )
        for vma in found:
            self._remove(vma)
            for low, high in ((vma.start, start), (end, vma.end)):
                if low < high:
                    self._insert(_part(vma, low, high))
        return [_part(vma, max(vma.start, start), min(vma.end, end)) for vma in found]

    def within(self, start: int, end: int) -> list[Vma]:
        """VMAs with an address in [start, end), whole, in order."""
        first = max(bisect_right(self._starts, start) - 1, 0)
        found = []
        for at in self._starts[first:]:
            vma = self._vmas[at]
            if at >= end:
                break
            if vma.end > start:
                found.append(vma)
        return found

    def backing(self, start: int, length: int) -> Vma:
        """The anonymous VMA that holds all of a range, for a host access or an ordinary slot. EFAULT where an access
        would be a signal: SIGBUS on encrypted memory, SIGSEGV on none; EINVAL when it is in two mappings."""
        found = self.within(start, start + length)
        for vma in found:
            if vma.file is not None:
                raise Refused(errno.EFAULT, f"{start:#x}+{length:#x} reaches {vma}: encrypted memory, SIGBUS")
        if not found or found[0].start > start or found[-1].end < start + length:
            raise Refused(errno.EFAULT, f"{start:#x}+{length:#x} is not mapped: SIGSEGV")
        if len(found) > 1:
            raise Refused(errno.EINVAL, f"{start:#x}+{length:#x} lies in {len(found)} mappings: give a range of one")
        return found[0]

    def encrypted(self, start: int, length: int) -> Vma:
        """The encrypted VMA that a private slot covers whole; else EINVAL, which says what is there."""
        found = [vma for vma in self.within(start, start + length) if vma.file is not None]
        if not found:
            raise Refused(errno.EINVAL, f"there is no encrypted memory at {start:#x}: map a sealed file first")
        vma = found[0]
        if (start, start + length) != (vma.start, vma.end):
            raise Refused(
                errno.EINVAL, f"a private slot covers encrypted memory whole: hva={vma.start:#x} size={vma.size:#x}"
            )
        return vma

    def fork(self, process: str) -> "HostAddressSpace":
        """The child's address space: encrypted memory is not in it (VM_DONTCOPY)."""
        child = HostAddressSpace(process, self._owners)
        for vma in self:
            if vma.file is None:
                child._insert(vma)
        return child

    def dump(self) -> list[Vma]:
        """What a core dump holds: encrypted memory is not in it (VM_DONTDUMP)."""
        return [vma for vma in self if vma.file is None]

    def exit(self) -> None:
        """The process ends: the one way for encrypted memory to go."""
        for vma in self:
            if vma.file is not None:
                del self._owners[vma.file]
        self._starts.clear()
        self._vmas.clear()

    def _place(self, length: int, at: int | None, file: object, name: str, memory: object = None) -> Vma:
        if len(self._starts) >= MAX_VMAS:
            raise Refused(errno.ENOMEM, f"{MAX_VMAS} mappings are the limit: unmap some")
        if at is None:
            at = self._gap_below(_MMAP_BASE, length)
        if not page_aligned(at) or not page_aligned(length) or at < _MMAP_MIN or at + length > TASK_SIZE:
            raise Refused(
                errno.EINVAL, f"{at:#x}+{length:#x} is not a range of pages of the process: give multiples of 4096"
            )
        taken = self.within(at, at + length)
        if taken:
            raise Refused(errno.EEXIST, f"{at:#x}+{length:#x} overlaps {taken[0]}: choose another address")
        vma = Vma(at, at + length, file, name, memory)
        self._insert(vma)
        return vma

    def _gap_below(self, top: int, length: int) -> int:
        """The highest gap of this length that ends at or below top."""
        end = top
        for start in reversed(self._starts):
            vma = self._vmas[start]
            if vma.end + length <= end:
                break
            end = min(end, start)
        if end - length < _MMAP_MIN:
            raise Refused(errno.ENOMEM, f"no room for {length:#x} bytes in the address space: unmap some")
        return end - length

    def _insert(self, vma: Vma) -> None:
        self._starts.insert(bisect_right(self._starts, vma.start), vma.start)
        self._vmas[vma.start] = vma

    def _remove(self, vma: Vma) -> None:
        self._starts.remove(vma.start)
        del self._vmas[vma.start]


def _part(vma: Vma, start: int, end: int) -> Vma:
    assert vma.file is None, "encrypted memory is never cut"
    return replace(vma, start=start, end=end, memory_offset=vma.memory_offset + start - vma.start)
