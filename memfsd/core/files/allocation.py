"""The holes of a file, filled in steps of bounded length: first the frames for all of them, then the page table.

With all frames in hand nothing can fail for want of room, so a full pool changes nothing in the file. Between steps
others may fill holes of the range, punch new ones, and seal or shrink the file.
"""

import errno

from memfsd.common.intervals import subtract
from memfsd.core.memory.frames import FramePool
from memfsd.core.memory.large import place_of
from memfsd.core.memory.page_table import FilePages
from memfsd.core.private.merging import merge
from memfsd.uapi.errors import Refused
from memfsd.uapi.frame_state import FrameState
from memfsd.uapi.seals import Seal
from memfsd.uapi.units import ORDER_1G, PAGE_SHIFT, Pfn

from .inodes import Regular

_STEP_RUNS = 32
"""Runs of frames taken from the pool, or mapped: a millisecond at most."""
_GIG = 1 << ORDER_1G
_STEP_PAGES = 16 * _GIG
_STEP_PAGES_OF_A_GIG = _GIG // 4
"""Mapped in a step, as whole gigs of the file and within one: some nodes of a page table, up to 128."""
_STEP_NODES = 256
"""Of a page table, counted in a step."""


class Allocation:
    """For pages [start, end) of a file. `supply` has the frames that the file lacks still, at pages of no meaning."""

    def __init__(
        self, pool: FramePool, file: Regular, start: int, end: int, state: FrameState, size: int | None
    ) -> None:
        self.file = file
        self.supply = FilePages()
        self._pool, self._state, self._size = pool, state, size
        self._at, self._end = start, end
        self._is_sealed = file.guest is not None
        self._counted = start
        """Up to where it is known how many pages lack a frame."""
        self._wanted = 0
        """Frames that are still to be taken for these."""
        holes, _ = file.pages.some_holes(start, end, 1)
        self._stocked = self._used = holes[0][0] % _GIG if holes else 0
        """Of `supply`: pages [used, stocked). In one hole its gigs end where those of the file do, and none is broken
        up."""

    def step(self) -> bool:
        """True when it is done. ENOSPC; EPERM when a seal came in between."""
        if self._counted < self._end:
            self._count_missing()
            if self._counted < self._end:
                return False
        room = self._stock(_STEP_RUNS)
        return room > 0 and self._map(room)

    def give_up(self) -> None:
        """After a first step that was refused: nobody has had these frames, so they need no scrubbing."""
        while runs := self.supply.take():
            for _, pfn, count in runs:
                self._pool.set_state(pfn, count, FrameState.CLOSING)
                self._pool.free(pfn, count)

    def _stock(self, room: int) -> int:
        """How much of the step's room is left; 0 also while frames are wanted."""
        if not self._wanted:
            return room
        file = self.file
        runs = self._pool.alloc(self._wanted, self._state, order=file.order, max_runs=room)
        for pfn, count in runs:
            self.supply.map_run(self._stocked, pfn, count)
            self._stocked += count
            self._wanted -= count
        return 0 if self._wanted else room - len(runs)

    def _map(self, room: int) -> bool:
        self._check_seal()
        pages, used, left = self.file.pages, self._used, _STEP_PAGES
        holes, reached = self._some_holes(self._at, room)
        for low, high in holes:
            self._at = int(low)
            while self._at < high and room and (run := self._run_at(self._used, min(high - self._at, left))):
                pages.map_run(self._at, *run)
                self._at += run[1]
                self._used += run[1]
                left = self._left(left, run[1])
                room = room - 1 if left else 0
            if self._at < high:
                break
        else:
            self._at = reached
        self.supply.unmap(used, self._used)
        if self._at < reached and self._used == self._stocked:  # there are new holes
            self._counted = self._at
        return self._at >= self._end and self._set_size()

    def _run_at(self, at: int, most: int) -> tuple[Pfn, int] | None:
        """From that page of `supply` on, for whole gigs of the file or for a part of one. None: it has none there."""
        within = self._at % _GIG
        run = self.supply.run_at(at, min(most, _GIG - within) if within else most)
        if run is None:
            return None
        pfn, count = run
        return pfn, count & -_GIG or min(count, _STEP_PAGES_OF_A_GIG)

    def _left(self, left: int, mapped: int) -> int:
        """Pages that a step has left once these are mapped, up to `_at`: whole gigs begin a step."""
        if mapped >= _GIG:
            return left - mapped
        return max(min(left, _STEP_PAGES_OF_A_GIG) - mapped, 0) if self._at % _GIG else 0

    def _count_missing(self) -> None:
        """Some more of them. Where others fill holes meanwhile, or punch new ones, it turns out later."""
        start, reached = self._counted, self._end
        absent = None if self.file.guest is None else self.file.guest.absent
        if absent:
            _, reached = absent.count_some(start, reached, _STEP_NODES)
        mapped, reached = self.file.pages.count_some(start, reached, _STEP_NODES)
        lost = absent.count_some(start, reached, _STEP_NODES)[0] if absent else len(self._failed(start, reached))
        self._wanted += reached - start - mapped - lost
        self._counted = reached

    def _failed(self, start: int, end: int) -> list[int]:
        """Pages of an ordinary file that have no frame and get none."""
        return [pgoff for pgoff in self.file.failed if start <= pgoff < end]

    def _some_holes(self, start: int, most: int) -> tuple[list[tuple[int, int]], int]:
        """Of the pages that are still to be filled, from start on: what has no frame, and may get one, as far as one
        step should look; and how far that is."""
        absent = None if self.file.guest is None else self.file.guest.absent
        end = absent.reach(start, self._end) if absent else self._end
        holes, reached = self.file.pages.some_holes(start, end, most)
        if absent:
            return [gap for hole in holes for gap in absent.gaps(*hole)], reached
        if failed := [(pgoff, pgoff + 1) for pgoff in self._failed(start, reached)]:
            return [gap for low, high in holes for gap in subtract(int(low), int(high), failed)], reached
        return list(holes), reached

    def _check_seal(self) -> None:
        file = self.file
        if (file.guest is not None) != self._is_sealed:
            raise Refused(errno.EPERM, f"inode {file.ino} was sealed for a guest while it was being filled: try again")
        if self._is_sealed:
            self._end = min(self._end, file.size >> PAGE_SHIFT)

    def _set_size(self) -> bool:
        """True: it is done."""
        file = self.file
        if self._size is not None and self._size > file.size:
            if Seal.GROW in file.seals:
                raise Refused(errno.EPERM, f"inode {file.ino} was sealed against growing while it was being filled")
            file.size = self._size
        return True


class PlacedAllocation(Allocation):
    """Where it matters which frame a page gets, for its policy, or since a part of its large page was punched: `supply`
    has each frame at the page that it is for."""

    def _stock(self, room: int) -> int:
        while room and self._wanted:
            holes, reached = self._some_holes(max(self._at, self._stocked), 1)
            gap = next((gap for hole in holes for gap in self.supply.holes(*hole)), None)
            if gap is None:
                self._stocked = reached
                if reached < self._end:
                    return 0
                self._wanted = 0
                break
            at, end = int(gap[0]), gap[1]
            for pfn, found in self._alloc(at, end, room):
                self.supply.map_run(at, pfn, found)
                at += found
                room -= 1
            self._stocked = at
        return room

    def _alloc(self, at: int, end: int, max_runs: int) -> list[tuple[Pfn, int]]:
        """Frames for the pages from `at` on, all of which lack one, at most to the end."""
        file, unit = self.file, 1 << self.file.order
        if at & unit - 1 or end - at < unit:  # a hole of a split page
            zones, count = file.zones_at(at, min(end, (at | unit - 1) + 1) - at)
            return [self._pool.alloc_run(count, self._state, zones=zones, after=place_of(file.pages, at, file.order))]
        zones, count = file.zones_at(at, end - at)
        count = max(count & -unit, unit)
        return self._pool.alloc(count, self._state, order=file.order, zones=zones, max_runs=max_runs)

    def _map(self, room: int) -> bool:
        self._check_seal()
        pages, left = self.file.pages, _STEP_PAGES
        while room and self._at < self._end:
            holes, reached = self._some_holes(self._at, 1)
            if not holes:
                self._at = reached
                return reached >= self._end and self._set_size()
            low, high = holes[0]
            self._at = int(low)
            run = self._run_at(low, min(high - low, left))
            if run is None:  # it was punched since
                self._stocked, self._wanted = self._at, high - low
                return False
            pages.map_run(low, *run)
            self.supply.unmap(low, low + run[1])
            self._at += run[1]
            left = self._left(left, run[1])
            room = room - 1 if left else 0
            if self.file.guest is not None and run[1] < 1 << self.file.order:
                merge(self._pool, pages, self.file.guest, low, self.file.order)
        return self._at >= self._end and self._set_size()
