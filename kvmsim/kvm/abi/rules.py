"""What an ABI decides, as KVM asks it."""

from typing import Protocol

from kvmsim.kvm.alias import Alias
from kvmsim.kvm.exits import Exit, MemoryErrorExit
from kvmsim.kvm.slots.memslots import Segment
from memfsd.uapi.units import Gfn

Source = Segment | MemoryErrorExit | None
"""What a GFN is in one alias: the slot, with the range around the GFN that is alike; an exit; None: a device's."""


class Rules(Protocol):
    """Of one VM. With Mmu.lock held, but for `reported`."""

    zapped: tuple[Alias, ...]
    """The aliases that lose their mappings when the store takes pages of a file away."""
    maps_explicitly: bool
    """MapGPA maps what one slot covers. Else it is user space's alone (KVM_CAP_EXIT_HYPERCALL)."""
    has_one_space: bool
    """Slots are set by KVM_SET_USER_MEMORY_REGION2 with both memories; else those of each alias by their own."""

    asks_file: bool
    """Which alias a page of a guest_memfd is, the file says; a fault asks it before get_pfn."""
    overlay: bool
    """Ordinary slots lie over private ones: lookups see them first. Changed by Blocking.set_overlay alone."""

    def source_of(self, gfn: Gfn, *, private: bool) -> Source:
        """Which memory an access of this alias reaches."""

    def covers(self, start: Gfn, end: Gfn, *, private: bool) -> bool:
        """One slot shows all of [start, end) in this alias: an explicit request for it is handled."""

    def prefaulted(self, gfn: Gfn, asked: Alias) -> Alias:
        """Which alias KVM_PRE_FAULT_MEMORY maps, unless the file says it."""

    def reported(self, exit_: Exit) -> Exit:
        """The exit as user space sees it."""
