"""Disjoint ranges, each of one memslot, in the order of their starts."""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from typing import Generic, TypeVar

S = TypeVar("S")


class SegmentIndex(Generic[S]):
    """Half-open ranges of pages. Every step finds its place by bisection, whatever the number of ranges."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._by_start: dict[int, tuple[S, int, int]] = {}

    def __len__(self) -> int:
        return len(self._starts)

    def add(self, slot: S, start: int, end: int) -> None:
        """The range must be free: whoever adds has looked."""
        insort(self._starts, start)
        self._by_start[start] = (slot, start, end)

    def remove(self, start: int) -> None:
        del self._starts[bisect_left(self._starts, start)]
        del self._by_start[start]

    def find(self, page: int) -> tuple[S, int, int] | None:
        """The range that holds the page: (slot, start, end)."""
        at = bisect_right(self._starts, page)
        if at:
            segment = self._by_start[self._starts[at - 1]]
            if page < segment[2]:
                return segment
        return None

    def overlapping(self, start: int, end: int) -> Iterator[tuple[S, int, int]]:
        """Ranges with a page in [start, end), whole, in order."""
        at = max(bisect_right(self._starts, start) - 1, 0)
        for key in self._starts[at : bisect_left(self._starts, end, lo=at)]:
            segment = self._by_start[key]
            if segment[2] > start:
                yield segment

    def next_start(self, page: int) -> int | None:
        """Where the first range after the page begins."""
        at = bisect_right(self._starts, page)
        return self._starts[at] if at < len(self._starts) else None

    def previous_end(self, page: int) -> int:
        """Where the last range before the page ends, which no range holds; 0 when there is none."""
        at = bisect_left(self._starts, page)
        return self._by_start[self._starts[at - 1]][2] if at else 0
