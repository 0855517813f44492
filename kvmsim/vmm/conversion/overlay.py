"""An ordinary slot over the private one: Hildenbrand's answer in the thread.

to shared     an ordinary slot is added
to private    it is removed, or cut

The private slot is never touched. While the policy is on, every lookup sees the ordinary slot first (Rules.overlay), so
that a private access under it is an exit, not a fault. What becomes of the private page under it is chosen:

kept      it is only blocked, as TDH.MEM.RANGE.BLOCK does: its data is back when the ordinary slot goes. The memory is
          held twice meanwhile, and `Vmm.doubled_pages` says how much.
freed     it goes back to the store, whose callback takes it out of the page tables: a new, zero page comes later.
"""

from kvmsim.vmm.guest_memory import GuestMemory
from kvmsim.vmm.ram import Piece
from memfsd.uapi.units import Gfn

from .design import Tally, all_shared_or, give_back, page_count
from .shared_copy import SharedCopy
from .transaction import Transaction


class Overlay:
    """The design `overlay`."""

    name = "overlay"

    def __init__(self, memory: GuestMemory, copy: SharedCopy, tally: Tally, *, freed: bool) -> None:
        self._memory = memory
        self._copy = copy
        self._tally = tally
        self._freed = freed

    def to_shared(self, start: Gfn, end: Gfn) -> int | None:
        ram = self._memory.ram
        pieces = [
            Piece(region, low, high)
            for region, first, last in ram.private.visible(start, end)
            for low, high in ram.shared.missing(first, last)
        ]
        if not all_shared_or(pieces, ram, start, end):
            return None
        with Transaction() as transaction:
            for _, low, high in pieces:
                self._copy.add(low, high)
                transaction.did(self._copy.remove, low, high)
            if self._freed:
                give_back(self._memory, self._tally, pieces)
        return page_count(pieces)

    def to_private(self, start: Gfn, end: Gfn) -> int | None:
        ram, under = self._memory.ram, self._copy.ranges(start, end)
        shown = [(low, high) for _, low, high in ram.shared.visible(start, end)]
        if ram.private.missing(start, end) or under != shown:
            return None
        taken = self._copy.remove(start, end)
        self._copy.discard(taken)
        return sum(high - low for low, high in taken)
