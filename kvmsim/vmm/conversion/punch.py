"""A hole in the private slot: the ioctl that the thread proposes.

to shared     an ordinary slot, then the hole, then the hole's frames back to the store
to private    the hole filled, the ordinary slot cut

The slot keeps its id, its size and the place of every page in its file; data around the hole survives (R5). A page
is never held twice.
"""

from kvmsim.vmm.guest_memory import GuestMemory
from memfsd.uapi.units import Gfn, GfnRange

from .design import Tally, all_private_or, all_shared_or, give_back, page_count
from .shared_copy import SharedCopy
from .transaction import Transaction


class Punch:
    """The design `punch`."""

    name = "punch"

    def __init__(self, memory: GuestMemory, copy: SharedCopy, tally: Tally) -> None:
        self._memory = memory
        self._copy = copy
        self._tally = tally

    def to_shared(self, start: Gfn, end: Gfn) -> int | None:
        memory, ram = self._memory, self._memory.ram
        pieces = ram.private.visible(start, end)
        if not all_shared_or(pieces, ram, start, end):
            return None
        with Transaction() as transaction:
            for low, high in ram.shared.missing(start, end):
                self._copy.add(low, high)
                transaction.did(self._copy.remove, low, high)
            for region, low, high in pieces:
                memory.hide(region.id, low, high)
                transaction.did(memory.fill_slot, region.id, low, high)
            give_back(memory, self._tally, pieces)
        return page_count(pieces)

    def to_private(self, start: Gfn, end: Gfn) -> int | None:
        memory = self._memory
        holes = memory.ram.private.holes(start, end)
        if not all_private_or(holes, memory.ram, start, end):
            return None
        taken: list[GfnRange] = []
        with Transaction() as transaction:
            for region, low, high in holes:
                memory.fill_slot(region.id, low, high)
                transaction.did(memory.hide, region.id, low, high)
                removed = self._copy.remove(low, high)
                transaction.did(self._copy.restore, removed)
                taken += removed
        self._copy.discard(taken)
        return page_count(holes)
