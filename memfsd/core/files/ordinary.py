"""Data of files that are not sealed for a guest: bytes to pool offsets, as tmpfs would keep them.

The bytes live in one memfd (the pool of ordinary files, frame N at N * 4096). This module only says where;
the adapter reads and writes there. A fresh frame is a hole in that memfd and so reads as zeros.
"""

import errno
from collections.abc import Sequence

from memfsd.core.effects import Cut, Discard, Effect, Fill, ForgetCache, Scrub, ZeroBytes
from memfsd.core.memory.frames import FramePool
from memfsd.core.memory.page_table import FilePages, Run
from memfsd.uapi.errors import EHWPOISON, Refused
from memfsd.uapi.frame_state import FrameState
from memfsd.uapi.limits import MAX_FILE_BYTES
from memfsd.uapi.names import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE
from memfsd.uapi.seals import Seal
from memfsd.uapi.units import PAGE_SHIFT, PAGE_SIZE, PGOFF_END, Ino, Pfn, Pgoff

from .allocation import Allocation, PlacedAllocation
from .cutting import Cutting
from .inodes import Regular

IoVec = list[tuple[int, int]]
"""(offset in the pool's memfd, or -1 for a hole; bytes), in file order."""


def _page_after(offset: int) -> int:
    return (offset + PAGE_SIZE - 1) >> PAGE_SHIFT


def _first_failed(file: Regular, offset: int, end: int) -> int:
    """The first byte of [offset, end) in a page whose frame failed, or end."""
    first, last = offset >> PAGE_SHIFT, _page_after(end)
    found = min((pgoff for pgoff in file.failed if first <= pgoff < last), default=last)
    return min(max(found << PAGE_SHIFT, offset), end)


def _failed(file: Regular) -> Refused:
    return Refused(errno.EIO, f"memory of inode {file.ino} has failed there: punch or truncate these pages")


class OrdinaryData:
    """The data of all files that are not sealed, in frames of the pool."""

    def __init__(self, pool: FramePool) -> None:
        self._pool = pool
        self.discards: list[Discard] = []
        """Pages that no file has any more, and that are not free yet."""
        self.allocations: dict[Fill, Allocation] = {}
        """Frames that no file has yet, and that are not free any more."""
        self.cuts: dict[Cut, Cutting] = {}
        """Pages that files are about to lose."""

    def read(self, file: Regular, offset: int, size: int) -> IoVec:
        """Where the bytes [offset, offset + size) are, ending at end of file. EIO when the frame of one failed."""
        size = min(size, max(file.size - offset, 0))
        if file.failed and _first_failed(file, offset, offset + size) < offset + size:
            raise _failed(file)
        return self._locate(file, offset, size)

    def write(self, file: Regular, offset: int, size: int, *, stored: bool = False) -> IoVec:
        """Where to write; short when the pool is full after some pages, ENOSPC when it is full at once. In the same way
        short of a page whose frame failed, and EIO there.
        """
        refusing = Seal.WRITE | Seal.GUEST if stored else Seal.WRITE | Seal.FUTURE_WRITE | Seal.GUEST
        if file.seals and file.seals & refusing:
            raise Refused(errno.EPERM, f"inode {file.ino} is sealed against writing")
        end = offset + size
        if end > MAX_FILE_BYTES:
            raise Refused(errno.EFBIG, f"a file has at most {MAX_FILE_BYTES} bytes: write less")
        if file.seals and end > file.size and file.seals & Seal.GROW:
            # tmpfs looks page by page: the whole pages before the end still take their bytes.
            end = file.size & -PAGE_SIZE
            if end <= offset:
                raise Refused(errno.EPERM, f"inode {file.ino} is sealed against growing")
            size = end - offset
        if size == 0:
            return []
        if file.failed:
            end = _first_failed(file, offset, end)
            if end <= offset:
                raise _failed(file)
            size = end - offset
        at = self.place(file, offset, size)
        if at is not None:
            return [(at, size)]
        end = min(end, self._fill_holes(file, offset >> PAGE_SHIFT, _page_after(end)) << PAGE_SHIFT)
        file.size = max(file.size, end)
        return self._locate(file, offset, end - offset)

    def place(self, file: Regular, offset: int, size: int) -> int | None:
        """Where to write all of it, for files without seals. None, and nothing written: not in one run, or no room."""
        end = offset + size
        first = offset >> PAGE_SHIFT
        pages = ((end + PAGE_SIZE - 1) >> PAGE_SHIFT) - first
        if size <= 0 or end > MAX_FILE_BYTES or file.failed:
            return None
        run = file.pages.run_at(first, pages)
        if run is None:
            if not self._pool.free_count:
                return None
            try:
                run = self._fill_hole(file, first, pages)
            except Refused:  # a policy's nodes are full
                return None
        if run[1] != pages:
            return None
        if end > file.size:
            file.size = end
        return (run[0] << PAGE_SHIFT) + (offset & (PAGE_SIZE - 1))

    def resize(self, file: Regular, size: int) -> list[Effect]:
        """truncate(2): a cut page keeps zeros behind the cut; what was allocated past the end goes, as on tmpfs."""
        if size > MAX_FILE_BYTES:
            raise Refused(errno.EFBIG, f"a file has at most {MAX_FILE_BYTES} bytes: write less")
        if size < file.size and file.seals & Seal.SHRINK:
            raise Refused(errno.EPERM, f"inode {file.ino} is sealed against shrinking")
        if size > file.size and file.seals & Seal.GROW:
            raise Refused(errno.EPERM, f"inode {file.ino} is sealed against growing")
        effects: list[Effect] = []
        if size <= file.size:
            effects += self._zero(file, size, min(file.size, _page_after(size) << PAGE_SHIFT))
            effects += self._drop(file, _page_after(size), PGOFF_END, size)
        if not effects or not isinstance(effects[-1], Cut):
            file.size = size
        file.is_cached_only = file.is_cached_only and size > 0
        return effects

    def fallocate(self, file: Regular, mode: int, offset: int, length: int) -> list[Effect]:
        """Allocate, allocate with KEEP_SIZE, or PUNCH_HOLE with KEEP_SIZE; as tmpfs, nothing else."""
        end = offset + length
        if offset < 0 or length <= 0:
            raise Refused(
                errno.EINVAL,
                f"offset {offset} and length {length}: fallocate needs an offset of 0 or more and a length above 0",
            )
        if end > MAX_FILE_BYTES:
            raise Refused(errno.EFBIG, f"a file has at most {MAX_FILE_BYTES} bytes: write less")
        if mode == FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE:
            if file.seals & (Seal.WRITE | Seal.FUTURE_WRITE):
                raise Refused(errno.EPERM, f"inode {file.ino} is sealed against writing")
            return self._punch(file, offset, end)
        if mode & ~FALLOC_FL_KEEP_SIZE:
            raise Refused(errno.EOPNOTSUPP, f"fallocate mode {mode:#x} is not supported")
        grows = end > file.size and not mode & FALLOC_FL_KEEP_SIZE
        if end > file.size and file.seals & Seal.GROW:
            raise Refused(errno.EPERM, f"inode {file.ino} is sealed against growing")
        pages = offset >> PAGE_SHIFT, _page_after(end)
        return self.allocate(file, *pages, FrameState.SHARED, size=end if grows else None)

    def allocate(
        self, file: Regular, start: int, end: int, state: FrameState, *, size: int | None = None
    ) -> list[Effect]:
        """Fill every hole of pages [start, end), then set the size: ENOSPC changes nothing. What takes long is left to
        the effects.
        """
        kind = PlacedAllocation if file.order or file.policies is not None else Allocation
        allocation = kind(self._pool, file, start, end, state, size)
        try:
            if allocation.step():
                return []
        except Refused:
            allocation.give_up()
            raise
        effect = Fill(file.ino)
        self.allocations[effect] = allocation
        return [effect]

    def fill(self, effect: Fill) -> Sequence[Effect]:
        """The next part of it. Then: itself, while there is more; at the end, what gives unneeded frames back."""
        allocation = self.allocations[effect]
        try:
            if not allocation.step():
                return [effect]
        except Refused as refused:
            effect.refused = refused
        del self.allocations[effect]
        return self.give_back(effect.ino, allocation.supply, None)

    def drop_all(self, file: Regular) -> list[Effect]:
        """The last name and handle are gone: give every frame back."""
        file.size = 0
        return list(self._drop(file, 0, PGOFF_END))

    def poison(self, file: Regular, pgoff: int) -> list[Effect]:
        """The page's frame failed: it is out of service, and reads and writes of the page are EIO until it is punched
        or truncated away. EINVAL past the end, EHWPOISON when it failed before, ENXIO without a frame."""
        if pgoff << PAGE_SHIFT >= file.size:
            raise Refused(errno.EINVAL, f"page {pgoff:#x} is past the end of inode {file.ino} ({file.size} bytes)")
        if pgoff in file.failed:
            raise Refused(EHWPOISON, f"page {pgoff:#x} of inode {file.ino} has failed already: punch it")
        pfn = file.pages.lookup(pgoff)
        if pfn is None:
            raise Refused(
                errno.ENXIO, f"page {pgoff:#x} of inode {file.ino} has no frame that could fail: write it first"
            )
        file.failed |= {pgoff}
        file.pages.unmap(Pgoff(pgoff), Pgoff(pgoff + 1))
        self._pool.set_state(pfn, 1, FrameState.CLOSING)
        return [Scrub(None, [(pfn, 1)], FrameState.POISONED), ForgetCache(file.ino)]

    def _locate(self, file: Regular, offset: int, size: int) -> IoVec:
        if size <= 0:
            return []
        first, end = offset >> PAGE_SHIFT, offset + size
        pages = _page_after(end) - first
        run = file.pages.run_at(Pgoff(first), pages)
        if run is not None and run[1] == pages:
            return [((run[0] << PAGE_SHIFT) + (offset & (PAGE_SIZE - 1)), size)]
        plan: IoVec = []
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
        """Fill holes from the front; the page up to which all are filled. ENOSPC when none of them could be."""
        at = start
        while at < end:
            try:
                run = file.pages.run_at(at, end - at) or self._fill_hole(file, at, end - at)
            except Refused:
                if at == start:
                    raise
                break
            at += run[1]
        return at

    def _fill_hole(self, file: Regular, at: int, max_pages: int) -> tuple[Pfn, int]:
        """One run from a hole's page on, in frames that go on from the page before if those are free. ENOSPC."""
        hole, after = file.pages.gap_at(at, max_pages)
        zones = None
        if file.policies is not None:
            zones, hole = file.zones_at(at, hole)
        run = self._pool.alloc_run(hole, FrameState.SHARED, zones=zones, after=after)
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

    def _drop(self, file: Regular, start: int, end: int, size: int | None = None) -> Sequence[Effect]:
        """Pages [start, end) leave the file: now, or by a Cut, which then sets the size, too."""
        _forget_failed(file, start, end)
        if start >= end or file.pages.page_count == 0:
            return []
        if start == 0 and end == PGOFF_END:
            return self.give_back(file.ino, file.pages, None)
        if not file.pages.is_long(start, end):
            return self._scrub(file.pages.unmap(Pgoff(start), Pgoff(end)), None)
        cut = Cut(file.ino)
        self.cuts[cut] = Cutting(file, start, end, size)
        return [cut]

    def is_cutting(self, file: Regular) -> bool:
        """Pages of it are still to leave."""
        return any(cutting.file is file for cutting in self.cuts.values())

    def cut(self, effect: Cut) -> list[Scrub] | None:
        """The next part of it; None when all is done."""
        cutting = self.cuts[effect]
        runs = cutting.step()
        _forget_failed(cutting.file, cutting.start, cutting.end)  # what failed since
        if runs is None:
            del self.cuts[effect]
            return None
        return self._scrub(runs, None)

    def give_back(self, ino: Ino, pages: FilePages, window: Ino | None) -> Sequence[Effect]:
        """All pages of this table leave it, and are to be scrubbed in the window."""
        if not pages.is_long(0, PGOFF_END):
            return self._scrub(pages.unmap(Pgoff(0), PGOFF_END), window)
        discard = Discard(ino, pages.detach(), window)
        self.discards.append(discard)
        return [discard]

    def discard(self, effect: Discard) -> list[Scrub]:
        """The next part of it; [] when all is done."""
        scrub = self._scrub(effect.pages.take(), effect.window)
        if not scrub:
            self.discards.remove(effect)
        return scrub

    def _scrub(self, taken: list[Run], window: Ino | None) -> list[Scrub]:
        runs = [(pfn, count) for _, pfn, count in taken]
        for pfn, count in runs:
            self._pool.set_state(pfn, count, FrameState.CLOSING)
        return [Scrub(window, runs)] if runs else []


def _forget_failed(file: Regular, start: int, end: int) -> None:
    if file.failed and start < end:
        file.failed = frozenset(pgoff for pgoff in file.failed if not start <= pgoff < end)
