"""The thread's table: which request is a fault, which an exit."""

from kvmsim.kvm.alias import PRIVATE, SHARED, Alias
from kvmsim.kvm.exits import Exit, MemoryErrorExit
from kvmsim.kvm.slots.memslots import Memslots, Segment
from memfsd.uapi.units import PAGE_SHIFT, PAGE_SIZE, Gfn

from .rules import Source


class ThreadRules:
    """A private slot, and a shared one, may show the same GFN."""

    zapped: tuple[Alias, ...] = (PRIVATE,)
    maps_explicitly = True
    has_one_space = False
    asks_file = False

    def __init__(self, slots: tuple[Memslots, Memslots]) -> None:
        self._slots = slots
        self.overlay = False

    def source_of(self, gfn: Gfn, *, private: bool) -> Source:
        segment = self._slots[private].segment(gfn)
        if segment is not None and private and self.overlay:
            segment = self._not_overlaid(gfn, segment)
        if segment is not None:
            return segment
        if private or self._slots[PRIVATE].lookup(gfn) is not None:
            return MemoryErrorExit(gfn << PAGE_SHIFT, PAGE_SIZE, private)
        return None

    def covers(self, start: Gfn, end: Gfn, *, private: bool) -> bool:
        if self._slots[private].covers(start, end) is None:
            return False
        return not (private and self.overlay and self._slots[SHARED].overlaps(start, end))

    def prefaulted(self, gfn: Gfn, asked: Alias) -> Alias:
        return asked

    def reported(self, exit_: Exit) -> Exit:
        return exit_

    def _not_overlaid(self, gfn: Gfn, segment: Segment) -> Segment | None:
        """The part of a private segment around gfn that no ordinary slot lies over; None where one does."""
        slot, start, end = segment
        over = self._slots[SHARED]
        if over.segment(gfn) is not None:
            return None
        floor, limit = over.previous_end(gfn), over.next_start(gfn)
        return slot, start if floor is None else max(start, floor), end if limit is None else min(end, limit)
