"""The page map that a file publishes to its VM (uapi.page_map): its page table, in words that the VM reads.

Who changes the page table changes the map in the same step, with Service.lock held. The VM reads without a lock: so
each word is stored at once and is true by itself, and where an entry is replaced there is a hole in between, which is
asked for by message.
"""

import numpy as np
from numpy.typing import NDArray

from memfsd.common import trace
from memfsd.uapi.page_map import (
    CLOSED_FOR_GOOD,
    FIRST_WORD,
    FRAME_MASK,
    GATE,
    HAS_BLOCKS,
    ORDER_MASK,
    ORDER_SHIFT,
    ORDERS_DOWN,
    PRESENT,
    entry,
    gate,
)
from memfsd.uapi.units import ORDER_2M, Ino, Seq

_CHUNK = 1 << ORDER_2M
_RAMP = np.arange(_CHUNK, dtype=np.uint64)
_NOTHING = np.uint64(0)


class PageMap:
    """page_count: of the file when it was paired. Pages from `end` on are not shown, and asked for: as a map is filled
    bit by bit, no page may be shown before its turn, or an entry could come to lie below one that covers it already."""

    __slots__ = ("_array", "_words", "end", "ino", "page_count")

    def __init__(self, ino: Ino, words: NDArray[np.uint64]) -> None:
        """words: of the map, all zero, in memory that the VM reads."""
        self.ino = ino
        self._array = words
        self._words = words.data
        """One word at a time is faster by it."""
        self.page_count = self.end = len(words) - FIRST_WORD

    # -- the gate

    def open(self, seq: Seq) -> None:
        """Entries count for a VM that has seen the end of the invalidation with this number."""
        self._put(GATE, gate(seq, is_open=False))

    def close(self, seq: Seq) -> None:
        """An invalidation is open: before BEGIN is sent, so that what is read after it is asked for by message."""
        self._put(GATE, gate(seq, is_open=True))

    def close_for_good(self) -> None:
        """The VM has lost the file."""
        self._put(GATE, CLOSED_FOR_GOOD)

    # -- entries

    @trace.hot(
        trace.Side.STORE,
        before=(
            trace.Instrument.page_map_written,
            lambda to, page_map, pgoff, pfn, count: to.page_map_written(page_map.ino),
        ),
    )
    def show(self, pgoff: int, pfn: int, count: int) -> None:
        """Pages that were holes are in these frames."""
        if count == 1:
            if pgoff < self.end:
                self._words[FIRST_WORD + pgoff] = PRESENT | pfn
            return
        at, end, delta = pgoff, min(pgoff + count, self.end), pfn - pgoff
        while at < end:
            order = next((order for order in ORDERS_DOWN if not at & (1 << order) - 1 and at + (1 << order) <= end), 0)
            if order:
                self._words[HAS_BLOCKS] = 1
                self._words[FIRST_WORD + at] = entry(at + delta, order)
                at += 1 << order
            else:
                stop = min(end, (at | _CHUNK - 1) + 1)
                # As ufuncs store it: in whole words, which a copy of bytes need not do.
                np.add(_RAMP[: stop - at], np.uint64(entry(at + delta, 0)), out=self._part(at, stop))
                at = stop

    @trace.hot(
        trace.Side.STORE,
        before=(
            trace.Instrument.page_map_written,
            lambda to, page_map, pgoff, count: to.page_map_written(page_map.ino),
        ),
    )
    def hide(self, pgoff: int, count: int) -> None:
        """Pages that were shown are holes."""
        at, end = pgoff, min(pgoff + count, self.end)
        if at < end:
            first, last = self._cut(at, at, end), self._cut(end - 1, at, end)
            at, end = min(first[1], end), max(last[0], at)
        while at < end:
            order = self._words[FIRST_WORD + at] >> ORDER_SHIFT & ORDER_MASK
            if order:
                self._words[FIRST_WORD + at] = 0
                at += 1 << order
            else:
                stop = min(end, (at | _CHUNK - 1) + 1)
                part = self._part(at, stop)
                np.bitwise_and(part, _NOTHING, out=part)
                at = stop

    def lookup(self, pgoff: int) -> int | None:
        """The frame of a page; None at a hole."""
        for order in (0, *ORDERS_DOWN):
            head = pgoff >> order << order
            word = self._words[FIRST_WORD + head] if pgoff < self.end else 0
            if word and word >> ORDER_SHIFT & ORDER_MASK >= order:
                return (word & FRAME_MASK) + pgoff - head
        return None

    def _cut(self, page: int, start: int, end: int) -> tuple[int, int]:
        """A block that covers this page of [start, end), and others outside, shows those only from now on. The range
        that is no more shown by it, which is empty when there is no such block."""
        for order in ORDERS_DOWN:
            head = page >> order << order
            word = self._words[FIRST_WORD + head]
            if word >> ORDER_SHIFT & ORDER_MASK >= order:
                tail, pfn = head + (1 << order), word & FRAME_MASK
                if start <= head and tail <= end:
                    break
                self._words[FIRST_WORD + head] = 0
                if head < start:
                    self.show(head, pfn, start - head)
                if end < tail:
                    self.show(end, pfn + end - head, tail - end)
                return max(head, start), min(tail, end)
        return (end, start)

    def _part(self, start: int, end: int) -> NDArray[np.uint64]:
        return self._array[FIRST_WORD + start : FIRST_WORD + end]

    @trace.hot(
        trace.Side.STORE,
        before=(trace.Instrument.page_map_written, lambda to, page_map, index, word: to.page_map_written(page_map.ino)),
    )
    def _put(self, index: int, word: int) -> None:
        self._words[index] = word

    def drop(self) -> None:
        """The VM is gone: nobody changes the map any more."""
        self._array = np.zeros(0, np.uint64)
        self._words = self._array.data
