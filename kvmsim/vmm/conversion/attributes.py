"""Attributes of the VM: what user space does with Linux's guest_memfd.

to shared     KVM_SET_MEMORY_ATTRIBUTES; the private side goes back to the store (fallocate(PUNCH_HOLE))
to private    KVM_SET_MEMORY_ATTRIBUTES; the shared side is discarded

Slots have both memories and stay as they are. A page is held twice only between the two steps.
"""

from kvmsim.vmm.guest_memory import GuestMemory
from memfsd.uapi.errors import Refused
from memfsd.uapi.units import Gfn, GfnRange

from .design import Tally
from .transaction import Transaction


class VmAttributes:
    """The design `attributes`."""

    name = "attributes"

    def __init__(self, memory: GuestMemory, tally: Tally) -> None:
        self._memory = memory
        self._tally = tally

    def to_shared(self, start: Gfn, end: Gfn) -> int | None:
        memory = self._memory
        if memory.ram.shared.missing(start, end):
            return None
        with Transaction() as transaction:
            changed = memory.set_attributes(start, end, private=False)
            for low, high in changed:
                transaction.did(memory.set_attributes, low, high, private=True)
            self._punch(changed)
        return _page_count(changed)

    def to_private(self, start: Gfn, end: Gfn) -> int | None:
        memory = self._memory
        if memory.ram.private.missing(start, end):
            return None
        changed = memory.set_attributes(start, end, private=True)
        for low, high in changed:
            memory.discard_shared(low, high)
        return _page_count(changed)

    def _punch(self, changed: list[GfnRange]) -> None:
        """Refused when the store refuses before anything is lost; later there is no way back, and pages stay."""
        lost = False
        for start, end in changed:
            for region, low, high in self._memory.ram.private.visible(start, end):
                try:
                    self._memory.punch_file(region, low, high)
                    lost = True
                except Refused:
                    if not lost:
                        raise
                    self._tally.unreturned_pages += high - low


def _page_count(ranges: list[GfnRange]) -> int:
    return sum(end - start for start, end in ranges)
