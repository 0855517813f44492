"""Split pages of a sealed file that become whole again."""

from memfsd.core.memory.frames import FramePool
from memfsd.core.memory.large import whole_order
from memfsd.core.memory.page_table import FilePages

from .gmem_file import GmemFile
from .pending import PendingFrames


def merge(pool: FramePool, pages: FilePages, guest: GmemFile, pgoff: int, order: int) -> None:
    """A hole of a split page, in a file with pages of `order`, was filled at pgoff. If it was the last one, and all
    frames are in line, the page is whole: counted, and all of it as private as if it had been allocated so.
    """
    found = whole_order(pages, pgoff, order)
    if not found:
        return
    first = pages.lookup(pgoff & -(1 << found))
    assert first is not None
    PendingFrames(pool, pages, guest).settle_run(first, 1 << found)
    guest.merge_count += 1
    pool.merge_count += 1
