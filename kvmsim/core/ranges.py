"""A set of page numbers, kept as disjoint ranges."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable


class RangeSet:
    """Half-open ranges, merged where they touch. A step takes log(n) and what it joins or cuts."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def __len__(self) -> int:
        """Ranges."""
        return len(self._starts)

    def add(self, start: int, end: int) -> None:
        assert start < end, (start, end)
        first, last = bisect_left(self._ends, start), bisect_right(self._starts, end)
        if first < last:
            start, end = min(start, self._starts[first]), max(end, self._ends[last - 1])
        self._starts[first:last], self._ends[first:last] = [start], [end]

    def discard(self, start: int, end: int) -> None:
        first, last = bisect_right(self._ends, start), bisect_left(self._starts, end)
        if first >= last:
            return
        rest = [(low, high) for low, high in ((self._starts[first], start), (end, self._ends[last - 1])) if low < high]
        self._starts[first:last] = [low for low, _ in rest]
        self._ends[first:last] = [high for _, high in rest]

    def ranges(self, start: int, end: int) -> list[tuple[int, int]]:
        """What of [start, end) is in the set, in order."""
        first, last = bisect_right(self._ends, start), bisect_left(self._starts, end)
        return [
            (max(low, start), min(high, end))
            for low, high in zip(self._starts[first:last], self._ends[first:last], strict=True)
        ]


def gaps(ranges: Iterable[tuple[int, int]], start: int, end: int) -> list[tuple[int, int]]:
    """What ranges, which come in order of their starts, leave out of [start, end)."""
    found, at = [], start
    for low, high in ranges:
        if low > at:
            found.append((at, low))
        at = max(at, high)
    return [*found, (at, end)] if at < end else found
