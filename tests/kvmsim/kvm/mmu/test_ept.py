"""The EPT: mapping, walking, marking and zapping, with leaves of each size."""

import errno
from collections.abc import Callable

import numpy as np
import pytest

from kvmsim.kvm.mmu.ept import (
    ACCESSED,
    DIRTY,
    EXECUTE,
    LARGE,
    MAX_GFN_EPT,
    MEMORY_TYPE_UC,
    MEMORY_TYPE_WB,
    READ,
    WRITE,
    Ept,
    entry_memory_type,
    entry_pfn,
    entry_writable,
)
from memfsd.uapi.errors import Refused
from memfsd.uapi.units import Gfn, HostPfn

GIB = 1 << 18
LEAF = READ | WRITE | EXECUTE | MEMORY_TYPE_WB


def test_a_leaf_has_the_layout_of_the_hardware() -> None:
    ept = Ept()
    ept.map_run(Gfn(5), HostPfn(0x1234), 1)
    ept.map_run(Gfn(6), HostPfn(0x1235), 1, writable=False, accessed=1)
    assert ept.walk(Gfn(5)) == 0x1234 << 12 | 0b110_111
    assert ept.walk(Gfn(6)) == 0x1235 << 12 | 1 << 8 | 0b110_101
    assert (entry_pfn(ept.walk(Gfn(5))), entry_writable(ept.walk(Gfn(5))), entry_writable(ept.walk(Gfn(6)))) == (
        0x1234,
        True,
        False,
    )
    assert ept.walk(Gfn(4)) == ept.walk(Gfn(7)) == ept.walk(MAX_GFN_EPT - 1) == 0


def test_uncached_leaves_of_all_sizes_have_memory_type_0() -> None:
    ept = Ept()
    ept.map_page(Gfn(5), HostPfn(0x1234), uncached=True)
    ept.map_run(Gfn(600), HostPfn(0x2000), 400, uncached=True)
    ept.map_large(Gfn(1024), HostPfn(512), 9, uncached=True)
    ept.map_large(Gfn(GIB), HostPfn(GIB), 18, writable=False, uncached=True)
    ept.map_page(Gfn(6), HostPfn(0x1235))
    assert [entry_memory_type(ept.walk(Gfn(gfn))) for gfn in (5, 600, 999, 1030, GIB + 7)] == [MEMORY_TYPE_UC] * 5
    assert entry_memory_type(ept.walk(Gfn(6))) == MEMORY_TYPE_WB
    ept.zap(Gfn(1024), Gfn(1025))
    assert entry_memory_type(ept.walk(Gfn(1030))) == MEMORY_TYPE_UC, "parts of a leaf that was split keep it"
    assert not entry_writable(ept.walk(Gfn(GIB)))


@pytest.mark.parametrize("writable", [True, False])
def test_map_page_is_map_run_of_one_page_that_is_demanded(writable: bool) -> None:
    by_page, by_run = Ept(), Ept()
    for ept in (by_page, by_run):
        ept.map_run(Gfn(20), HostPfn(120), 8, writable=writable)
    # In a table that is known, in its neighbour, far away, granted before, and again.
    for gfn in (5, 6, 513, GIB + 5, 21, 5, GIB + 6, 511):
        by_page.map_page(Gfn(gfn), HostPfn(100 + gfn), writable=writable)
        by_run.map_run(Gfn(gfn), HostPfn(100 + gfn), 1, writable=writable, accessed=1)
        assert by_page.walk(Gfn(gfn)) == by_run.walk(Gfn(gfn)) != 0
        assert (by_page.leaf_count, by_page.table_count) == (by_run.leaf_count, by_run.table_count)
    with pytest.raises(AssertionError):
        by_page.map_page(Gfn(5), HostPfn(7))
    for gfn in (*range(20, 28), 5, 513, GIB + 5, 511, GIB + 6, 6):
        assert by_page.zap(gfn, gfn + 1) == by_run.zap(gfn, gfn + 1) != []
        assert (by_page.leaf_count, by_page.table_count) == (by_run.leaf_count, by_run.table_count)
    assert by_page.table_count == 1


def test_tables_come_and_go_with_their_leaves() -> None:
    ept = Ept()
    assert ept.table_count == 1
    ept.map_run(Gfn(0), HostPfn(100), 1)
    assert ept.table_count == 4
    ept.map_run(Gfn(511), HostPfn(7), 2)
    assert (ept.table_count, ept.leaf_count) == (5, 3)
    ept.map_run(MAX_GFN_EPT - 1, HostPfn(9), 1)
    assert ept.table_count == 8
    assert ept.zap(Gfn(512), Gfn(513)) == [(512, 8, 1)]
    assert ept.table_count == 7
    assert ept.zap(Gfn(0), MAX_GFN_EPT) == [(0, 100, 1), (511, 7, 1), (MAX_GFN_EPT - 1, 9, 1)]
    assert (ept.table_count, ept.leaf_count) == (1, 0)


@pytest.mark.parametrize("first", [0, 300, GIB - 70_000, (1 << 27) - 1000], ids=hex)
def test_a_gibibyte_is_one_run_wherever_it_lies(first: int) -> None:
    ept = Ept()
    ept.map_run(Gfn(first), HostPfn(1000), GIB, accessed=3)
    assert ept.leaf_count == GIB
    assert list(ept.runs(Gfn(0), MAX_GFN_EPT)) == [(first, 1000, GIB)]
    assert ept.first_missing(Gfn(first), MAX_GFN_EPT) == first + GIB
    assert ept.first_missing(Gfn(first + 1), Gfn(first + 5)) == first + 5
    assert ept.touched(Gfn(0), MAX_GFN_EPT) == [(first, first + 3)]
    gfns = np.arange(first, first + GIB)
    expected = (gfns - first + 1000 << 12 | LEAF).astype(np.uint64)
    expected[:3] |= np.uint64(ACCESSED)
    assert (ept.lookup(gfns) == expected).all()
    assert ept.zap_untouched(Gfn(0), MAX_GFN_EPT) == [(first + 3, 1003, GIB - 3)]
    assert ept.zap(Gfn(0), MAX_GFN_EPT) == [(first, 1000, 3)]
    assert (ept.table_count, ept.leaf_count) == (1, 0)


def test_scattered_tables_are_used_again_and_come_out_clean() -> None:
    ept = Ept(max_tables=2 + 2 + 8)
    for region in (6, 1, 4, 3, 0, 7, 2, 5):
        ept.map_run(Gfn(region * 512), HostPfn(region * 512), 512, accessed=512)
    for region in (1, 2, 5):
        assert ept.zap(Gfn(region * 512), Gfn(region * 512 + 512)) == [(region * 512, region * 512, 512)]
    ept.map_run(Gfn(512), HostPfn(5000), 600)
    assert list(ept.runs(Gfn(0), Gfn(4096))) == [
        (0, 0, 512),
        (512, 5000, 600),
        (1536, 1536, 1024),
        (3072, 3072, 1024),
    ]
    assert ept.touched(Gfn(0), Gfn(4096)) == [(0, 512), (1536, 2560), (3072, 4096)]
    assert ept.first_missing(Gfn(0), Gfn(4096)) == 1112


def test_neighbouring_tables_of_distant_pages_are_told_apart() -> None:
    ept = Ept()
    ept.map_run(Gfn(0), HostPfn(100), 512)
    ept.map_run(Gfn(1024), HostPfn(612), 512)
    assert list(ept.runs(Gfn(0), MAX_GFN_EPT)) == [(0, 100, 512), (1024, 612, 512)]
    assert ept.first_missing(Gfn(0), Gfn(2000)) == 512


def test_frame_0_is_not_an_absent_page() -> None:
    ept = Ept()
    ept.map_run(Gfn(1), HostPfn(1), 5)
    assert list(ept.runs(Gfn(0), Gfn(6))) == [(1, 1, 5)]
    ept.map_run(Gfn(0), HostPfn(0), 1)
    assert ept.walk(Gfn(0)) == LEAF
    assert list(ept.runs(Gfn(0), Gfn(6))) == [(0, 0, 6)]
    assert ept.zap(Gfn(0), Gfn(1)) == [(0, 0, 1)]


@pytest.mark.parametrize("count", [1, 4, 600])
def test_a_second_fault_on_the_same_pages_keeps_what_the_guest_left_there(count: int) -> None:
    ept = Ept()
    ept.map_run(Gfn(10), HostPfn(50), count)
    ept.mark(Gfn(10), ACCESSED | DIRTY)
    ept.map_run(Gfn(10), HostPfn(50), count)
    assert ept.walk(Gfn(10)) == 50 << 12 | LEAF | ACCESSED | DIRTY
    assert ept.leaf_count == count
    assert ept.touched(Gfn(0), Gfn(1000)) == [(10, 11)]
    ept.map_run(Gfn(9), HostPfn(49), count + 2, accessed=count + 1)
    assert ept.walk(Gfn(10)) == 50 << 12 | LEAF | ACCESSED | DIRTY
    assert ept.touched(Gfn(0), Gfn(1000)) == [(9, 10 + count)], "a granted page that is demanded now counts as touched"
    assert ept.leaf_count == count + 2


@pytest.mark.parametrize("count", [1, 4, 600])
def test_another_frame_at_a_present_page_must_never_be(count: int) -> None:
    ept = Ept()
    ept.map_run(Gfn(10), HostPfn(50), count)
    with pytest.raises(AssertionError):
        ept.map_run(Gfn(10), HostPfn(51), count)
    assert list(ept.runs(Gfn(0), Gfn(1000))) == [(10, 50, count)]


def test_one_page_with_another_frame_among_many_must_never_be() -> None:
    ept = Ept()
    ept.map_run(Gfn(300), HostPfn(7), 1)
    with pytest.raises(AssertionError):
        ept.map_run(Gfn(0), HostPfn(1000), 400)
    assert list(ept.runs(Gfn(0), Gfn(1000))) == [(300, 7, 1)]


@pytest.mark.parametrize("call", ["walk", "mark", "map_run", "zap", "lookup"])
@pytest.mark.parametrize("gfn", [MAX_GFN_EPT, -1])
def test_a_gfn_beyond_the_four_levels_must_never_be(call: str, gfn: int) -> None:
    ept = Ept()
    calls: dict[str, Callable[[], object]] = {
        "walk": lambda: ept.walk(Gfn(gfn)),
        "mark": lambda: ept.mark(Gfn(gfn), ACCESSED),
        "map_run": lambda: ept.map_run(Gfn(gfn), HostPfn(0), 1),
        "zap": lambda: ept.zap(Gfn(gfn), Gfn(gfn + 1)),
        "lookup": lambda: ept.lookup(np.array([0, gfn])),
    }
    with pytest.raises(AssertionError):
        calls[call]()


def test_out_of_tables_maps_nothing() -> None:
    ept = Ept(max_tables=2 + 4)
    ept.map_run(Gfn(0), HostPfn(0), 1)
    before = ept.table_count
    with pytest.raises(Refused) as refused:
        ept.map_run(Gfn(100), HostPfn(100), 512 * 2 + 1)
    assert refused.value.errno == errno.ENOMEM
    assert (ept.table_count, ept.leaf_count, list(ept.runs(Gfn(0), MAX_GFN_EPT))) == (before, 1, [(0, 0, 1)])
    with pytest.raises(Refused):
        ept.map_run(Gfn(GIB), HostPfn(100), 1)
    assert ept.table_count == before
    ept.map_run(Gfn(100), HostPfn(100), 512)
    assert ept.table_count == before + 1
    ept.zap(Gfn(0), Gfn(1000))
    ept.map_run(Gfn(GIB), HostPfn(100), 1000)
    assert list(ept.runs(Gfn(0), MAX_GFN_EPT)) == [(GIB, 100, 1000)]


def test_walk_does_not_remember_a_table_that_is_gone() -> None:
    ept = Ept()
    ept.map_run(Gfn(0), HostPfn(1), 1)
    assert ept.walk(Gfn(0))
    ept.zap(Gfn(0), Gfn(1))
    assert ept.walk(Gfn(0)) == 0
    ept.map_run(Gfn(512), HostPfn(2), 1)
    assert ept.walk(Gfn(0)) == 0
    assert entry_pfn(ept.walk(Gfn(512))) == 2
    ept.map_run(Gfn(600), HostPfn(90), 2000)
    assert entry_pfn(ept.walk(Gfn(601))) == 91
    ept.zap(Gfn(0), MAX_GFN_EPT)
    ept.map_run(Gfn(GIB), HostPfn(3), 2000)
    assert ept.walk(Gfn(601)) == 0


def test_lookup_takes_any_shape_and_both_integer_types() -> None:
    ept = Ept()
    ept.map_run(Gfn(510), HostPfn(7), 4)
    gfns = np.array([[509, 510], [513, MAX_GFN_EPT - 1]], dtype=np.uint64)
    leaves = [[0, 7 << 12 | LEAF], [10 << 12 | LEAF, 0]]
    assert ept.lookup(gfns).tolist() == leaves
    assert ept.lookup(gfns.astype(np.int64)).tolist() == leaves
    assert ept.lookup(gfns[::-1]).tolist() == leaves[::-1]
    assert ept.lookup(np.zeros(0, dtype=np.int64)).tolist() == []


def sizes(ept: Ept) -> list[tuple[int, tuple[int, int, int]]]:
    return list(ept.leaf_runs(Gfn(0), MAX_GFN_EPT))


def test_a_large_leaf_has_the_layout_of_the_hardware() -> None:
    ept = Ept()
    ept.map_large(Gfn(512), HostPfn(1024), 9, writable=False)
    ept.map_large(Gfn(GIB), HostPfn(2 * GIB), 18, accessed=True)
    assert ept.walk(Gfn(512)) == 1024 << 12 | LARGE | 0b110_101
    assert ept.walk(Gfn(GIB)) == 2 * GIB << 12 | ACCESSED | LARGE | 0b110_111
    assert entry_pfn(ept.walk(Gfn(512 + 77))) == 1024 + 77, "a page inside has its own frame"
    assert ept.walk(Gfn(511)) == ept.walk(Gfn(1024)) == ept.walk(Gfn(2 * GIB)) == 0
    assert (ept.leaf_counts, ept.leaf_count, ept.page_count) == ((0, 1, 1), 2, GIB + 512)
    assert ept.table_count == 3, "root, one of level 2 and one of level 1: none of level 0"
    assert sizes(ept) == [(9, (512, 1024, 512)), (18, (GIB, 2 * GIB, GIB))]


@pytest.mark.parametrize("order", [9, 18])
@pytest.mark.parametrize(("gfn", "pfn"), [(1, 0), (0, 1), (256, 256)])
def test_a_large_leaf_that_is_not_aligned_must_never_be(order: int, gfn: int, pfn: int) -> None:
    with pytest.raises(AssertionError):
        Ept().map_large(Gfn(gfn), HostPfn(pfn), order)


def test_a_hole_in_1_gib_splits_no_further_than_needed() -> None:
    ept = Ept()
    ept.map_large(Gfn(GIB), HostPfn(3 * GIB), 18)
    ept.mark(Gfn(GIB + 5), ACCESSED | DIRTY)
    hole = GIB + 512 * 10 + 7
    assert ept.zap(Gfn(hole), Gfn(hole + 1)) == [(hole, 2 * GIB + hole, 1)]
    assert ept.leaf_counts == (511, 511, 0)
    assert (ept.split_count, ept.zapped_leaves) == (2, [1, 0, 0])
    assert ept.touched(Gfn(0), MAX_GFN_EPT) == [(GIB, hole), (hole + 1, 2 * GIB)], "flags are inherited"
    assert ept.walk(Gfn(hole + 1)) & (ACCESSED | DIRTY | LARGE) == ACCESSED | DIRTY
    assert ept.zap(Gfn(GIB), Gfn(2 * GIB)) == [
        (GIB, 3 * GIB, hole - GIB),
        (hole + 1, 2 * GIB + hole + 1, 2 * GIB - hole - 1),
    ]
    assert (ept.table_count, ept.zapped_leaves) == (1, [512, 511, 0])


def test_a_zap_of_whole_large_leaves_splits_nothing() -> None:
    ept = Ept()
    for block in range(4):
        ept.map_large(Gfn(block * 512), HostPfn(block * 512), 9)
    assert ept.zap(Gfn(512), Gfn(1536)) == [(512, 512, 1024)]
    assert (ept.split_count, ept.leaf_counts, ept.zapped_leaves) == (0, (0, 2, 0), [0, 2, 0])


def test_2_mib_are_one_leaf_again_when_mapped_again_and_keep_their_flags() -> None:
    ept = Ept()
    ept.map_large(Gfn(512), HostPfn(1024), 9)
    ept.zap(Gfn(600), Gfn(601))
    ept.mark(Gfn(700), DIRTY)
    ept.map_large(Gfn(512), HostPfn(1024), 9)
    assert (ept.leaf_counts, ept.merge_count, ept.table_count) == ((0, 1, 0), 1, 3)
    assert ept.walk(Gfn(600)) == 1024 + 88 << 12 | LEAF | LARGE | DIRTY


def test_1_gib_takes_the_place_of_both_smaller_sizes() -> None:
    ept = Ept()
    ept.map_large(Gfn(512), HostPfn(512), 9, accessed=True)
    ept.map_run(Gfn(1030), HostPfn(1030), 5)
    assert ept.table_count == 4
    ept.map_large(Gfn(0), HostPfn(0), 18)
    assert (ept.leaf_counts, ept.merge_count, ept.table_count) == ((0, 0, 1), 1, 2)
    assert ept.touched(Gfn(0), MAX_GFN_EPT) == [(0, GIB)]
    ept.map_run(Gfn(2 * GIB), HostPfn(7), 1000)
    assert list(ept.runs(Gfn(GIB), MAX_GFN_EPT)) == [(2 * GIB, 7, 1000)], "tables that came back are empty"


@pytest.mark.parametrize("order", [9, 18])
def test_a_large_leaf_over_another_frame_or_permission_must_never_be(order: int) -> None:
    ept = Ept()
    ept.map_run(Gfn(3), HostPfn(4), 1)
    with pytest.raises(AssertionError):
        ept.map_large(Gfn(0), HostPfn(0), order)
    ept.zap(Gfn(3), Gfn(4))
    ept.map_run(Gfn(3), HostPfn(3), 1, writable=False)
    with pytest.raises(AssertionError):
        ept.map_large(Gfn(0), HostPfn(0), order)
    assert list(ept.runs(Gfn(0), MAX_GFN_EPT)) == [(3, 3, 1)]


def test_4_kib_inside_a_large_leaf_are_there_already() -> None:
    ept = Ept()
    ept.map_large(Gfn(0), HostPfn(0), 18)
    ept.map_page(Gfn(7), HostPfn(7))
    ept.map_run(Gfn(GIB - 600), HostPfn(GIB - 600), 1200)
    assert ept.leaf_counts == (600, 0, 1)
    assert ept.walk(Gfn(0)) & ACCESSED, "the leaf was demanded by then"
    for count in (1, 600):
        with pytest.raises(AssertionError):
            ept.map_run(Gfn(100), HostPfn(101), count)
    assert sizes(ept) == [(18, (0, 0, GIB)), (0, (GIB, GIB, 600))]


def test_a_large_leaf_goes_as_a_whole_when_no_table_is_left() -> None:
    ept = Ept(max_tables=2 + 2)
    ept.map_large(Gfn(512), HostPfn(512), 9)
    assert ept.zap(Gfn(600), Gfn(601)) == [(512, 512, 512)]
    assert (ept.table_count, ept.leaf_count, ept.split_count) == (1, 0, 0)


def test_what_is_untouched_goes_and_leaves_no_split_where_it_was_touched() -> None:
    ept = Ept()
    ept.map_large(Gfn(0), HostPfn(0), 9, accessed=True)
    ept.map_large(Gfn(512), HostPfn(512), 9)
    assert ept.zap_untouched(Gfn(100), Gfn(700)) == [(512, 512, 188)]
    assert ept.leaf_counts == (324, 1, 0)


def test_a_tebibyte_is_a_thousand_entries() -> None:
    ept = Ept()
    for block in range(1024):
        ept.map_large(Gfn(block * GIB), HostPfn(block * GIB), 18)
    assert (ept.table_count, ept.page_count) == (3, 1 << 28)
    assert sizes(ept) == [(18, (0, 0, 1 << 28))]
    assert ept.first_missing(Gfn(5), MAX_GFN_EPT) == 1 << 28
    assert ept.lookup(np.array([(1 << 28) - 1, 1 << 28])).tolist() == [(1 << 28) - 1 << 12 | LEAF | LARGE, 0]
    assert ept.zap(Gfn(0), MAX_GFN_EPT) == [(0, 0, 1 << 28)]
    assert ept.table_count == 1


def test_leaves_are_split_at_all_edges_or_at_none() -> None:
    ept = Ept(max_tables=2 + 4)
    ept.map_large(Gfn(0), HostPfn(0), 18)
    ept.map_large(Gfn(1 << 18), HostPfn(1 << 18), 18)
    for edges in ([Gfn(5), Gfn((1 << 18) + 5)], [Gfn(5), Gfn(1000), Gfn((1 << 18) + 512)]):
        with pytest.raises(Refused) as refused:
            ept.split_at(edges)
        assert refused.value.errno == errno.ENOMEM
        assert (ept.leaf_counts, ept.split_count) == ((0, 0, 2), 0)
    ept.split_at([Gfn(512), Gfn(5), Gfn(2 << 18)])
    assert (ept.leaf_counts, ept.split_count) == ((512, 511, 1), 2)
    ept.split_at([Gfn(5), Gfn(7)])
    assert ept.split_count == 2
    assert list(ept.runs(Gfn(0), Gfn(2 << 18))) == [(Gfn(0), HostPfn(0), 2 << 18)]


@pytest.mark.parametrize("gfn", [0, 5, 511, 1 << 20, 3 << 27])
def test_what_is_mapped_next_is_found_across_any_hole(gfn: int) -> None:
    ept = Ept()
    assert ept.next_present(Gfn(0)) == MAX_GFN_EPT
    ept.map_page(Gfn(gfn), HostPfn(7))
    assert gfn & -512 <= ept.next_present(Gfn(0)) <= gfn
    assert ept.next_present(Gfn(gfn)) == gfn
    assert ept.next_present(Gfn((gfn | 511) + 1)) == MAX_GFN_EPT
