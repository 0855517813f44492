"""Host physical frame numbers to the memory behind them.

An EPT leaf holds 40 bits of frame number. Each memory that backs slots gets a range of them; a window's range
is as long as the store's pool, so that frame N of the pool is base + N. A base is a multiple of 1 GiB, so that frames
are aligned in the host as they are in their memory, for large leaves. At least one frame number between two ranges
stays unused, so that no run of contiguous frames crosses from one memory to another.
"""

import errno
from bisect import bisect_left, bisect_right
from typing import Generic, TypeVar

from memfsd.uapi.errors import Refused
from memfsd.uapi.units import ORDER_1G, HostPfn

M = TypeVar("M")

_END = 1 << 40
_ALIGN = 1 << ORDER_1G


class PhysMap(Generic[M]):
    """Disjoint ranges of frame numbers, each with its memory. Guarded by Mmu.lock."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ranges: dict[int, tuple[int, int, HostPfn, M]] = {}
        """By start: end, frames taken, base, memory."""
        self._fresh = 0
        self._gaps: dict[int, list[int]] = {}
        """Starts of ranges that were removed, by frames taken."""
        self._shared: dict[int, tuple[HostPfn, int]] = {}
        """By id of a memory that is here whole: its base, and how many slots show it."""
        self.change_count = 0
        """How often a range has come or gone."""

    def add(self, memory: M, first: int, end: int) -> HostPfn:
        """The base of a new range: frame i of the memory, first <= i < end, is base + i.

        ENOSPC when 2^40 frames do not hold it. The base itself may be negative.
        """
        skipped = first & -_ALIGN
        taken = (end - skipped | _ALIGN - 1) + 1
        gaps = self._gaps.get(taken)
        if gaps:
            start = gaps.pop()
        elif self._fresh + taken <= _END:
            start = self._fresh
            self._fresh += taken
        else:
            start = self._first_fit(taken)
        self._starts.insert(bisect_right(self._starts, start), start)
        base = HostPfn(start - skipped)
        self._ranges[start] = (base + end, taken, base, memory)
        self.change_count += 1
        return base

    def share(self, memory: M, frame_count: int) -> HostPfn:
        """The base of all of a memory, which many slots may show: one range for all of them."""
        base, users = self._shared.get(id(memory)) or (self.add(memory, 0, frame_count), 0)
        self._shared[id(memory)] = base, users + 1
        return base

    def unshare(self, memory: M) -> None:
        """A slot shows it no more."""
        base, users = self._shared[id(memory)]
        if users > 1:
            self._shared[id(memory)] = base, users - 1
        else:
            del self._shared[id(memory)]
            self.remove(base)

    def _first_fit(self, taken: int) -> int:
        self._gaps.clear()
        start = 0
        for at in self._starts:
            if at - start >= taken:
                break
            start = at + self._ranges[at][1]
        if start + taken > _END:
            raise Refused(
                errno.ENOSPC,
                f"{taken} frames do not fit in the host's physical addresses: delete slots, or use smaller files",
            )
        self._fresh = max(self._fresh, start + taken)
        return start

    def remove(self, pfn: HostPfn) -> None:
        """Take out the range that holds this frame."""
        start = self._start_of(pfn)
        del self._starts[bisect_left(self._starts, start)]
        _, taken, _, _ = self._ranges.pop(start)
        self._gaps.setdefault(taken, []).append(start)
        self.change_count += 1

    def find(self, pfn: HostPfn) -> tuple[M, int]:
        """The memory and the frame's index in it; a frame that nothing backs must not be mapped."""
        _, _, base, memory = self._ranges[self._start_of(pfn)]
        return memory, pfn - base

    def range_of(self, pfn: HostPfn) -> tuple[HostPfn, HostPfn, HostPfn, M] | None:
        """(first frame, end, base, memory) of the range around a frame; None where there is none."""
        at = bisect_right(self._starts, pfn) - 1
        if at < 0:
            return None
        start = self._starts[at]
        end, _, base, memory = self._ranges[start]
        return (HostPfn(max(start, base)), HostPfn(end), base, memory) if pfn < end else None

    def _start_of(self, pfn: HostPfn) -> int:
        start = self._starts[bisect_right(self._starts, pfn) - 1]
        assert start <= pfn < self._ranges[start][0], f"frame {pfn:#x} has no memory"
        return start
