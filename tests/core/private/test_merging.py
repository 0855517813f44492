"""Split pages that become whole: counted, and private as a whole."""

from memfsd.core.memory.frames import FramePool
from memfsd.core.memory.page_table import FilePages
from memfsd.core.private.gmem_file import GmemFile
from memfsd.core.private.merging import merge
from memfsd.uapi.frame_state import FrameState
from memfsd.uapi.units import ORDER_2M, Pgoff

MIB2 = 512


def test_the_last_hole_makes_the_page_whole_and_all_of_it_private() -> None:
    pool, pages, guest = FramePool(2 * MIB2), FilePages(), GmemFile()
    pool.alloc(MIB2 - 2, FrameState.PRIVATE)
    pages.map_run(Pgoff(0), 0, MIB2 - 2)
    pool.alloc_run(1, FrameState.PENDING, after=None)
    pages.map_run(Pgoff(MIB2 - 2), MIB2 - 2, 1)
    guest.pending, guest.pending_start, guest.pending_end = 1, Pgoff(MIB2 - 2), Pgoff(MIB2 - 1)
    merge(pool, pages, guest, MIB2 - 2, ORDER_2M)
    assert (guest.merge_count, pool.merge_count, guest.pending) == (0, 0, 1)
    pool.alloc_one(FrameState.PRIVATE)
    pages.map_run(Pgoff(MIB2 - 1), MIB2 - 1, 1)
    merge(pool, pages, guest, MIB2 - 1, ORDER_2M)
    assert (guest.merge_count, pool.merge_count, guest.pending) == (1, 1, 0)
    assert pool.count(FrameState.PRIVATE) == MIB2
