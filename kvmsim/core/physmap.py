"""Host physical frame numbers to the memory behind them.

An EPT leaf holds 40 bits of frame number. Each memory that backs slots gets a range of them; a window's range
is as long as the store's pool, so that frame N of the pool is base + N. A frame number between two ranges stays
unused, so that no run of contiguous frames crosses from one memory to another.
"""

import errno
from bisect import bisect_right
from typing import Generic, TypeVar

from memfsd.uapi.errors import Refused

M = TypeVar("M")

_END = 1 << 40


class PhysMap(Generic[M]):
    """Disjoint ranges of frame numbers, each with its memory. Guarded by Mmu.lock."""

    def __init__(self) -> None:
        self._bases: list[int] = []
        self._ranges: dict[int, tuple[int, M]] = {}

    def add(self, memory: M, frame_count: int) -> int:
        """The base of a new range; ENOSPC when 2^40 frames do not hold it."""
        base = 0
        for at in self._bases:
            if at - base > frame_count:
                break
            base = self._ranges[at][0] + 1
        if base + frame_count > _END:
            raise Refused(errno.ENOSPC, f"{frame_count} frames do not fit in the host's physical addresses")
        self._bases.insert(bisect_right(self._bases, base), base)
        self._ranges[base] = (base + frame_count, memory)
        return base

    def remove(self, base: int) -> None:
        self._bases.remove(base)
        del self._ranges[base]

    def find(self, pfn: int) -> tuple[M, int]:
        """The memory and the frame's index in it; a frame that nothing backs must not be mapped."""
        base = self._bases[bisect_right(self._bases, pfn) - 1]
        end, memory = self._ranges[base]
        assert base <= pfn < end, f"frame {pfn:#x} has no memory"
        return memory, pfn - base
