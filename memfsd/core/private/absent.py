"""Pages of a sealed file that have no frame and are no holes either: what Linux keeps in a PTE that is not present."""

from collections.abc import Iterator
from enum import Enum
from heapq import merge
from itertools import islice

from memfsd.common.intervals import IntervalSet
from memfsd.core.memory.page_table import FilePages, TablesThen
from memfsd.core.memory.swap_slots import SwapSlots
from memfsd.uapi.units import PGOFF_END, Pfn

_STEP_PAGES = 1024
_STEP_NODES = 64
"""What one step takes: about a millisecond."""
_RUN_PAGES = 64
"""As one run, though the slots may be anywhere: so many at most are looked at for it."""


class Lost(Enum):
    """Why a page has no contents, and gets none before it is punched."""

    POISONED = "poisoned"
    """Its frame failed. Who touches the page gets EHWPOISON."""


class AbsentPages:
    """swapped: a page table whose frames are slots of the swap file; they are in use as long as they are in it.

    As a rule nothing is absent, which a fault sees by `count`.
    """

    __slots__ = ("_slots", "count", "poisoned", "swapped")

    def __init__(self, slots: SwapSlots | None = None) -> None:
        self._slots = slots or SwapSlots()
        self.count = 0
        self.swapped = FilePages()
        self.poisoned = IntervalSet()

    def __bool__(self) -> bool:
        return self.count > 0

    def copy(self, tables: TablesThen) -> "AbsentPages":
        """For who looks at it later: nothing may be taken from it."""
        copied = AbsentPages(self._slots)
        copied.swapped, copied.poisoned = tables.of(self.swapped), self.poisoned.copy()
        copied.count = self.count
        return copied

    @property
    def swapped_count(self) -> int:
        return self.swapped.page_count

    def put_swapped(self, pgoff: int, slot: int) -> None:
        """The page must have no frame, and not be absent."""
        assert not self.is_poisoned(pgoff), f"page {pgoff:#x} is absent already"
        self.swapped.map_run(pgoff, slot, 1)
        self.count += 1

    def put_poisoned(self, start: int, end: int) -> None:
        """Pages [start, end) must have no frame, and not be absent."""
        assert self.first(start, end) == end, f"pages of {start:#x}-{end:#x} are absent already"
        self.poisoned.add(start, end)
        self.count += end - start

    def is_poisoned(self, pgoff: int) -> bool:
        return self.poisoned.run_at(pgoff)[0]

    def slot(self, pgoff: int) -> Pfn | None:
        """Where in the swap file the page is, if it is there."""
        return self.swapped.lookup(pgoff)

    def first(self, start: int, end: int) -> int:
        """The first absent page of [start, end), or end."""
        found = self.swapped.first_mapped(start, end)
        first: int = end if found is None else found
        failed = self.poisoned.first(start, first)
        return first if failed is None else failed[0]

    def runs(self, start: int, end: int) -> Iterator[tuple[int, int, Lost | None]]:
        """Absent pages of [start, end) in order, as runs [low, high), and why they are: None, they are swapped out."""
        failed = ((low, high, Lost.POISONED) for low, high in self.poisoned.within(start, end))
        return merge(failed, self._swapped_runs(start, end), key=_first_page)

    def _swapped_runs(self, start: int, end: int) -> Iterator[tuple[int, int, None]]:
        low = high = start
        for pgoff, _, count in self.swapped.extents(start, end):
            if pgoff != high or high - low >= _RUN_PAGES:
                if low < high:
                    yield low, high, None
                low = pgoff
            high = pgoff + count
        if low < high:
            yield low, high, None

    def gaps(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """What of [start, end) is not absent, in order."""
        at = start
        for low, high, _ in self.runs(start, end) if self.count else ():
            if at < low:
                yield at, low
            at = high
        if at < end:
            yield at, end

    def count_some(self, start: int, end: int, max_nodes: int) -> tuple[int, int]:
        """Absent pages of [start, end), as far as so many nodes of the table reach; and how far that is."""
        swapped, reached = self.swapped.count_some(start, end, max_nodes)
        return swapped + sum(high - low for low, high in self.poisoned.within(start, reached)), reached

    def reach(self, start: int, end: int) -> int:
        """Up to where of [start, end) one `take` may go."""
        swapped, reached = self.swapped.part(start, end)
        room = _STEP_PAGES
        for pgoff, _, count in swapped:
            if count >= room:
                return pgoff + room
            room -= count
        return reached

    def swapped_from(self, start: int, most: int) -> list[int]:
        """Pages from start on that are swapped out, in order, at most so many; none: there are no more."""
        pages = (
            page for pgoff, _, count in self.swapped.extents(start, PGOFF_END) for page in range(pgoff, pgoff + count)
        )
        return list(islice(pages, most))

    def swapped_run(self, pgoff: int, most: int) -> list[int]:
        """Slots of consecutive pages from pgoff on that are swapped out, at most so many."""
        slots: list[int] = []
        while len(slots) < most and (slot := self.slot(pgoff + len(slots))) is not None:
            slots.append(slot)
        return slots

    def take(self, start: int, end: int) -> None:
        """These pages are holes from now on. One step, if [start, end) is within `reach`."""
        if not self.count:
            return
        for _, slot, count in self.swapped.unmap(start, end) if self.swapped.page_count else ():
            self._slots.free(range(slot, slot + count))
            self.count -= count
        for low, high in self.poisoned.within(start, end):
            self.poisoned.discard(low, high)
            self.count -= high - low

    def detach(self) -> FilePages:
        """Nothing is absent any more; the slots that are to be given back, by `give_back`."""
        self.poisoned.clear()
        self.count = 0
        return self.swapped.detach()


def give_back(slots: SwapSlots, table: FilePages) -> bool:
    """Some of the slots that a table has; False when there are no more."""
    at: int | None = 0
    room = _STEP_PAGES
    for _ in range(_STEP_NODES):
        if room <= 0 or (at := table.first_mapped(at or 0, PGOFF_END)) is None:
            break
        end = min((at | 511) + 1, at + room)
        for _, slot, count in table.unmap(at, end):
            slots.free(range(slot, slot + count))
            room -= count
        at = end
    return table.page_count > 0


def _first_page(run: tuple[int, int, Lost | None]) -> int:
    return run[0]
