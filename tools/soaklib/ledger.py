"""Memory that the host and one VMM share: when each page of the file was taken, and how the VMM is doing.

A taking is counted twice: in `begun` before the system call that takes, in `ended` after it. The takings of a page come
one after the other, so number n has surely not begun yet while begun < n, and is surely over once ended >= n. Each
word has one writer.
"""

import contextlib
import mmap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

COUNTERS = (
    "writes",
    "verified_pages",
    "taken_pages",
    "faults",
    "conversions",
    "refused",
    "pool_full",
    "memory_failures",
    "lost_pages",
    "programs",
    "programs_ok",
    "programs_taken_from",
)
"""What a VMM counts. taken_pages: found zero because the host took them; lost_pages: destroyed around a conversion."""
_STOP, _READY, _COUNTERS = 0, 1, 8
_HEADER_WORDS = 64


class Moments:
    """Takings of each page: how many have begun, and how many are over."""

    def __init__(self, begun: NDArray[np.uint32], ended: NDArray[np.uint32]) -> None:
        self.begun = begun
        self.ended = ended

    @classmethod
    def of_pages(cls, page_count: int) -> "Moments":
        return cls(np.zeros(page_count, np.uint32), np.zeros(page_count, np.uint32))

    @contextlib.contextmanager
    def taking(self, first: int, end: int) -> Iterator[None]:
        """The body takes pages [first, end). One that fails stays under way: nobody knows what it did."""
        self.begun[first:end] += 1
        yield
        self.ended[first:end] += 1


class Over:
    """Whether a taking of these pages was under way at some moment since this was made."""

    def __init__(self, moments: Moments, first: int, count: int) -> None:
        self._begun = moments.begun[first : first + count]
        self._ended = moments.ended[first : first + count].copy()

    def met_any(self) -> bool:
        return bool((self._begun > self._ended).any())


class Ledger:
    """Of one file and its VMM."""

    def __init__(self, path: Path, page_count: int, *, create: bool = False) -> None:
        size = _HEADER_WORDS * 8 + page_count * 8
        with path.open("w+b" if create else "r+b") as file:
            file.truncate(size)
            self._map = mmap.mmap(file.fileno(), size)
        self._words = np.frombuffer(self._map, np.uint64, _HEADER_WORDS)
        pages = np.frombuffer(self._map, np.uint32, offset=_HEADER_WORDS * 8)
        self.moments = Moments(pages[:page_count], pages[page_count:])

    # -- the host writes

    def tell_to_stop(self) -> None:
        self._words[_STOP] = 1

    # -- the VMM writes

    def tell_ready(self) -> None:
        self._words[_READY] = 1

    def count(self, values: dict[str, int]) -> None:
        for index, name in enumerate(COUNTERS, _COUNTERS):
            self._words[index] = values[name]

    # -- both read

    @property
    def must_stop(self) -> bool:
        return bool(self._words[_STOP])

    @property
    def is_ready(self) -> bool:
        return bool(self._words[_READY])

    def counters(self) -> dict[str, int]:
        return {name: int(self._words[index]) for index, name in enumerate(COUNTERS, _COUNTERS)}
