"""The dirty log of one memslot: which of its pages were written since it was last asked."""

import numpy as np

PageRange = tuple[int, int]


class DirtyLog:
    """KVM's dirty_bitmap, a bit a page. Pages are counted from the slot's first one. Guarded by Mmu.lock."""

    def __init__(self, page_count: int) -> None:
        self._page_count = page_count
        self._bits = np.zeros(-(-page_count // 8), dtype=np.uint8)

    def mark(self, start: int, end: int) -> None:
        """Pages [start, end) were written."""
        assert 0 <= start < end <= self._page_count, (start, end)
        if end - start == 1:
            self._bits[start >> 3] |= 1 << (start & 7)
            return
        first, last = start >> 3, end - 1 >> 3
        bits = np.unpackbits(self._bits[first : last + 1], bitorder="little")
        bits[start - first * 8 : end - first * 8] = 1
        self._bits[first : last + 1] = np.packbits(bits, bitorder="little")

    def take(self) -> list[PageRange]:
        """Ranges of pages that were written; the log is empty then."""
        if not self._bits.any():
            return []
        # Only the part that has bits is looked at page by page.
        used = np.flatnonzero(self._bits)
        first = int(used[0])
        bits = np.unpackbits(self._bits[first : int(used[-1]) + 1], bitorder="little")
        edges = np.flatnonzero(np.diff(bits, prepend=0, append=0)) + first * 8
        self._bits.fill(0)
        return [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]
