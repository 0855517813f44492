"""Frames of a sealed file that were granted ahead of the guest's touch, until they are touched or given back."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from memfsd.common.intervals import within
from memfsd.core.memory.frames import FramePool
from memfsd.core.memory.page_table import FilePages, Run
from memfsd.core.memory.state_copy import runs_in
from memfsd.uapi.frame_state import FrameState
from memfsd.uapi.units import Pfn, Pgoff

if TYPE_CHECKING:
    from .gmem_file import GmemFile

Touched = Sequence[tuple[int, int]]
"""Frames [start, end) that hold memory in the file's window, in order."""
_STEP_TOUCHED = 64
"""Runs of them for one step: a millisecond or two, since what is between them may have to leave."""

_PRIVATE, _PENDING = FrameState.PRIVATE, FrameState.PENDING


class PendingFrames:
    """Of one file, for one step: its page table, the pool, and the count that the file keeps."""

    __slots__ = ("_guest", "_pages", "_pool")

    def __init__(self, pool: FramePool, pages: FilePages, guest: GmemFile) -> None:
        self._pool, self._pages, self._guest = pool, pages, guest

    def extents(self, start: int, end: int) -> list[Run]:
        """Mapped runs of pages [start, end) whose frames are all PENDING."""
        found: list[Run] = []
        for pgoff, pfn, count in self._pages.extents(start, end):
            for low, high in runs_in(self._pool.states(pfn, count), _PENDING):
                found.append((Pgoff(pgoff + low), Pfn(pfn + low), high - low))
        return found

    def settle_touched(self, touched: Touched, start: int, end: int) -> None:
        """What of pages [start, end) was touched is PRIVATE. A VM may write anywhere in its window, also where frames
        of other files are: only its own count."""
        if not touched:
            return
        for _, pfn, count in self.extents(start, end):
            for index in range(bisect_right(touched, int(pfn), key=_end_of), len(touched)):
                low, high = touched[index]
                if low >= pfn + count:
                    break
                first, last = max(low, pfn), min(high, pfn + count)
                self._settle(Pfn(first), last - first)

    def settle_kept(self, kept: list[tuple[int, int]], start: int, end: int) -> None:
        """What of pages [start, end) the VM keeps is PRIVATE."""
        for low, high in kept:
            if low < end and start < high:
                for _, pfn, count in list(self._pages.extents(max(low, start), min(high, end))):
                    self._settle(pfn, count)

    def settle_run(self, pfn: Pfn, count: int) -> None:
        """All of these frames are PRIVATE."""
        if self._guest.pending:
            self._settle(pfn, count)

    def _settle(self, pfn: Pfn, count: int) -> None:
        for low, high in runs_in(self._pool.states(pfn, count), _PENDING):
            self._pool.set_state(Pfn(pfn + low), high - low, _PRIVATE)
            self._guest.pending -= high - low

    def leave(self, pfn: Pfn, count: int) -> None:
        """These frames leave the file, whatever their state is."""
        if self._guest.pending:
            self._guest.pending -= self._pool.tally(pfn, count)[_PENDING]
            assert self._guest.pending >= 0


def touched_reach(extents: Iterable[Run], end: Pgoff, touched: Touched) -> Pgoff:
    """Up to where, at most end, one step should look at extents of which so much was touched."""
    room = _STEP_TOUCHED
    for pgoff, pfn, count in extents:
        first = bisect_right(touched, int(pfn), key=_end_of)
        if first + room < len(touched) and touched[first + room][0] < pfn + count:
            return Pgoff(pgoff + max(touched[first + room][0] - pfn, 0))
        room -= len(within(touched[first : first + room], pfn, pfn + count))
    return end


def _end_of(run: tuple[int, int]) -> int:
    return run[1]
