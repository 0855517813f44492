"""Data of files that are not sealed for a guest: bytes to pool offsets, as tmpfs would keep them.

The bytes live in one memfd (the pool of ordinary files, frame N at N * 4096). This module only says where;
the adapter reads and writes there. A fresh frame is a hole in that memfd and so reads as zeros.
"""

import errno
from collections.abc import Sequence
from typing import Protocol

from memfsd.core.effects import Discard, Effect, Runs, Scrub, ZeroBytes
from memfsd.core.memory.frames import FramePool
from memfsd.core.memory.page_table import Run
from memfsd.uapi.errors import Refused
from memfsd.uapi.frame_state import FrameState
from memfsd.uapi.limits import MAX_FILE_BYTES
from memfsd.uapi.names import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE
from memfsd.uapi.seals import Seal
from memfsd.uapi.units import PAGE_SHIFT, PAGE_SIZE, PGOFF_END, Pfn, Pgoff

from .inodes import Regular

Plan = list[tuple[int, int]]
"""(offset in the pool's memfd, or -1 for a hole; bytes), in file order."""


class Contents(Protocol):
    """Which frames of ordinary files hold bytes that somebody wrote; frames from pfn on, as a distance from it."""

    def first_written(self, pfn: Pfn, count: int) -> int | None: ...

    def first_unwritten(self, pfn: Pfn, count: int) -> int:
        """count if all are written."""


def _page_after(offset: int) -> int:
    return (offset + PAGE_SIZE - 1) >> PAGE_SHIFT


class OrdinaryData:
    """The data of all files that are not sealed, in frames of the pool."""

    def __init__(self, pool: FramePool) -> None:
        self._pool = pool
        self.discards: list[Discard] = []
        """Pages that no file has any more, and that are not free yet."""

    def read(self, file: Regular, offset: int, size: int) -> Plan:
        """Where the bytes [offset, offset + size) are, ending at end of file."""
        return self._locate(file, offset, min(size, max(file.size - offset, 0)))

    def write(self, file: Regular, offset: int, size: int, *, stored: bool = False) -> Plan:
        """Where to write; short when the pool is full after some pages, ENOSPC when it is full at once."""
        refusing = Seal.WRITE | Seal.GUEST if stored else Seal.WRITE | Seal.FUTURE_WRITE | Seal.GUEST
        if file.seals and file.seals & refusing:
            raise Refused(errno.EPERM, f"inode {file.ino} is sealed against writing")
        end = offset + size
        if end > MAX_FILE_BYTES:
            raise Refused(errno.EFBIG, f"a file ends at {MAX_FILE_BYTES}")
        if file.seals and end > file.size and file.seals & Seal.GROW:
            # tmpfs looks page by page: the whole pages before the end still take their bytes.
            end = file.size & -PAGE_SIZE
            if end <= offset:
                raise Refused(errno.EPERM, f"inode {file.ino} is sealed against growing")
            size = end - offset
        if size == 0:
            return []
        at = self.place(file, offset, size)
        if at is not None:
            return [(at, size)]
        end = min(end, self._fill_holes(file, offset >> PAGE_SHIFT, _page_after(end)) << PAGE_SHIFT)
        if end <= offset:
            raise Refused(errno.ENOSPC, "the pool has no free frame")
        file.size = max(file.size, end)
        return self._locate(file, offset, end - offset)

    def place(self, file: Regular, offset: int, size: int) -> int | None:
        """Where to write all of it, for files without seals. None, and nothing written: not in one run, or no room."""
        end = offset + size
        first = offset >> PAGE_SHIFT
        pages = ((end + PAGE_SIZE - 1) >> PAGE_SHIFT) - first
        if size <= 0 or end > MAX_FILE_BYTES:
            return None
        run = file.pages.run_at(first, pages)
        if run is None:
            if not self._pool.free_count:
                return None
            run = self._fill_hole(file, first, pages)
        if run[1] != pages:
            return None
        if end > file.size:
            file.size = end
        return (run[0] << PAGE_SHIFT) + (offset & (PAGE_SIZE - 1))

    def resize(self, file: Regular, size: int) -> list[Effect]:
        """truncate(2): a cut page keeps zeros behind the cut; what was allocated past the end goes, as on tmpfs."""
        if size > MAX_FILE_BYTES:
            raise Refused(errno.EFBIG, f"a file ends at {MAX_FILE_BYTES}")
        if size < file.size and file.seals & Seal.SHRINK:
            raise Refused(errno.EPERM, f"inode {file.ino} is sealed against shrinking")
        if size > file.size and file.seals & Seal.GROW:
            raise Refused(errno.EPERM, f"inode {file.ino} is sealed against growing")
        effects: list[Effect] = []
        if size <= file.size:
            effects += self._zero(file, size, min(file.size, _page_after(size) << PAGE_SHIFT))
            effects += self._drop(file, _page_after(size), PGOFF_END)
        file.size = size
        return effects

    def fallocate(self, file: Regular, mode: int, offset: int, length: int) -> list[Effect]:
        """Allocate, allocate with KEEP_SIZE, or PUNCH_HOLE with KEEP_SIZE; as tmpfs, nothing else."""
        end = offset + length
        if offset < 0 or length <= 0:
            raise Refused(errno.EINVAL, "fallocate needs an offset of 0 or more and a length above 0")
        if end > MAX_FILE_BYTES:
            raise Refused(errno.EFBIG, f"a file ends at {MAX_FILE_BYTES}")
        if mode == FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE:
            if file.seals & (Seal.WRITE | Seal.FUTURE_WRITE):
                raise Refused(errno.EPERM, f"inode {file.ino} is sealed against writing")
            return self._punch(file, offset, end)
        if mode & ~FALLOC_FL_KEEP_SIZE:
            raise Refused(errno.EOPNOTSUPP, f"fallocate mode {mode:#x} is not supported")
        grows = end > file.size and not mode & FALLOC_FL_KEEP_SIZE
        if end > file.size and file.seals & Seal.GROW:
            raise Refused(errno.EPERM, f"inode {file.ino} is sealed against growing")
        self.allocate(file, offset >> PAGE_SHIFT, _page_after(end), FrameState.SHARED)
        if grows:
            file.size = end
        return []

    def allocate(self, file: Regular, start: int, end: int, state: FrameState) -> None:
        """Fill every hole of pages [start, end), all or nothing: ENOSPC changes nothing."""
        holes = list(file.pages.holes(start, end))
        runs: Runs = []
        wanted = sum(high - low for low, high in holes)
        if wanted == 0:
            return
        runs = self._pool.alloc(wanted, state, order=file.order, node=file.node)
        supply = iter(runs)
        pfn, count = next(supply)
        for low, high in holes:
            at = int(low)
            while at < high:
                if count == 0:
                    pfn, count = next(supply)
                take = min(count, high - at)
                file.pages.map_run(Pgoff(at), pfn, take)
                pfn, count, at = Pfn(pfn + take), count - take, at + take

    def next_written(self, file: Regular, page: Pgoff, contents: Contents) -> Pgoff | None:
        """The first page from this one on that was written."""
        for pgoff, pfn, count in file.pages.extents(page, _page_after(file.size)):
            written = contents.first_written(pfn, count)
            if written is not None:
                return Pgoff(pgoff + written)
        return None

    def next_unwritten(self, file: Regular, page: Pgoff, contents: Contents) -> Pgoff:
        """The first page from this one on that was not; it may lie past the end of the file."""
        at = page
        for pgoff, pfn, count in file.pages.extents(page, _page_after(file.size)):
            if at < pgoff:
                break
            written = contents.first_unwritten(pfn, count)
            at = Pgoff(pgoff + written)
            if written < count:
                break
        return at

    def drop_all(self, file: Regular) -> list[Effect]:
        """The last name and handle are gone: give every frame back."""
        file.size = 0
        return list(self._drop(file, 0, PGOFF_END))

    def _locate(self, file: Regular, offset: int, size: int) -> Plan:
        if size <= 0:
            return []
        first, end = offset >> PAGE_SHIFT, offset + size
        pages = _page_after(end) - first
        run = file.pages.run_at(Pgoff(first), pages)
        if run is not None and run[1] == pages:
            return [((run[0] << PAGE_SHIFT) + (offset & (PAGE_SIZE - 1)), size)]
        plan: Plan = []
        at = offset
        for pgoff, pfn, count in file.pages.extents(first, first + pages):
            start = max(pgoff << PAGE_SHIFT, offset)
            if at < start:
                plan.append((-1, start - at))
            stop = min((pgoff + count) << PAGE_SHIFT, end)
            plan.append(((pfn << PAGE_SHIFT) + start - (pgoff << PAGE_SHIFT), stop - start))
            at = stop
        if at < end:
            plan.append((-1, end - at))
        return plan

    def _fill_holes(self, file: Regular, start: int, end: int) -> int:
        """Fill holes from the front; the page up to which all are filled."""
        at = start
        while at < end:
            try:
                run = file.pages.run_at(at, end - at) or self._fill_hole(file, at, end - at)
            except Refused:
                break
            at += run[1]
        return at

    def _fill_hole(self, file: Regular, at: int, max_pages: int) -> tuple[Pfn, int]:
        """One run from a hole's page on, in frames that go on from the page before if those are free. ENOSPC."""
        hole, after = file.pages.gap_at(at, max_pages)
        run = self._pool.alloc_run(hole, FrameState.SHARED, node=file.node, after=after)
        file.pages.map_run(at, run[0], run[1])
        return run

    def _punch(self, file: Regular, offset: int, end: int) -> list[Effect]:
        first, last = _page_after(offset), end >> PAGE_SHIFT
        if first > last:
            return self._zero(file, offset, end)
        return [
            *self._zero(file, offset, first << PAGE_SHIFT),
            *self._zero(file, last << PAGE_SHIFT, end),
            *self._drop(file, first, last),
        ]

    def _zero(self, file: Regular, start: int, end: int) -> list[Effect]:
        """Zero bytes inside one page; nothing to do in a hole."""
        if start >= end:
            return []
        pfn = file.pages.lookup(Pgoff(start >> PAGE_SHIFT))
        if pfn is None:
            return []
        return [ZeroBytes((pfn << PAGE_SHIFT) + (start & (PAGE_SIZE - 1)), end - start)]

    def _drop(self, file: Regular, start: int, end: int) -> Sequence[Effect]:
        if start >= end or file.pages.page_count == 0:
            return []
        if file.pages.is_long(start, end):
            discard = Discard(file.ino, file.pages.detach(start, end))
            self.discards.append(discard)
            return [discard]
        return self._scrub(file.pages.unmap(Pgoff(start), Pgoff(end)))

    def discard(self, effect: Discard) -> list[Scrub]:
        """The next part of it; [] when all is done."""
        scrub = self._scrub(effect.pages.take())
        if not scrub:
            self.discards.remove(effect)
        return scrub

    def _scrub(self, taken: list[Run]) -> list[Scrub]:
        runs = [(pfn, count) for _, pfn, count in taken]
        for pfn, count in runs:
            self._pool.set_state(pfn, count, FrameState.CLOSING)
        return [Scrub(None, runs)] if runs else []
