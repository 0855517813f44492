"""Half-open intervals [start, end) of integers: pages, frames, addresses.

    IntervalMap   disjoint intervals, each with a value
    IntervalSet   a set of integers
    subtract      an interval less some others
    within        those of some intervals that meet another one

A step takes log(n) to find its place, and what it returns, joins or splits; n is the number of intervals.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import compress, count
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=int)
"""The integers of a question: its answer is in the same ones (GFNs, pages of a file)."""
V = TypeVar("V")

Interval = tuple[int, int]


class IntervalMap(Generic[V]):
    """Disjoint intervals in order, each with a value: (start, end, value).

    `put` overwrites, and joins adjacent intervals of equal values. `add` and `remove` keep each interval as it is
    given, for those whose identity matters.
    """

    __slots__ = ("_ends", "_starts", "_values")

    def __init__(self) -> None:
        self._starts: list[Any] = []
        self._ends: list[Any] = []
        self._values: list[V] = []

    def copy(self) -> "IntervalMap[V]":
        other: IntervalMap[V] = IntervalMap()
        other._starts, other._ends, other._values = self._starts[:], self._ends[:], self._values[:]
        return other

    def __len__(self) -> int:
        """Intervals."""
        return len(self._starts)

    def __iter__(self) -> Iterator[tuple[int, int, V]]:
        return iter(list(zip(self._starts, self._ends, self._values, strict=True)))

    def find(self, at: K) -> tuple[K, K, V] | None:
        """The interval that contains `at`."""
        index = bisect_right(self._starts, at) - 1
        if index >= 0 and at < self._ends[index]:
            return self._starts[index], self._ends[index], self._values[index]
        return None

    def first(self, start: K, end: K) -> tuple[K, K, V] | None:
        """The first interval that meets [start, end), whole."""
        first, last = self._meeting(start, end)
        return (self._starts[first], self._ends[first], self._values[first]) if first < last else None

    def overlapping(self, start: K, end: K) -> list[tuple[K, K, V]]:
        """Intervals that meet [start, end), whole."""
        first, last = self._meeting(start, end)
        return list(zip(self._starts[first:last], self._ends[first:last], self._values[first:last], strict=True))

    def within(self, start: K, end: K) -> list[tuple[K, K, V]]:
        """The parts of [start, end) that have a value."""
        return [(max(low, start), min(high, end), value) for low, high, value in self.overlapping(start, end)]

    def covers(self, start: K, end: K) -> bool:
        """All of [start, end) has a value."""
        first, last = self._meeting(start, end)
        if first == last or self._starts[first] > start or self._ends[last - 1] < end:
            return False
        return self._ends[first : last - 1] == self._starts[first + 1 : last]

    def reach(self, start: K, end: K, most: int) -> K:
        """Up to where of [start, end) there are so many intervals at most."""
        first, last = self._meeting(start, end)
        return min(end, self._ends[first + most - 1]) if last - first > most else end

    def first_other(self, start: K, end: K, value: V) -> tuple[K, K, V] | None:
        """The first interval that meets [start, end) and has another value."""
        first, last = self._meeting(start, end)
        values = self._values[first:last]
        if values.count(value) == len(values):
            return None
        index = first + next(compress(count(), (other != value for other in values)))
        return self._starts[index], self._ends[index], self._values[index]

    def next_start(self, at: K) -> K | None:
        """Where the first interval after `at` begins."""
        index = bisect_right(self._starts, at)
        return self._starts[index] if index < len(self._starts) else None

    def previous_end(self, at: K) -> K | None:
        """Where the last interval before `at` ends, which is in none."""
        index = bisect_left(self._starts, at)
        return self._ends[index - 1] if index else None

    def add(self, start: int, end: int, value: V) -> None:
        """Insert an interval that meets no other."""
        assert start < end, (start, end)
        first, last = self._meeting(start, end)
        assert first == last, (start, end, self._starts[first], self._ends[first])
        self._starts.insert(first, start)
        self._ends.insert(first, end)
        self._values.insert(first, value)

    def remove(self, start: K) -> tuple[K, K, V]:
        """Take out the interval that begins at start, which must exist."""
        index = bisect_left(self._starts, start)
        assert self._starts[index] == start, start
        return self._starts.pop(index), self._ends.pop(index), self._values.pop(index)

    def put(self, start: int, end: int, value: V) -> None:
        """All of [start, end) has this value from now on."""
        if start >= end:
            return
        self.drop(start, end)
        first = last = bisect_left(self._starts, start)
        if first and self._ends[first - 1] == start and self._values[first - 1] == value:
            first -= 1
            start = self._starts[first]
        if last < len(self._starts) and self._starts[last] == end and self._values[last] == value:
            end = self._ends[last]
            last += 1
        self._replace(first, last, [(start, end, value)])

    def cut(self, start: K, end: K) -> list[tuple[K, K, V]]:
        """Nothing in [start, end) has a value from now on; the parts that had one."""
        gone = self.within(start, end)
        self.drop(start, end)
        return gone

    def drop(self, start: K, end: K) -> None:
        """Nothing in [start, end) has a value from now on."""
        first, last = self._meeting(start, end)
        if first == last:
            return
        head = (self._starts[first], start, self._values[first])
        tail = (end, self._ends[last - 1], self._values[last - 1])
        self._replace(first, last, [part for part in (head, tail) if part[0] < part[1]])

    def clear(self) -> None:
        self._replace(0, len(self), [])

    def _meeting(self, start: int, end: int) -> tuple[int, int]:
        """Indices [first, last) of the intervals that meet [start, end)."""
        if start >= end:
            return 0, 0
        return bisect_right(self._ends, start), bisect_left(self._starts, end)

    def _replace(self, first: int, last: int, parts: list[tuple[int, int, V]]) -> None:
        self._starts[first:last] = [start for start, _, _ in parts]
        self._ends[first:last] = [end for _, end, _ in parts]
        self._values[first:last] = [value for _, _, value in parts]


class IntervalSet:
    """A set of integers, kept as disjoint intervals that never touch."""

    __slots__ = ("_map",)

    def __init__(self, intervals: Iterable[Interval] = ()) -> None:
        self._map: IntervalMap[None] = IntervalMap()
        for start, end in intervals:
            self.add(start, end)

    def copy(self) -> "IntervalSet":
        other = IntervalSet()
        other._map = self._map.copy()
        return other

    def __len__(self) -> int:
        """Intervals."""
        return len(self._map)

    def add(self, start: int, end: int) -> None:
        assert start < end, (start, end)
        self._map.put(start, end, None)

    def discard(self, start: int, end: int) -> None:
        self._map.drop(start, end)

    def first(self, start: K, end: K) -> tuple[K, K] | None:
        """The first run of [start, end) that is in the set."""
        found = self._map.first(start, end)
        return None if found is None else (max(found[0], start), min(found[1], end))

    def within(self, start: K, end: K) -> list[tuple[K, K]]:
        """What of [start, end) is in the set, in order."""
        return [(low, high) for low, high, _ in self._map.within(start, end)]

    def run_at(self, at: K) -> tuple[bool, K | None]:
        """Whether the set has it, and where that next changes; None: nowhere."""
        found = self._map.find(at)
        return (False, self._map.next_start(at)) if found is None else (True, found[1])

    def around(self, at: K, first: K, last: K) -> tuple[bool, K, K]:
        """(in the set, start, end) of the integers of [first, last) around `at` that are alike in that."""
        found = self._map.find(at)
        if found is not None:
            return True, max(found[0], first), min(found[1], last)
        low, high = self._map.previous_end(at), self._map.next_start(at)
        return False, first if low is None else max(low, first), last if high is None else min(high, last)

    def clear(self) -> None:
        self._map.clear()


def subtract(start: K, end: K, taken: Iterable[tuple[K, K]]) -> list[tuple[K, K]]:
    """[start, end) less the intervals that are taken, which come in any order and may overlap."""
    rest, at = [], start
    for low, high in sorted((low, high) for low, high in taken if low < high):
        if low >= end:
            break
        if low > at:
            rest.append((at, low))
        at = max(at, high)
    if at < end:
        rest.append((at, end))
    return rest


def within(intervals: Sequence[tuple[K, K]], start: K, end: K) -> Sequence[tuple[K, K]]:
    """Those that meet [start, end), whole. The intervals are disjoint, and in order."""
    first = bisect_right(intervals, start, key=_end_of)
    return intervals[first : bisect_left(intervals, end, first, key=_start_of)]


def _start_of(interval: tuple[K, K]) -> K:
    return interval[0]


def _end_of(interval: tuple[K, K]) -> K:
    return interval[1]
