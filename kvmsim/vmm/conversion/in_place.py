"""Attributes in the file: pages of a guest_memfd change hands where they are (KVM_SET_MEMORY_ATTRIBUTES2).

Nothing is copied, given back or discarded, and contents stay. User space maps the file, and so reaches what is shared.
"""

from kvmsim.vmm.guest_memory import GuestMemory
from memfsd.uapi.units import Gfn

from .transaction import Transaction


class InPlace:
    """The design `inplace`."""

    name = "inplace"

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory

    def to_shared(self, start: Gfn, end: Gfn) -> int | None:
        return self._convert(start, end, private=False)

    def to_private(self, start: Gfn, end: Gfn) -> int | None:
        return None if self._memory.ram.private.missing(start, end) else self._convert(start, end, private=True)

    def _convert(self, start: Gfn, end: Gfn, *, private: bool) -> int:
        """A call for each file and slot. EAGAIN (Refused): somebody holds a page."""
        memory, pieces = self._memory, self._memory.ram.private.visible(start, end)
        with Transaction() as transaction:
            for region, low, high in pieces:
                # One call is all or nothing by itself: what was otherwise before matters only where there are several.
                before = memory.file_attributes(region, low, high) if len(pieces) > 1 else []
                memory.convert_file(region, low, high, private=private)
                for first, last, was_private in before:
                    transaction.did(memory.convert_file, region, first, last, private=was_private)
        return sum(high - low for _, low, high in pieces)
