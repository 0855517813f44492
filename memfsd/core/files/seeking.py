"""SEEK_DATA and SEEK_HOLE, in steps of bounded length.

What was allocated and never written is a hole in an ordinary file, as on tmpfs, and data in a sealed one, where nobody
but the guest may know.
"""

import errno
import os
from typing import Protocol

from memfsd.core.memory.page_table import Run
from memfsd.uapi.errors import Refused
from memfsd.uapi.units import PAGE_SHIFT, Pfn, Pgoff

from .inodes import Regular

_STEP_NODES = 512
"""Of a page table: a millisecond."""
_STEP_PAGES = 4096
"""Checked for written data: 0.1 ms, and 4 where the kernel has no cachestat(2)."""


class WrittenExtents(Protocol):
    """Which frames of ordinary files hold bytes that somebody wrote; frames from pfn on, as a distance from it."""

    def first_written(self, pfn: Pfn, count: int) -> int | None: ...

    def first_unwritten(self, pfn: Pfn, count: int) -> int:
        """count if all are written."""


class Seek:
    """One lseek(2): `step` until it is done, then `answer`."""

    def __init__(self, file: Regular, offset: int, whence: int) -> None:
        """EINVAL; ENXIO outside the file."""
        if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            raise Refused(errno.EINVAL, f"whence {whence} is not SEEK_DATA or SEEK_HOLE")
        if not 0 <= offset < file.size:
            raise Refused(errno.ENXIO, f"offset {offset} is outside the file, which has {file.size} bytes")
        self.file, self.whence, self._offset = file, whence, offset
        self._at = Pgoff(offset >> PAGE_SHIFT)
        # The answer is where this hole begins, or the data after it.
        self._hole = self._at if whence == os.SEEK_DATA else None
        self._data: Pgoff | None = None

    def step(self, contents: WrittenExtents) -> bool:
        """True when it is done."""
        file = self.file
        if file.guest is not None:
            return self._step_of_sealed()
        end = -(-file.size >> PAGE_SHIFT)
        if file.failed:  # no copy that skips holes may miss the EIO of a page
            self._hole, self._data = Pgoff(end), self._at
            return True
        part, reached = file.pages.part(self._at, end)
        left = _STEP_PAGES
        for extent in part:
            if self._hole is None:
                left -= self._pass_data(extent, left, contents)
                if self._hole is None:
                    if not left:
                        return False
                    continue
                if not file.mappable_writers:
                    return True
            if self._find_data(extent, contents):
                return True
        if part and reached < end:
            return False
        self._hole = self._at if self._hole is None else self._hole
        return True

    def _step_of_sealed(self) -> bool:
        pages = self.file.pages
        if self.whence == os.SEEK_DATA:
            self._data = pages.next_data(self._at)
            return True
        self._at = pages.mapped_until(self._at, _STEP_NODES)
        if pages.lookup(self._at) is None:
            self._hole = self._at
        return self._hole is not None

    def _pass_data(self, extent: Run, most: int, contents: WrittenExtents) -> int:
        """Up to the hole, if it begins before the end of this extent; pages that were looked at, at most `most`."""
        pgoff, pfn, count = extent
        looked_at = 0
        if pgoff == self._at:
            looked_at = min(count, most)
            self._at = Pgoff(pgoff + contents.first_unwritten(pfn, looked_at))
        if self._at < pgoff + looked_at:
            self._hole = self._at
        return looked_at

    def _find_data(self, extent: Run, contents: WrittenExtents) -> bool:
        pgoff, pfn, count = extent
        skipped = max(self._at - pgoff, 0)
        written = contents.first_written(Pfn(pfn + skipped), count - skipped)
        if written is not None:
            self._data = Pgoff(pgoff + skipped + written)
        self._at = Pgoff(pgoff + count)
        return written is not None

    def answer(self) -> int:
        """In bytes. ENXIO after the last data."""
        size = self.file.size
        if self.whence == os.SEEK_HOLE:
            assert self._hole is not None
            return min(max(self._hole << PAGE_SHIFT, self._offset), size)
        if self._data is None or self._data << PAGE_SHIFT >= size:
            raise Refused(errno.ENXIO, f"there is no data after offset {self._offset}")
        return max(self._data << PAGE_SHIFT, self._offset)

    def doubtful_hole(self) -> tuple[int, int] | None:
        """The hole of the answer, in bytes, if it may hold data after all: what was stored through a shared mapping and
        not yet written back. Only a read-write handle has one.
        """
        file = self.file
        if file.guest is not None or not file.mappable_writers:
            return None
        assert self._hole is not None
        start = max(self._hole << PAGE_SHIFT, self._offset)
        end = file.size if self._data is None else min(self._data << PAGE_SHIFT, file.size)
        return (start, end) if start < end else None
