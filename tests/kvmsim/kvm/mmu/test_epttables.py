"""The tree of tables: made when a leaf needs them, all or none, and given back with the last one."""

import pytest

from kvmsim.kvm.mmu.ept import Ept
from kvmsim.kvm.mmu.epttables import SPAN_WORDS
from memfsd.uapi.errors import Refused
from memfsd.uapi.units import Gfn, HostPfn

REGION, LARGEST = 1 << 9, 1 << 18


def test_an_empty_tree_is_its_root() -> None:
    assert Ept().table_count == 1


@pytest.mark.parametrize(
    ("gfns", "tables"),
    [
        ([0], 4),
        ([0, REGION - 1], 4),
        ([0, REGION], 5),
        ([0, LARGEST], 6),
        ([0, 1 << 27], 7),
        ([0, 1, REGION, LARGEST, 1 << 27, (1 << 36) - 1], 13),
    ],
)
def test_a_leaf_has_a_table_on_each_level_and_neighbours_share_them(gfns: list[int], tables: int) -> None:
    ept = Ept()
    for number, gfn in enumerate(gfns):
        ept.map_run(Gfn(gfn), HostPfn(number), 1)
    assert ept.table_count == tables
    for gfn in gfns:
        ept.zap(Gfn(gfn), Gfn(gfn + 1))
    assert (ept.table_count, ept.leaf_count) == (1, 0)


def test_tables_that_do_not_suffice_are_not_made_at_all() -> None:
    ept = Ept(max_tables=2 + 4)  # a path of three, and one more
    ept.map_run(Gfn(0), HostPfn(0), 1)
    with pytest.raises(Refused, match="need 2 more EPT tables and 1 of 6 are free: map fewer pages"):
        ept.map_run(Gfn(REGION), HostPfn(REGION), 2 * REGION)
    assert (ept.table_count, ept.leaf_count) == (4, 1)
    ept.map_run(Gfn(REGION), HostPfn(REGION), REGION)
    assert (ept.table_count, ept.leaf_count) == (5, 1 + REGION)


def test_a_table_that_was_given_back_is_the_next_one_and_is_empty() -> None:
    ept = Ept(max_tables=2 + 3)
    for gfn in (0, LARGEST, 1 << 27):
        ept.map_run(Gfn(gfn + 7), HostPfn(99), 1)
        assert [ept.walk(Gfn(gfn + at)) != 0 for at in (6, 7, 8)] == [False, True, False]
        ept.zap(Gfn(gfn), Gfn(gfn + REGION))


def test_a_split_leaf_keeps_frames_and_counts_and_takes_one_table() -> None:
    ept = Ept()
    ept.map_large(Gfn(0), HostPfn(512), 9)
    tables = ept.table_count
    ept.zap(Gfn(5), Gfn(6))
    assert (ept.table_count, ept.split_count, ept.leaf_count) == (tables + 1, 1, 511)
    assert list(ept.runs(Gfn(0), Gfn(512))) == [(0, 512, 5), (6, 518, 506)]


def test_spans_are_bounded_and_none_is_left_out() -> None:
    ept = Ept()
    ept.map_run(Gfn(3), HostPfn(3), SPAN_WORDS + 10)
    spans = list(ept._spans(Gfn(0), Gfn(SPAN_WORDS + 1024)))
    assert [high - low for _, low, high, _ in spans] == [SPAN_WORDS, REGION]
    assert [gfn for gfn, _, _, _ in spans] == [0, SPAN_WORDS]
    assert list(ept.runs(Gfn(0), Gfn(1 << 36))) == [(3, 3, SPAN_WORDS + 10)]
