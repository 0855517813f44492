"""What a VM reads of a page map, and which maps it takes at all."""

import fcntl
import os

import numpy as np
import pytest

from kvmsim.store.page_map import PageMap
from memfsd.core.memory.published_map import PageMap as Written
from memfsd.host.page_maps import make_page_map
from memfsd.uapi.errors import PeerLost
from memfsd.uapi.page_map import map_bytes
from memfsd.uapi.units import ORDER_1G, ORDER_2M, Ino, Seq

MIB2, GIB = 1 << ORDER_2M, 1 << ORDER_1G
PAGES = 2 * GIB
SEQ = 6


class Both:
    """The same map at both ends."""

    def __init__(self) -> None:
        made = make_page_map(Ino(1), PAGES)
        self.written = Written(Ino(1), made.words)
        self.read = PageMap(made.fd, PAGES)
        self.written.open(Seq(SEQ))


@pytest.fixture
def both() -> Both:
    return Both()


def test_a_page_is_found_and_a_hole_is_not(both: Both) -> None:
    both.written.show(5, 77, 1)
    assert both.read.lookup(5, 512, SEQ) == (77, 1, 0)
    assert both.read.lookup(4, 512, SEQ) is None
    assert both.read.lookup(PAGES, 512, SEQ) is None, "after its end"


def test_another_number_and_an_open_invalidation_find_nothing(both: Both) -> None:
    both.written.show(5, 77, 1)
    assert both.read.lookup(5, 1, SEQ - 1) is both.read.lookup(5, 1, SEQ + 1) is None
    both.written.close(Seq(SEQ))
    assert both.read.lookup(5, 1, SEQ) is None
    both.written.open(Seq(SEQ + 1))
    assert both.read.lookup(5, 1, SEQ + 1) == (77, 1, 0)
    both.written.close_for_good()
    assert both.read.lookup(5, 1, SEQ + 1) is None


def test_a_run_goes_on_as_far_as_the_frames_do(both: Both) -> None:
    both.written.show(10, 100, 20)
    both.written.show(30, 7, 1)
    assert both.read.lookup(10, 512, SEQ) == (100, 20, 0)
    assert both.read.lookup(12, 512, SEQ) == (102, 18, 0)
    assert both.read.lookup(12, 4, SEQ) == (102, 4, 0)
    assert both.read.lookup(29, 512, SEQ) == (119, 1, 0)


def test_a_fault_that_wants_a_whole_gibibyte_gets_a_run_of_pages(both: Both) -> None:
    """The pages of a split frame. It was a ValueError, and the end of the vCPU's thread."""
    both.written.show(1, 101, 9000)
    found = both.read.lookup(1, GIB, SEQ)
    assert found is not None
    assert found == (101, found[1], 0)
    assert 1 < found[1] <= 9000


def test_a_run_may_end_where_the_map_does(both: Both) -> None:
    both.written.show(PAGES - 3, 50, 3)
    assert both.read.lookup(PAGES - 3, 512, SEQ) == (50, 3, 0)
    assert both.read.lookup(PAGES - 1, 512, SEQ) == (52, 1, 0)


def test_entries_of_blocks_cover_their_pages(both: Both) -> None:
    both.written.show(0, 3, GIB)
    both.written.show(GIB, 9 + 2 * GIB, 2 * MIB2)
    assert both.read.lookup(GIB - 5, 512, SEQ) == (3 + GIB - 5, 5, ORDER_1G)
    assert both.read.lookup(0, 2 * GIB, SEQ) == (3, GIB, ORDER_1G)
    assert both.read.lookup(GIB, 4096, SEQ) == (9 + 2 * GIB, 2 * MIB2, ORDER_2M), "on from entry to entry"
    assert both.read.lookup(GIB + MIB2 + 7, 4096, SEQ) == (9 + 2 * GIB + MIB2 + 7, MIB2 - 7, ORDER_2M)


def _memfd(size: int, seals: int) -> int:
    fd = os.memfd_create("map", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


@pytest.mark.parametrize(
    ("size", "seals"),
    [
        (map_bytes(PAGES) - 8, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL),
        (map_bytes(PAGES), fcntl.F_SEAL_GROW),
        (map_bytes(PAGES), fcntl.F_SEAL_SHRINK),
    ],
    ids=["too short", "may shrink", "may get seals"],
)
def test_what_is_no_map_that_keeps_its_size_is_a_broken_store(size: int, seals: int) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(PeerLost):
        PageMap(_memfd(size, seals), PAGES)
    assert len(os.listdir("/proc/self/fd")) <= before


def test_what_is_no_memfd_is_a_broken_store() -> None:
    with pytest.raises(PeerLost):
        PageMap(os.open("/dev/null", os.O_RDONLY), PAGES)


def test_garbage_is_read_as_numbers(both: Both) -> None:
    """A store may write what it likes: no word makes the reader fail. What it makes of it is checked by the link."""
    chance = np.random.default_rng(1)
    words = both.written._array
    for _ in range(300):
        words[1024:1100] = chance.integers(0, 1 << 64, 76, np.uint64)
        for pgoff in range(512, 588):
            found = both.read.lookup(pgoff, 512, SEQ)
            assert found is None or (found[0] >= 0 and 0 < found[1] <= 512)
