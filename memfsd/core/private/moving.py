"""Pages of a sealed file on their way to other frames: the store finds frames, KVM copies, and both change over."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from memfsd.common.intervals import IntervalSet, subtract
from memfsd.core.effects import Runs
from memfsd.core.memory.frames import FramePool
from memfsd.core.memory.large import whole_order
from memfsd.core.memory.nodes import Zones
from memfsd.core.memory.page_table import FilePages, Run
from memfsd.uapi.errors import Refused
from memfsd.uapi.frame_state import FrameState
from memfsd.uapi.limits import MAX_MOVE_PAGES
from memfsd.uapi.units import ORDER_2M, Pfn, Pgoff, PgoffRange

if TYPE_CHECKING:
    from .gmem_file import GmemFile

_MOVABLE = (FrameState.PRIVATE, FrameState.PENDING)


class PageMove(NamedTuple):
    """page_count pages from pgoff, contiguous in both places: as MOVE has them."""

    pgoff: Pgoff
    source: Pfn
    target: Pfn
    page_count: int


class MovingPages:
    """Of one file, for one step; what is on its way is `guest.moving`. The file's invalidate_lock is held."""

    __slots__ = ("_guest", "_pages", "_pool")

    def __init__(self, pool: FramePool, pages: FilePages, guest: GmemFile) -> None:
        self._pool, self._pages, self._guest = pool, pages, guest

    # -- before

    def choose(self, wanted: Iterable[Pgoff], order: int, *, split: bool) -> tuple[list[Run], dict[Pgoff, int]]:
        """What has to move for these pages of a file of this page size: whole frames, as runs of the page table. And
        why a page cannot: ENOENT it has no frame, EBUSY. split: pages of 1 GiB move in parts of 2 MiB."""
        chosen, refused = IntervalSet(), dict[Pgoff, int]()
        low, high, number = Pgoff(0), Pgoff(0), 0
        for pgoff in wanted:
            if not chosen.within(pgoff, pgoff + 1):
                if not low <= pgoff < high:
                    low, high = self._unit(pgoff, order, split)
                    number = self._obstacle(low, high)
                if number:
                    refused[pgoff] = number
                else:
                    chosen.add(low, high)
        spans = chosen.within(Pgoff(0), Pgoff(1 << 62))
        return [run for low, high in spans for run in self._pages.extents(low, high)], refused

    def _unit(self, pgoff: Pgoff, order: int, split: bool) -> PgoffRange:
        """The pages that move with this one: those of its frame, or of its part of that."""
        whole = whole_order(self._pages, pgoff, order)
        size = 1 << (min(whole, ORDER_2M) if split else whole)
        first = pgoff & -size
        return first, first + size

    def _obstacle(self, low: Pgoff, high: Pgoff) -> int:
        """0: they can move."""
        guest, run = self._guest, self._pages.run_at(low, high - low)
        if run is None:
            return errno.ENOENT
        if high - low > MAX_MOVE_PAGES:
            return errno.EBUSY
        tally = self._pool.tally(*run)
        if sum(tally[state] for state in _MOVABLE) != high - low:
            return errno.EBUSY
        if guest.active is None:
            return errno.EBUSY if guest.holds_memory else 0
        # What is not bound may hold data, and KVM copies only what it has a GFN for.
        bound_until = guest.bindings.bound_until(low)
        return 0 if bound_until is not None and bound_until >= high else errno.EBUSY

    def reserve(
        self, runs: list[Run], order: int, nodes: tuple[int, ...], *, one_by_one: bool = False
    ) -> tuple[list[PageMove], list[Run]]:
        """Frames on these nodes, MOVING from now on; and the runs that found none.

        one_by_one: where others are in use already, rather than in a row.
        """
        moves: list[PageMove] = []
        without: list[Run] = []
        for pgoff, source, count in runs:
            end = pgoff + count
            while pgoff < end:
                try:
                    target, taken = self._alloc(pgoff, 1 if one_by_one else end - pgoff, order, nodes)
                except Refused:
                    without.append((pgoff, source, end - pgoff))
                    break
                self._guest.moving.map_run(pgoff, target, taken)
                moves.append(PageMove(pgoff, source, target, taken))
                pgoff, source = pgoff + taken, source + taken
        return moves, without

    def _alloc(self, pgoff: Pgoff, count: int, order: int, nodes: tuple[int, ...]) -> tuple[Pfn, int]:
        found = min(whole_order(self._pages, pgoff, order), ORDER_2M)
        if found:
            ((target, taken),) = self._pool.alloc(1 << found, FrameState.MOVING, order=found, zones=Zones(nodes))
            return target, taken
        if order:  # after it a whole page may begin
            count = min(count, (1 << ORDER_2M) - pgoff % (1 << ORDER_2M))
        return self._pool.alloc_run(count, FrameState.MOVING, zones=Zones(nodes))

    # -- after

    def settle(self, start: int, end: int, kept: Iterable[tuple[int, int]]) -> Runs:
        """What was on its way within pages [start, end) has arrived, but for the pages that are kept where they were.
        The frames, CLOSING, that are left over."""
        kept = list(kept)
        leftover: Runs = []
        for pgoff, target, count in list(self._guest.moving.extents(start, end)):
            self._guest.moving.unmap(pgoff, pgoff + count)
            arrived = subtract(pgoff, pgoff + count, [(Pgoff(low), Pgoff(high)) for low, high in kept])
            for low, high in arrived:
                leftover += self._arrive(low, target + (low - pgoff), high - low)
            for low, high in subtract(pgoff, pgoff + count, arrived):
                leftover.append((target + (low - pgoff), high - low))
        for pfn, count in leftover:
            self._pool.set_state(pfn, count, FrameState.CLOSING)
        return leftover

    def _arrive(self, pgoff: Pgoff, target: Pfn, page_count: int) -> Runs:
        """The page table changes over. The frames that they were in."""
        before = self._pages.unmap(pgoff, pgoff + page_count)
        for first, pfn, count in before:
            to = target + (first - pgoff)
            for low, high, state in _states(self._pool, pfn, count):
                self._pool.set_state(to + low, high - low, state)
        self._pages.map_run(pgoff, target, page_count)
        return [(pfn, count) for _, pfn, count in before]

    def quarantine(self) -> None:
        """The VM may still copy into them."""
        for _, pfn, count in self._guest.moving.extents(0, 1 << 62):
            self._pool.set_state(pfn, count, FrameState.QUARANTINED)


def _states(pool: FramePool, pfn: Pfn, count: int) -> Iterator[tuple[int, int, FrameState]]:
    """Runs [low, high) of these frames, from the first, that are in one state."""
    states = pool.states(pfn, count)
    edges = [0, *((states[1:] != states[:-1]).nonzero()[0] + 1).tolist(), count]
    for low, high in pairwise(edges):
        yield low, high, FrameState(states[low])
