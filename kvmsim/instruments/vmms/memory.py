"""Guest memory on an ABI: what the calls of a VMM do to it."""

import errno
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from kvmsim.kvm.region import MemoryRegion
from kvmsim.machine import VirtualMachine
from kvmsim.vmm.conversion.shared_copy import SharedCopy
from kvmsim.vmm.conversion.transaction import Transaction
from kvmsim.vmm.models.calls import Region, pages
from memfsd.uapi.errors import Refused
from memfsd.uapi.units import PAGE_SHIFT, PAGE_SIZE, Gfn, GfnRange, Ino

_U64 = 1 << 64


class File(NamedTuple):
    """What backs a region of RAM: its slot, and the private file's number and path in the store."""

    slot: int
    ino: Ino
    path: str


class ConvertibleMemory(Protocol):
    """Of one VM, whose regions of RAM are private at first. Everything is Refused with its errno."""

    def set_attributes(self, gpa: int, size: int, *, private: bool) -> None:
        """KVM_SET_MEMORY_ATTRIBUTES."""

    def punch(self, file: File, start: Gfn, end: Gfn) -> None:
        """fallocate(PUNCH_HOLE) of what a region has at [start, end)."""

    def discard(self, start: Gfn, end: Gfn) -> None:
        """madvise(MADV_DONTNEED) of the VMM's shared memory of [start, end)."""

    def pin(self, gfn: Gfn) -> bytes:
        """A page of shared memory, allocated, as it is now."""

    def shared(self) -> set[Gfn]:
        """Pages of RAM whose attribute says shared."""

    def private_elsewhere(self) -> set[Gfn]:
        """GFNs without memory whose attribute says private."""

    def held_shared(self) -> set[Gfn]:
        """Pages that the VMM's shared memory holds."""

    def close(self) -> None: ...


class ThreadMemory:
    """The thread has no memory attributes. What the attribute of a page says there, is whether an ordinary slot lies
    over the private one (policy `overlay`): it is added, or removed, for all of a range or for none of it, and contents
    of both sides stay until somebody discards them. KVM_SET_MEMORY_ATTRIBUTES also takes ranges without memory; of
    those only the attribute is remembered."""

    def __init__(self, machine: VirtualMachine, files: dict[Region, File]) -> None:
        self._memory = machine.vmm.memory
        self._regions = list(files)
        for region, file in files.items():
            self._memory.set_private_slot(MemoryRegion.private(file.slot, region.gpa, region.size), file.path)
        machine.kvm.blocking.set_overlay(True)
        self._copy = SharedCopy(self._memory)
        self._private_elsewhere: set[Gfn] = set()

    def set_attributes(self, gpa: int, size: int, *, private: bool) -> None:
        if not size or (gpa | size) % PAGE_SIZE or gpa + size > _U64:
            raise Refused(errno.EINVAL, f"no range of whole pages: {size:#x} bytes at {gpa:#x}")
        elsewhere = gfns_of(gpa, size)
        with self._memory.lock, Transaction() as transaction:
            for start, end in parts_of(self._regions, gpa, size):
                elsewhere.difference_update(map(Gfn, range(start, end)))
                if private:
                    taken = self._copy.remove(start, end)
                    transaction.did(self._copy.restore, taken)
                else:
                    self._copy.restore(self._memory.ram.shared.missing(start, end))
                    transaction.did(self._copy.remove, start, end)
        if private:
            self._private_elsewhere |= elsewhere
        else:
            self._private_elsewhere -= elsewhere

    def punch(self, file: File, start: Gfn, end: Gfn) -> None:
        slot = self._memory.ram.private.get(file.slot)
        assert slot is not None
        with self._memory.lock:
            self._memory.give_back(slot, start, end)

    def discard(self, start: Gfn, end: Gfn) -> None:
        self._copy.discard([(start, end)])

    def pin(self, gfn: Gfn) -> bytes:
        self._copy.memory.touch(gfn << PAGE_SHIFT, 1)
        return self._copy.memory.read(gfn << PAGE_SHIFT, PAGE_SIZE)

    def shared(self) -> set[Gfn]:
        visible = self._memory.ram.shared.visible
        return {
            gfn
            for region in self._regions
            for _, low, high in visible(*range_of(region))
            for gfn in map(Gfn, range(low, high))
        }

    def private_elsewhere(self) -> set[Gfn]:
        return self._private_elsewhere

    def held_shared(self) -> set[Gfn]:
        return {gfn for start, end in self._copy.populated() for gfn in map(Gfn, range(start, end))}

    def close(self) -> None:
        self._copy.close()


def range_of(region: Region) -> GfnRange:
    return Gfn(region.gpa >> PAGE_SHIFT), Gfn(region.end >> PAGE_SHIFT)


def gfns_of(gpa: int, size: int) -> set[Gfn]:
    return {Gfn(page >> PAGE_SHIFT) for page in pages(gpa, size)}


def parts_of(regions: Sequence[Region], gpa: int, size: int) -> list[GfnRange]:
    """What regions have of [gpa, gpa + size)."""
    parts = [range_of(region) for region in regions if region.overlaps(gpa, gpa + size)]
    first, last = Gfn(gpa >> PAGE_SHIFT), Gfn(gpa + size >> PAGE_SHIFT)
    return [(max(start, first), min(end, last)) for start, end in parts]
