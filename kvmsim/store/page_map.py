"""The page map of a paired file (uapi.page_map), as the VM reads it: frames without a message."""

import fcntl
import os

import numpy as np
from numpy.typing import NDArray

from memfsd.common.linux import map_shared
from memfsd.uapi.errors import NO_RESOURCES, PeerLost
from memfsd.uapi.limits import MAX_AHEAD_PAGES
from memfsd.uapi.page_map import FIRST_WORD, FRAME_MASK, GATE, HAS_BLOCKS, ORDER_MASK, ORDER_SHIFT, WORD_BYTES, entry
from memfsd.uapi.units import ORDER_1G, ORDER_2M

_RAMP = np.arange(MAX_AHEAD_PAGES, dtype=np.uint64)
_FIRST_OF_2M, _FIRST_OF_1G = -(1 << ORDER_2M), -(1 << ORDER_1G)
_BLOCK_2M, _BLOCK_1G = entry(0, ORDER_2M), entry(0, ORDER_1G)
"""No entry of a smaller order is as large a number."""
_NEEDED_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
"""Else a store could make the reader fault."""


class PageMap:
    """Of one pairing. No lock: each word is read at once, and a reader's staleness test decides what it is worth."""

    __slots__ = ("_array", "page_count", "words")

    def __init__(self, fd: int, page_count: int) -> None:
        """Takes the fd. PeerLost when it is not a map of so many pages that keeps its size; OSError when it cannot be
        mapped for want of something."""
        size = (FIRST_WORD + page_count) * WORD_BYTES
        try:
            seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
            if os.fstat(fd).st_size != size or seals & _NEEDED_SEALS != _NEEDED_SEALS:
                raise PeerLost("the store passed a page map of the wrong size, or one that could shrink")
            mapped = map_shared(fd, size, writable=False)
        except OSError as error:
            if error.errno in NO_RESOURCES:
                raise
            raise PeerLost(f"the store's page map cannot be mapped: {error}") from None
        finally:
            os.close(fd)
        self._array: NDArray[np.uint64] = np.frombuffer(memoryview(mapped), np.uint64)
        self.words = self._array.data
        """Loaded again for each word, since each use is a point of the race scheduler."""
        self.page_count = page_count

    def lookup(self, pgoff: int, max_pages: int, seq: int) -> tuple[int, int, int] | None:
        """(frame, pages, order): a run from pgoff on, and the order of the entry that it begins with. seq: of the last
        INVALIDATE_END. None: ask the store."""
        if pgoff >= self.page_count or self.words[GATE] != seq << 1:
            return None
        head = pgoff
        word = self.words[FIRST_WORD + pgoff]
        if not word:
            if not self.words[HAS_BLOCKS]:
                return None
            head = pgoff & _FIRST_OF_2M
            word = self.words[FIRST_WORD + head]
            if word < _BLOCK_2M:
                head = pgoff & _FIRST_OF_1G
                word = self.words[FIRST_WORD + head]
                if word < _BLOCK_1G:
                    return None
        order, pfn = word >> ORDER_SHIFT & ORDER_MASK, (word & FRAME_MASK) + pgoff - head
        if order:
            size = 1 << order
            count, following = head + size - pgoff, head + size
            while (
                count < max_pages and following < self.page_count and self.words[FIRST_WORD + following] == word + size
            ):
                word, following, count = word + size, following + size, count + size
        else:
            count = self._run(FIRST_WORD + pgoff, word, min(max_pages, self.page_count - pgoff))
        return pfn, count if count < max_pages else max_pages, order

    def _run(self, index: int, word: int, most: int) -> int:
        """Pages whose entries, of one page each, go on from this one."""
        if most == 1 or self.words[index + 1] != word + 1:
            return 1
        most = min(most, len(_RAMP))
        same = self._array[index : index + most] == np.uint64(word) + _RAMP[:most]
        return most if same.all() else max(int(same.argmin()), 1)
