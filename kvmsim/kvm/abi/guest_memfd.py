"""Linux's table: the attribute of a GFN says which alias it is, and its slot has the memory of both.

A slot of user space is two of ours with one id: the shared half shows userspace_addr, or the file's shared pages where
the file can be mapped; the private half, if there is a guest_memfd, shows that.
"""

import errno
from dataclasses import replace

from kvmsim.kvm.alias import PRIVATE, SHARED, Alias
from kvmsim.kvm.exits import Exit, FailedExit, MemoryErrorExit, MemoryFaultExit
from kvmsim.kvm.slots.memslots import Memslots
from kvmsim.memory.memory import UnmappedMemory
from memfsd.uapi.errors import EHWPOISON
from memfsd.uapi.units import PAGE_SHIFT, PAGE_SIZE, Gfn

from .attributes import MemoryAttributes
from .rules import Source

_OF_GET_PFN = (EHWPOISON, errno.ENOMEM)


class GuestMemfdRules:
    """As kvm_mmu_faultin_pfn() (arch/x86/kvm/mmu/mmu.c): the attribute first, then the slot."""

    zapped: tuple[Alias, ...] = (PRIVATE, SHARED)
    maps_explicitly = False
    has_one_space = True
    overlay = False

    def __init__(self, slots: tuple[Memslots, Memslots], attributes: MemoryAttributes, *, asks_file: bool) -> None:
        self._slots = slots
        self._attributes = attributes
        self.asks_file = asks_file

    def source_of(self, gfn: Gfn, *, private: bool) -> Source:
        is_private, low, high = self._attributes.run_at(gfn)
        if is_private != private and not self.asks_file:
            return other_alias(gfn, private=private)
        segment = self._slots[private].segment(gfn)
        if segment is None:
            if not private:
                return None
            return _fault(gfn, private, "no slot with a guest_memfd shows the page")
        slot, start, end = segment
        if isinstance(slot.backing.memory, UnmappedMemory):
            has_file = slot.backing.emulated is not None
            why = "its guest_memfd was closed" if has_file else "nothing is mapped at the slot's userspace_addr"
            return replace(_fault(gfn, private, why), is_users=not has_file)
        return slot, max(start, low), min(end, high)

    def covers(self, start: Gfn, end: Gfn, *, private: bool) -> bool:
        is_private, _, high = self._attributes.run_at(start)
        if self.asks_file:
            return self._slots[private].covers(start, end) is not None
        return is_private == private and high >= end and self._slots[private].covers(start, end) is not None

    def prefaulted(self, gfn: Gfn, asked: Alias) -> Alias:
        return Alias(self._attributes.run_at(gfn)[0])

    def reported(self, exit_: Exit) -> Exit:
        """KVM_RUN is -EFAULT, or what kvm_gmem_get_pfn() failed with, and kvm_run.memory_fault says where."""
        if not isinstance(exit_, MemoryErrorExit):
            return exit_
        number = exit_.errno if exit_.errno in _OF_GET_PFN else errno.EFAULT
        if exit_.is_users:
            return FailedExit(number, exit_.why)
        return MemoryFaultExit(exit_.gpa & -PAGE_SIZE, PAGE_SIZE, exit_.private, number, exit_.why)


def other_alias(gfn: Gfn, *, private: bool) -> MemoryErrorExit:
    """The attribute is not what the guest wants."""
    return _fault(gfn, private, "the guest wants the other alias: set the attributes")


def _fault(gfn: Gfn, private: bool, why: str) -> MemoryErrorExit:
    return MemoryErrorExit(gfn << PAGE_SHIFT, PAGE_SIZE, private, errno=errno.EFAULT, why=why)
