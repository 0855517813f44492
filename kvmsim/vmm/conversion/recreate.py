"""Delete the private slot and make three: what user space can do with KVM_SET_USER_MEMORY_REGION alone.

to shared     the slot goes; a private one below the range, an ordinary one over it, a private one above it
to private    the ordinary slot goes; a private one over the range

Deleting a private slot unmaps it, and unmapping destroys: the data *around* the converted range is lost too. That is
the thread's argument against it, and `Tally.lost_pages` counts it. The pieces are not joined again, since that would
delete and destroy once more; so a page that was converted once loses no neighbours the next time.
"""

from collections.abc import Iterator

from kvmsim.kvm.kvm import Kvm
from kvmsim.kvm.slots.memslots import Memslot
from memfsd.common.intervals import IntervalMap, subtract

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
from .slot_ids import SlotIds
from .transaction import Transaction


class Recreate:
    """The design `recreate`."""

    name = "recreate"

    def __init__(self, kvm: Kvm, copy: SharedCopy, tally: Tally) -> None:
        self._kvm = kvm
        self._copy = copy
        self._tally = tally
        self._ids = SlotIds(kvm.vm.slots[True], kvm.vm.max_slots)
        self._ram: IntervalMap[Memslot] = IntervalMap()
        """What was converted: GFNs, and the slot that they were in, which tells their file and place. Each is held, so
        that it can be private again when no other slot is of the file."""

    def to_shared(self, start: int, end: int) -> int | None:
        kvm, pieces = self._kvm, visible_private(self._kvm, start, end)
        if not all_shared_or(pieces, kvm, start, end):
            return None
        with kvm.pairings.holding([piece.slot for piece in pieces]):
            self._recreate(pieces, start, end)
            for slot, low, high in pieces:
                self._forget(low, high)  # known already when somebody else has made it private again
                self._remember(slot, low, high)
        return page_count(pieces)

    def _recreate(self, pieces: list[Piece], start: int, end: int) -> None:
        kvm = self._kvm
        slots = list({piece.slot.id: piece.slot for piece in pieces}.values())
        with Transaction() as transaction:
            for low, high in not_shared(kvm, start, end):
                self._copy.add(low, high)
                transaction.did(self._copy.remove, low, high)
            for slot in slots:
                kvm.blocking.detach(slot.id)
                transaction.did(kvm.blocking.attach, slot)
                for index, (low, high) in enumerate(_rest(slot, start, end)):
                    id_ = self._ids.take() if index else slot.id
                    kvm.blocking.create_private(id_, low, high, slot)
                    transaction.did(self._drop, id_)
            give_back(kvm, self._tally, pieces)
        for slot in slots:
            for low, high in _rest(slot, start, end):
                self._tally.lost_pages += kvm.blocking.destroy(low, high)

    def to_private(self, start: int, end: int) -> int | None:
        kvm, taken = self._kvm, list[Range]()
        missing = [
            Piece(slot, low, high)
            for first, last, slot in self._ram.within(start, end)
            for copy_start, copy_end in self._copy.ranges(first, last)
            for low, high in not_private(kvm, copy_start, copy_end)
        ]
        if not all_private_or(missing, kvm, start, end):
            return None
        with Transaction() as transaction:
            for slot, low, high in missing:
                id_ = self._ids.take()
                kvm.blocking.create_private(id_, low, high, slot)
                transaction.did(self._drop, id_)
                removed = self._copy.remove(low, high)
                transaction.did(self._copy.restore, removed)
                taken += removed
        self._copy.discard(taken)
        self._forget(start, end)
        return page_count(missing)

    def _forget(self, start: int, end: int) -> None:
        for first, last, slot in self._ram.overlapping(start, end):
            self._ram.remove(first)
            for low, high in subtract(first, last, [(start, end)]):
                self._remember(slot, low, high)
            self._kvm.pairings.unhold([slot])

    def _remember(self, slot: Memslot, low: int, high: int) -> None:
        self._kvm.pairings.hold([slot])
        self._ram.add(low, high, slot)

    def _drop(self, id_: int) -> None:
        self._kvm.blocking.detach(id_)
        self._ids.give_back(id_)


def _rest(slot: Memslot, start: int, end: int) -> Iterator[Range]:
    """What the slot shows outside [start, end)."""
    for low, high in slot.segments:
        for first, last in ((low, min(high, start)), (max(low, end), high)):
            if first < last:
                yield first, last
