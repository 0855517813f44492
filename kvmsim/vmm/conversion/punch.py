"""A hole in the private slot: the ioctl that the thread proposes.

to shared     an ordinary slot, then the hole, then the hole's frames back to the store
to private    the hole filled, the ordinary slot cut

The slot keeps its id, its size and the place of every page in its file; data around the hole survives (R5). A page
is never held twice.
"""

from kvmsim.kvm.kvm import Kvm
from kvmsim.kvm.slots.memslots import Memslot
from memfsd.common.intervals import subtract

from .design import (
    Piece,
    Range,
    Tally,
    all_private_or,
    all_shared_or,
    give_back,
    not_private,
    not_shared,
    page_count,
    visible_private,
)
from .shared_copy import SharedCopy
from .transaction import Transaction


class Punch:
    """The design `punch`."""

    name = "punch"

    def __init__(self, kvm: Kvm, copy: SharedCopy, tally: Tally) -> None:
        self._kvm = kvm
        self._copy = copy
        self._tally = tally

    def to_shared(self, start: int, end: int) -> int | None:
        kvm, pieces = self._kvm, visible_private(self._kvm, start, end)
        if not all_shared_or(pieces, kvm, start, end):
            return None
        with Transaction() as transaction:
            for low, high in not_shared(kvm, start, end):
                self._copy.add(low, high)
                transaction.did(self._copy.remove, low, high)
            for slot, low, high in pieces:
                kvm.blocking.hide(slot.id, low, high)
                transaction.did(kvm.slots.fill_slot, slot.id, low, high)
            give_back(kvm, self._tally, pieces)
        return page_count(pieces)

    def to_private(self, start: int, end: int) -> int | None:
        kvm = self._kvm
        holes = [
            Piece(slot, low, high)
            for slot in kvm.vm.slots[True]
            for first, last in _holes(slot, start, end)
            for low, high in not_private(kvm, first, last)
        ]
        if not all_private_or(holes, kvm, start, end):
            return None
        taken: list[Range] = []
        with Transaction() as transaction:
            for slot, low, high in holes:
                kvm.slots.fill_slot(slot.id, low, high)
                transaction.did(kvm.blocking.hide, slot.id, low, high)
                removed = self._copy.remove(low, high)
                transaction.did(self._copy.restore, removed)
                taken += removed
        self._copy.discard(taken)
        return page_count(holes)


def _holes(slot: Memslot, start: int, end: int) -> list[Range]:
    """What a punched slot does not show of [start, end)."""
    low, high = max(slot.gfn, start), min(slot.end, end)
    return subtract(low, high, slot.segments_in(low, high))
