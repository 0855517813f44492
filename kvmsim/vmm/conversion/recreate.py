"""Delete the private slot and make three: what user space can do with KVM_SET_USER_MEMORY_REGION alone.

to shared     the slot goes; a private one below the range, an ordinary one over it, a private one above it
to private    the ordinary slot goes; a private one over the range

Deleting a private slot unmaps it, and unmapping destroys: the data *around* the converted range is lost too. That is
the thread's argument against it, and `Tally.lost_pages` counts it. The pieces are not joined again, since that would
delete and destroy once more; so a page that was converted once loses no neighbours the next time.
"""

from kvmsim.vmm.guest_memory import GuestMemory
from kvmsim.vmm.ram import Piece, PrivatePiece, PrivateRegion
from memfsd.common.intervals import IntervalMap, subtract
from memfsd.uapi.units import Gfn, GfnRange

from .design import Tally, all_private_or, all_shared_or, give_back, page_count
from .shared_copy import SharedCopy
from .slot_ids import SlotIds
from .transaction import Transaction


class Recreate:
    """The design `recreate`."""

    name = "recreate"

    def __init__(self, memory: GuestMemory, copy: SharedCopy, tally: Tally) -> None:
        self._memory = memory
        self._copy = copy
        self._tally = tally
        self._ids = SlotIds("private", memory.ram.private, memory.max_slots)
        self._converted: IntervalMap[PrivateRegion] = IntervalMap()
        """GFNs, and the region that they were in, for their file and place. Each holds the file's pairing, so that it
        can be private again when no other slot is of the file."""

    def to_shared(self, start: Gfn, end: Gfn) -> int | None:
        memory = self._memory
        pieces = memory.ram.private.visible(start, end)
        if not all_shared_or(pieces, memory.ram, start, end):
            return None
        with memory.holding(pieces):
            self._recreate(pieces, start, end)
            for region, low, high in pieces:
                self._forget(low, high)  # known already when somebody else has made it private again
                self._remember(region, low, high)
        return page_count(pieces)

    def _recreate(self, pieces: list[PrivatePiece], start: Gfn, end: Gfn) -> None:
        memory, ram = self._memory, self._memory.ram
        regions = list({piece.region.id: piece.region for piece in pieces}.values())
        rest: list[GfnRange] = []
        with Transaction() as transaction:
            for low, high in ram.shared.missing(start, end):
                self._copy.add(low, high)
                transaction.did(self._copy.remove, low, high)
            for region in regions:
                segments = ram.private.segments(region)
                memory.detach(region.id)
                transaction.did(memory.attach, region, segments)
                around = [part for segment in segments for part in subtract(*segment, [(start, end)])]
                for index, (low, high) in enumerate(around):
                    id_ = self._ids.take() if index else region.id
                    memory.create_private(id_, Piece(region, low, high))
                    transaction.did(self._drop, id_)
                rest += around
            give_back(memory, self._tally, pieces)
        for low, high in rest:
            self._tally.lost_pages += memory.destroy(low, high)

    def to_private(self, start: Gfn, end: Gfn) -> int | None:
        memory, taken = self._memory, list[GfnRange]()
        missing = [
            Piece(region, low, high)
            for first, last, region in self._converted.within(start, end)
            for copy_start, copy_end in self._copy.ranges(first, last)
            for low, high in memory.ram.private.missing(copy_start, copy_end)
        ]
        if not all_private_or(missing, memory.ram, start, end):
            return None
        with Transaction() as transaction:
            for piece in missing:
                id_ = self._ids.take()
                memory.create_private(id_, piece)
                transaction.did(self._drop, id_)
                removed = self._copy.remove(piece.start, piece.end)
                transaction.did(self._copy.restore, removed)
                taken += removed
        self._copy.discard(taken)
        self._forget(start, end)
        return page_count(missing)

    def _forget(self, start: Gfn, end: Gfn) -> None:
        for first, last, region in self._converted.overlapping(start, end):
            self._converted.remove(first)
            for low, high in subtract(first, last, [(start, end)]):
                self._remember(region, low, high)
            self._memory.unhold([region.source])

    def _remember(self, region: PrivateRegion, low: int, high: int) -> None:
        self._memory.hold([region.source])
        self._converted.add(low, high, region)

    def _drop(self, id_: int) -> None:
        self._memory.detach(id_)
        self._ids.give_back(id_)
