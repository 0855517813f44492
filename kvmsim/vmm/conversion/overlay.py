"""An ordinary slot over the private one: Hildenbrand's answer in the thread.

to shared     an ordinary slot is added
to private    it is removed, or cut

The private slot is never touched. While the policy is on, every lookup sees the ordinary slot first (`Vm.overlay`), so
that a private access under it is an exit, not a fault. What becomes of the private page under it is chosen:

kept      it is only blocked, as TDH.MEM.RANGE.BLOCK does: its data is back when the ordinary slot goes. The memory is
          held twice meanwhile, and `Vmm.doubled_pages` tells how much.
freed     it goes back to the store, whose callback takes it out of the page tables: a new, zero page comes later.
"""

from kvmsim.kvm.kvm import Kvm

from .design import (
    Piece,
    Tally,
    all_shared_or,
    give_back,
    not_private,
    not_shared,
    page_count,
    visible_private,
    visible_shared,
)
from .shared_copy import SharedCopy
from .transaction import Transaction


class Overlay:
    """The design `overlay`."""

    name = "overlay"

    def __init__(self, kvm: Kvm, copy: SharedCopy, tally: Tally, *, freed: bool) -> None:
        self._kvm = kvm
        self._copy = copy
        self._tally = tally
        self._freed = freed

    def to_shared(self, start: int, end: int) -> int | None:
        pieces = [
            Piece(slot, low, high)
            for slot, first, last in visible_private(self._kvm, start, end)
            for low, high in not_shared(self._kvm, first, last)
        ]
        if not all_shared_or(pieces, self._kvm, start, end):
            return None
        with Transaction() as transaction:
            for _, low, high in pieces:
                self._copy.add(low, high)
                transaction.did(self._copy.remove, low, high)
            if self._freed:
                give_back(self._kvm, self._tally, pieces)
        return page_count(pieces)

    def to_private(self, start: int, end: int) -> int | None:
        under = self._copy.ranges(start, end)
        if not_private(self._kvm, start, end) or under != visible_shared(self._kvm, start, end):
            return None
        taken = self._copy.remove(start, end)
        self._copy.discard(taken)
        return sum(high - low for low, high in taken)
