"""Ranges of page numbers, each with a value."""

from bisect import bisect_left, bisect_right
from typing import Generic, TypeVar

V = TypeVar("V")


class Spans(Generic[V]):
    """Disjoint ranges [start, end), sorted. Ranges that meet and have one value are one."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._spans: list[tuple[int, int, V]] = []

    def __len__(self) -> int:
        return len(self._spans)

    def within(self, start: int, end: int) -> list[tuple[int, int, V]]:
        """The parts of [start, end) that have a value."""
        found = []
        for low, high, value in self._spans[max(bisect_right(self._starts, start) - 1, 0) :]:
            if low >= end:
                break
            if high > start:
                found.append((max(low, start), min(high, end), value))
        return found

    def cut(self, start: int, end: int) -> list[tuple[int, int, V]]:
        """Forget [start, end); what was there."""
        gone = self.within(start, end)
        if not gone:
            return gone
        first = bisect_right(self._starts, gone[0][0]) - 1
        last = bisect_left(self._starts, gone[-1][1])
        low, _, low_value = self._spans[first]
        _, high, high_value = self._spans[last - 1]
        remains = [(low, start, low_value)] if low < start else []
        remains += [(end, high, high_value)] if high > end else []
        self._spans[first:last] = remains
        self._starts[first:last] = [span[0] for span in remains]
        return gone

    def put(self, start: int, end: int, value: V) -> None:
        if start >= end:
            return
        self.cut(start, end)
        at = stop = bisect_left(self._starts, start)
        if at and self._spans[at - 1][1:] == (start, value):
            at -= 1
            start = self._spans[at][0]
        if stop < len(self._spans) and (self._spans[stop][0], self._spans[stop][2]) == (end, value):
            end = self._spans[stop][1]
            stop += 1
        self._spans[at:stop] = [(start, end, value)]
        self._starts[at:stop] = [start]

    def clear(self) -> None:
        self._starts.clear()
        self._spans.clear()


def without(start: int, end: int, kept: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """[start, end) less some ranges."""
    parts = [(start, end)]
    for low, high in kept:
        parts = [
            (first, last)
            for begin, stop in parts
            for first, last in ((begin, min(stop, low)), (max(begin, high), stop))
            if first < last
        ]
    return parts
