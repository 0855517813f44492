"""The host's side of a guest_memfd: what the kernel's page cache of the mounted file holds.

    a mapping is touched             READ of one page: shared, or EIO, which is SIGBUS there
    what a mapping stored is kept    WRITE, sooner or later; at the latest when the page becomes private
    read(2), write(2)                refused, as guest_memfd has neither

A page becomes private in this order: KVM has zapped it; it is private; the kernel drops it, and writes back what was
stored. A page that was punched has nothing to write back to: that is dropped.
"""

import errno

from memfsd.uapi.errors import Refused
from memfsd.uapi.frame_state import FrameState
from memfsd.uapi.units import PAGE_SHIFT, PAGE_SIZE, Pgoff

from .files.inodes import Regular
from .files.ordinary import IoVec
from .memory.frames import FramePool
from .private.gmem_file import GmemFile
from .private.page_attributes import GuestMemfd


class HostAccess:
    """Plans: offsets in the file's window, or -1 for bytes that are nowhere."""

    def __init__(self, pool: FramePool) -> None:
        self._pool = pool

    def read(self, file: Regular, guest: GmemFile, offset: int, size: int) -> IoVec:
        """Where the bytes are that a mapping touches, ending at end of file. A hole gets its frame now, as at a page
        fault, if it alone is asked for. EIO private, or failed; ENOSPC."""
        memfd = _mappable(file, guest)
        size = min(size, max(file.size - offset, 0))
        if not size:
            return []
        first, end = offset >> PAGE_SHIFT, _page_after(offset + size)
        if not memfd.is_shared(first, end):
            raise Refused(errno.EIO, f"pages {first:#x}-{end:#x} of inode {file.ino} are private: convert them first")
        if guest.absent and guest.absent.first(first, end) < end:
            raise Refused(errno.EIO, f"memory of inode {file.ino} has failed there: punch these pages")
        if end - first == 1:
            self._touch(file, guest, Pgoff(first))
        return self._plan(file, offset, size)

    def write(self, file: Regular, guest: GmemFile, offset: int, size: int) -> IoVec:
        """Where to what a mapping stored goes. EIO private, or failed; ENOSPC."""
        memfd, closing = _mappable(file, guest), guest.open_invalidation
        size = min(size, max(file.size - offset, 0))
        for pgoff in range(offset >> PAGE_SHIFT, _page_after(offset + size)):
            is_closing = closing is not None and closing.start <= pgoff < closing.end
            if not is_closing and not memfd.is_shared(pgoff, pgoff + 1):
                raise Refused(errno.EIO, f"page {pgoff:#x} of inode {file.ino} is private: nothing is stored there")
            if guest.absent.is_poisoned(pgoff):
                raise Refused(errno.EIO, f"page {pgoff:#x} of inode {file.ino} has failed: punch it to get another one")
            if not is_closing:
                self._touch(file, guest, Pgoff(pgoff))
        return self._plan(file, offset, size)

    def _touch(self, file: Regular, guest: GmemFile, pgoff: Pgoff) -> None:
        closing = guest.open_invalidation
        pfn = file.pages.lookup(pgoff)
        if pfn is not None:
            if guest.pending and self._pool.state(pfn) is FrameState.PENDING:
                self._pool.set_state(pfn, 1, FrameState.PRIVATE)
                guest.pending -= 1
        elif closing is None or not closing.start <= pgoff < closing.end:
            zones, _ = file.zones_at(pgoff, 1)
            file.pages.map_page(pgoff, self._pool.alloc_one(FrameState.PRIVATE, zones))

    def _plan(self, file: Regular, offset: int, size: int) -> IoVec:
        plan: IoVec = []
        at, end = offset, offset + size
        while at < end:
            length = min(end, (at & -PAGE_SIZE) + PAGE_SIZE) - at
            pfn = file.pages.lookup(Pgoff(at >> PAGE_SHIFT))
            plan.append((-1 if pfn is None else (pfn << PAGE_SHIFT) + (at & PAGE_SIZE - 1), length))
            at += length
        return plan


def _mappable(file: Regular, guest: GmemFile) -> GuestMemfd:
    memfd = guest.memfd
    if memfd is None or not memfd.is_mappable:
        raise Refused(
            errno.EINVAL, f"inode {file.ino} is a guest_memfd without the flag mmap: only its VM may access it"
        )
    return memfd


def _page_after(offset: int) -> int:
    return (offset + PAGE_SIZE - 1) >> PAGE_SHIFT
