"""Frames go out lowest first, in runs as long as is cheap, and coalesce when they come back."""

import errno
import tracemalloc

import pytest

from memfsd.core.memory import buddy as buddy_module
from memfsd.core.memory.buddy import Buddy
from memfsd.uapi.errors import Refused
from memfsd.uapi.units import ORDER_1G, ORDER_2M

BLOCK = 512
GIG = 1 << 18


def fragmented(frame_count: int, step: int) -> Buddy:
    """Every step-th frame is in use."""
    buddy = Buddy(0, frame_count)
    buddy.alloc(frame_count)
    for pfn in range(frame_count):
        if pfn % step:
            buddy.free(pfn, 1)
    return buddy


def test_single_frames_come_in_order() -> None:
    buddy = Buddy(512, 2048)
    assert [buddy.alloc_one() for _ in range(1300)] == list(range(512, 1812))
    assert buddy.free_count == 748


def test_the_last_frame_and_then_no_more() -> None:
    buddy = Buddy(3, 2)
    assert [buddy.alloc_one(), buddy.alloc_one()] == [3, 4]
    with pytest.raises(Refused) as refusal:
        buddy.alloc_one()
    assert refusal.value.errno == errno.ENOSPC
    with pytest.raises(Refused):
        buddy.alloc_run(5)
    assert buddy.free_count == 0


def test_broken_blocks_go_before_whole_ones() -> None:
    buddy = Buddy(510, 2 + BLOCK + 2)
    assert [buddy.alloc_one() for _ in range(5)] == [510, 511, 1024, 1025, 512]


def test_bulk_of_an_untouched_node_is_one_run() -> None:
    buddy = Buddy(0, 3 * GIG)
    assert buddy.alloc(GIG + BLOCK + 1) == [(0, GIG + BLOCK + 1)]
    assert buddy.alloc(BLOCK - 1) == [(GIG + BLOCK + 1, BLOCK - 1)]


def test_bulk_covers_every_frame_once() -> None:
    first, count = 100, 3 * GIG + 1000
    buddy = Buddy(first, count)
    runs = sorted(buddy.alloc(count))
    at = first
    for pfn, run in runs:
        assert pfn == at
        at += run
    assert at == first + count
    assert len(runs) <= 8
    assert buddy.free_count == 0


def test_too_much_is_refused_and_changes_nothing() -> None:
    buddy = Buddy(0, 1000)
    buddy.alloc(1)
    with pytest.raises(Refused) as refusal:
        buddy.alloc(1000)
    assert refusal.value.errno == errno.ENOSPC
    assert buddy.free_count == 999
    assert buddy.alloc(999) == [(0, 512), (513, 487)]


def test_large_orders_are_aligned_multiples() -> None:
    buddy = Buddy(5, 2 * GIG + 3 * BLOCK)
    for order, unit in ((ORDER_2M, BLOCK), (ORDER_1G, GIG)):
        available = buddy.available(order)
        runs = buddy.alloc(available, order)
        assert sum(count for _, count in runs) == available
        assert all(pfn % unit == 0 and count % unit == 0 for pfn, count in runs)
        with pytest.raises(Refused):
            buddy.alloc(unit, order)
        for pfn, count in runs:
            buddy.free(pfn, count)
    assert buddy.available(ORDER_1G) == GIG
    assert buddy.available(ORDER_2M) == 2 * GIG + 2 * BLOCK


def test_a_block_is_whole_again_after_its_last_frame_is_freed() -> None:
    buddy = Buddy(0, GIG)
    taken = [buddy.alloc_one() for _ in range(BLOCK + 1)]
    assert buddy.available(ORDER_1G) == 0
    assert buddy.available(ORDER_2M) == GIG - 2 * BLOCK
    for pfn in reversed(taken[1:]):
        buddy.free(pfn, 1)
    assert buddy.available(ORDER_2M) == GIG - BLOCK
    buddy.free(taken[0], 1)
    assert buddy.available(ORDER_1G) == GIG


def test_single_frames_spare_whole_blocks() -> None:
    buddy = Buddy(0, GIG)
    buddy.alloc(600)
    before = buddy.available(ORDER_2M)
    buddy.alloc(400)
    assert buddy.available(ORDER_2M) == before


def test_freeing_a_free_frame_is_a_bug() -> None:
    for taken, freed in (((0, 1), (1, 1)), ((0, 10), (5, 10)), ((0, GIG), (GIG, 1)), ((0, GIG), (GIG, GIG))):
        buddy = Buddy(0, 2 * GIG)
        assert buddy.alloc(taken[1]) == [taken]
        with pytest.raises(AssertionError):
            buddy.free(*freed)


def test_freeing_a_gig_of_which_a_part_is_free_is_a_bug() -> None:
    buddy = Buddy(0, GIG)
    buddy.alloc(GIG - 1)
    with pytest.raises(AssertionError):
        buddy.free(0, GIG)


def test_freeing_frames_of_another_node_is_a_bug() -> None:
    buddy = Buddy(10, 10)
    buddy.alloc(10)
    for pfn, count in ((9, 2), (19, 2), (30, 1)):
        with pytest.raises(AssertionError):
            buddy.free(pfn, count)


def test_alloc_at_goes_on_until_a_used_frame() -> None:
    buddy = Buddy(0, 2 * GIG)
    assert buddy.alloc_at(GIG + 700, 1) == 1
    assert buddy.alloc_at(GIG - 1000, 5000) == 1700
    assert buddy.alloc_at(GIG - 1000, 1) == 0
    assert buddy.alloc_at(GIG + 701, 3) == 3
    assert buddy.alloc_at(GIG + 704, GIG) == GIG - 704
    assert buddy.free_count == GIG - 1000


def test_alloc_at_fills_a_block_to_its_end() -> None:
    buddy = Buddy(0, BLOCK)
    assert buddy.alloc_at(500, 100) == 12
    assert buddy.alloc_at(0, 500) == 500
    assert buddy.free_count == 0


def test_alloc_at_goes_on_into_the_next_block() -> None:
    buddy = Buddy(0, 2 * BLOCK)
    buddy.alloc_at(5, 1)
    assert buddy.alloc_at(500, 100) == 100
    assert buddy.free_count == 2 * BLOCK - 101


@pytest.mark.parametrize("pfn", [-1, 9, 30, GIG])
def test_alloc_at_outside_of_the_node_is_nothing(pfn: int) -> None:
    assert Buddy(10, 20).alloc_at(pfn, 5) == 0


def test_a_run_is_whole_when_blocks_are_free() -> None:
    buddy = Buddy(0, GIG)
    for pfn in range(0, 4 * BLOCK, 2):
        assert buddy.alloc_at(pfn, 1) == 1
    assert buddy.alloc_run(4096) == (4 * BLOCK, 4096)
    assert buddy.alloc_run(100) == (4 * BLOCK + 4096, 100)
    assert buddy.alloc_run(1) == (1, 1)
    assert buddy.alloc_run(300) == (4 * BLOCK + 4196, 300)


def test_a_run_skips_single_blocks_for_consecutive_ones() -> None:
    buddy = Buddy(0, GIG)
    buddy.alloc_at(BLOCK, 1)
    buddy.alloc_at(3 * BLOCK, 1)
    assert buddy.alloc_run(3 * BLOCK) == (4 * BLOCK, 3 * BLOCK)
    assert buddy.alloc_run(BLOCK) == (0, BLOCK)


def test_a_run_skips_a_gig_of_single_blocks() -> None:
    buddy = Buddy(0, 2 * GIG)
    buddy.alloc(GIG)
    buddy.free(3 * BLOCK, BLOCK)
    buddy.alloc_at(GIG, 1)
    assert buddy.alloc_run(2 * BLOCK) == (GIG + BLOCK, 2 * BLOCK)


@pytest.mark.parametrize("want", [2, 5, 8, 9, 100])
def test_a_run_in_a_broken_block_is_the_first_that_is_long_enough(want: int) -> None:
    buddy = Buddy(0, BLOCK)
    buddy.alloc(BLOCK)
    lengths = {10: 1, 20: 2, 30: 5, 40: 8, 50: 9, 100: 100}
    for pfn, count in lengths.items():
        buddy.free(pfn, count)
    assert buddy.alloc_run(want) == (min(pfn for pfn in lengths if lengths[pfn] >= want), want)


def test_a_run_spans_gigs() -> None:
    buddy = Buddy(0, 4 * GIG)
    buddy.alloc_at(GIG, 1)
    assert buddy.alloc_run(2 * GIG) == (2 * GIG, 2 * GIG)


def test_a_run_of_a_fragmented_node_is_what_there_is() -> None:
    buddy = fragmented(2 * BLOCK, 8)
    pfn, count = buddy.alloc_run(4096)
    assert (pfn % 8, count) == (1, 7)
    assert buddy.alloc_run(3)[1] == 3
    assert fragmented(2 * BLOCK, 2).alloc_run(100)[1] == 1


def test_is_free() -> None:
    buddy = Buddy(10, GIG)
    buddy.alloc_at(20, 5)
    assert [pfn for pfn in range(30) if not buddy.is_free(pfn)] == [*range(10), *range(20, 25)]
    assert buddy.is_free(GIG + 9)
    assert not buddy.is_free(GIG + 10)


def test_metadata_stays_small() -> None:
    buddy = Buddy(0, GIG)
    tracemalloc.start()
    try:
        buddy.alloc(GIG)
        assert traced_bytes() < 2048
        for pfn in range(0, GIG, 16):
            buddy.free(pfn, 1)
        assert traced_bytes() < GIG / 4
        for _ in range(GIG // 16):
            buddy.alloc_one()
        assert traced_bytes() < 2048
    finally:
        tracemalloc.stop()


def traced_bytes() -> int:
    """What the buddy allocator has allocated and holds; other threads of the process may allocate as well."""
    ours = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, buddy_module.__file__)])
    return sum(trace.size for trace in ours.traces)


def test_eight_tebibytes_cost_nothing_at_the_start() -> None:
    buddy = Buddy(0, 1 << 31)
    assert buddy.free_count == 1 << 31
    assert buddy.alloc(1 << 31, ORDER_1G) == [(0, 1 << 31)]
    buddy.free(0, 1 << 31)
    assert buddy.available(ORDER_1G) == 1 << 31
