"""Pages of a sealed file that have no frame and are no holes either: what Linux keeps in a PTE that is not present."""

import heapq
from dataclasses import dataclass
from enum import Enum

from memfsd.core.memory.swap_slots import SwapSlots


class Lost(Enum):
    """Why a page has no contents, and gets none before it is punched."""

    POISONED = "poisoned"
    """Its frame failed. Who touches the page gets EHWPOISON."""


@dataclass(frozen=True, slots=True)
class Swapped:
    """Its contents are in the swap file. Who touches the page gets it back."""

    slot: int


Entry = Lost | Swapped


class AbsentPages(dict[int, Entry]):
    """By page of the file. As a rule there are none, which a fault sees by one test of truth: hence a dict.

    The slots of its pages are in use as long as they are in it: `take` gives them back.
    """

    __slots__ = ("_slots", "swapped_count")

    def __init__(self, slots: SwapSlots | None = None) -> None:
        super().__init__()
        self._slots = slots or SwapSlots()
        self.swapped_count = 0

    def copy(self) -> "AbsentPages":
        """For who looks at it later: nothing may be taken from it."""
        copied = AbsentPages(self._slots)
        copied.update(self)
        copied.swapped_count = self.swapped_count
        return copied

    def put(self, pgoff: int, entry: Entry) -> None:
        """The page must have no frame, and no entry."""
        assert pgoff not in self, f"page {pgoff:#x} is absent already"
        self[pgoff] = entry
        self.swapped_count += isinstance(entry, Swapped)

    def within(self, start: int, end: int) -> list[int]:
        """The absent pages of [start, end), in order."""
        if end - start < len(self):
            return [pgoff for pgoff in range(start, end) if pgoff in self]
        return sorted(pgoff for pgoff in self if start <= pgoff < end)

    def first(self, start: int, end: int) -> int:
        """The first absent page of [start, end), or end."""
        if end - start < len(self):
            return next((pgoff for pgoff in range(start, end) if pgoff in self), end)
        return min((pgoff for pgoff in self if start <= pgoff < end), default=end)

    def swapped_from(self, start: int, most: int) -> list[int]:
        """Pages from start on that are swapped out, in order, at most so many; none: there are no more."""
        near = [pgoff for pgoff in range(start, start + most) if isinstance(self.get(pgoff), Swapped)]
        return near or heapq.nsmallest(
            most, (pgoff for pgoff, entry in self.items() if pgoff >= start and isinstance(entry, Swapped))
        )

    def swapped_run(self, pgoff: int, most: int) -> list[int]:
        """Slots of consecutive pages from pgoff on that are swapped out, at most so many."""
        slots: list[int] = []
        while len(slots) < most and isinstance(entry := self.get(pgoff + len(slots)), Swapped):
            slots.append(entry.slot)
        return slots

    def take(self, start: int, end: int) -> list[tuple[int, Entry]]:
        """The entries of [start, end), in order; these pages are holes from now on."""
        taken = [(pgoff, self.pop(pgoff)) for pgoff in self.within(start, end)]
        slots = [entry.slot for _, entry in taken if isinstance(entry, Swapped)]
        if slots:
            self._slots.free(slots)
            self.swapped_count -= len(slots)
        return taken
