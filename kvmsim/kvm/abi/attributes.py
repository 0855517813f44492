"""Memory attributes of a VM: which GFNs are private (kvm->mem_attr_array). Guarded by Mmu.lock."""

import errno

from kvmsim.kvm.region import ATTRIBUTE_PRIVATE, AttributesRange
from memfsd.common.intervals import IntervalSet, subtract
from memfsd.uapi.errors import Refused
from memfsd.uapi.limits import MAX_ATTRIBUTE_RANGES
from memfsd.uapi.units import PAGE_SHIFT, Gfn, GfnRange, page_aligned

_U64 = 1 << 64
_END = Gfn(_U64 >> PAGE_SHIFT)


def check_attributes(asked: AttributesRange) -> GfnRange:
    """kvm_vm_ioctl_set_mem_attributes(): EINVAL in its order; the GFNs."""
    if asked.flags:
        raise Refused(errno.EINVAL, f"flags {asked.flags:#x}: there are none yet")
    if asked.attributes & ~ATTRIBUTE_PRIVATE:
        raise Refused(errno.EINVAL, f"attributes {asked.attributes:#x}: there is only PRIVATE, {ATTRIBUTE_PRIVATE:#x}")
    address, size = asked.address, asked.size
    if not 0 < size < _U64 or not 0 <= address < _U64 or address + size >= _U64:
        raise Refused(errno.EINVAL, f"{address:#x}+{size:#x}: give at least one page, and end before 2^64")
    if not page_aligned(address) or not page_aligned(size):
        raise Refused(errno.EINVAL, f"address {address:#x} and size {size:#x} must be multiples of 4096")
    return Gfn(address >> PAGE_SHIFT), Gfn(address + size >> PAGE_SHIFT)


class MemoryAttributes:
    """All GFNs are shared at first; slots have nothing to do with it."""

    def __init__(self) -> None:
        self._private = IntervalSet()

    def run_at(self, gfn: Gfn) -> tuple[bool, Gfn, Gfn]:
        """(private, start, end) of the GFNs around this one that are alike."""
        return self._private.around(gfn, Gfn(0), _END)

    def has(self, start: Gfn, end: Gfn, *, private: bool) -> bool:
        """All of [start, end): kvm_range_has_memory_attributes()."""
        is_private, _, high = self.run_at(start)
        return is_private is private and high >= end

    def within(self, start: Gfn, end: Gfn, *, private: bool) -> list[GfnRange]:
        """Which GFNs of [start, end) are so, in order."""
        found = self._private.within(start, end)
        return found if private else subtract(start, end, found)

    def reserve(self) -> None:
        """ENOMEM before anything has changed: a change makes one range more at most."""
        if len(self._private) >= MAX_ATTRIBUTE_RANGES:
            raise Refused(
                errno.ENOMEM, f"{MAX_ATTRIBUTE_RANGES} ranges of private memory are the limit: join some of them"
            )

    def store(self, start: Gfn, end: Gfn, *, private: bool) -> None:
        """After `reserve`."""
        if private:
            self._private.add(start, end)
        else:
            self._private.discard(start, end)

    def ranges(self) -> list[GfnRange]:
        """Private GFNs, in order."""
        return self._private.within(Gfn(0), _END)
