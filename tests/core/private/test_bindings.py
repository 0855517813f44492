"""Which pages are at which GFNs, now and ever."""

import random
from itertools import pairwise

import pytest

from memfsd.core.private.bindings import Binding, Bindings
from memfsd.uapi.units import Gfn, Pgoff
from tests.support.core_store import refused


def bound(slot: int, start: int, count: int, gfn: int) -> Binding:
    return Binding(slot, Pgoff(start), Pgoff(start + count), Gfn(gfn))


def bind(table: Bindings, slot: int, start: int, count: int, gfn: int, *, fixed: bool = True) -> None:
    table.bind(bound(slot, start, count, gfn), fixed_gfn=fixed)


def test_a_page_is_found_at_its_gfn() -> None:
    table = Bindings()
    bind(table, 1, 10, 5, 0x100)
    bind(table, 2, 20, 5, 0x50)
    for page, gfn in ((10, 0x100), (14, 0x104), (20, 0x50), (24, 0x54)):
        found = table.find(page)
        assert found is not None
        assert found.gfn_of(page) == gfn
    assert [table.find(page) for page in (0, 9, 15, 19, 25)] == [None] * 5


@pytest.mark.parametrize(("start", "count"), [(10, 10), (15, 1), (5, 6), (19, 5), (0, 100), (10, 1)])
def test_a_bound_page_is_eexist_whichever_slot(start: int, count: int) -> None:
    table = Bindings()
    bind(table, 1, 10, 10, 0x10A)
    for slot in (1, 2):
        with refused("EEXIST", match="bound to slot 1: delete that slot first"):
            bind(table, slot, start, count, 0x100 + start)
    assert list(table) == [bound(1, 10, 10, 0x10A)]


@pytest.mark.parametrize(("gfn", "count"), [(0x100, 10), (0x105, 1), (0xFF, 2), (0x109, 50), (0, 0x200)])
def test_a_gfn_that_stands_for_another_page_is_eexist(gfn: int, count: int) -> None:
    """R4: one GFN, one page, whichever way round it is tried."""
    table = Bindings()
    bind(table, 1, 0, 10, 0x100)
    with refused("EEXIST", match="is bound to another page"):
        bind(table, 2, 1000, count, gfn)
    bind(table, 2, 1000, 10, 0x10A)
    table.unbind(0, 10)
    bind(table, 3, 2000, 10, 0x100)
    assert [(b.start, b.gfn) for b in table] == [(1000, 0x10A), (2000, 0x100)]


def test_many_bindings_end_in_steps_and_all_of_them_or_none() -> None:
    table = Bindings()
    for page in range(200):
        bind(table, page, page, 1, 0x1000 + 2 * page)
    with refused("EINVAL", match="not all bound"):
        table.unbind(0, 201)
    assert len(table) == 200
    at, steps = 0, 0
    while at < 200:
        assert table.reach(at, 200) <= at + 64
        at, steps = table.unbind(at, 200), steps + 1
        assert len(table) == 200 - at
    assert steps == 4
    bind(table, 1, 300, 1, 0x1000)


def test_neighbours_are_no_overlap() -> None:
    table = Bindings()
    bind(table, 1, 10, 10, 0x1000)
    bind(table, 2, 0, 10, 0x2000)
    bind(table, 3, 20, 10, 0x3000)
    assert [binding.slot for binding in table] == [2, 1, 3]


def test_pieces_of_one_slot_that_continue_are_one() -> None:
    """A hole that a slot's punch left is bound again: one piece, as in the VM."""
    table = Bindings()
    bind(table, 1, 0, 30, 0x100)
    table.unbind(10, 20)
    assert list(table) == [bound(1, 0, 10, 0x100), bound(1, 20, 10, 0x114)]
    bind(table, 1, 10, 10, 0x10A)
    assert list(table) == [bound(1, 0, 30, 0x100)]


def test_pieces_of_two_slots_or_of_two_distances_stay_two() -> None:
    table = Bindings()
    bind(table, 1, 0, 10, 0x100)
    bind(table, 2, 10, 10, 0x10A)
    bind(table, 2, 20, 10, 0x200)
    assert len(table) == 3


def test_unbinding_the_middle_leaves_both_sides_where_they_were() -> None:
    table = Bindings()
    bind(table, 7, 100, 10, 0x40)
    table.unbind(103, 105)
    assert list(table) == [bound(7, 100, 3, 0x40), bound(7, 105, 5, 0x45)]
    assert table.find(103) is None
    found = table.find(105)
    assert found is not None
    assert found.gfn_of(105) == 0x45


def test_unbinding_over_several_bindings_takes_just_its_range() -> None:
    table = Bindings()
    for slot in range(3):
        bind(table, slot, 10 * slot, 10, 0x1000 * slot)
    table.unbind(5, 25)
    assert list(table) == [bound(0, 0, 5, 0), bound(2, 25, 5, 0x2005)]


@pytest.mark.parametrize(("start", "end"), [(0, 5), (5, 15), (15, 25), (9, 11), (0, 100), (30, 31)])
def test_unbinding_what_is_not_all_bound_is_einval_and_takes_nothing(start: int, end: int) -> None:
    table = Bindings()
    bind(table, 1, 10, 10, 0x100)
    before = list(table)
    with refused("EINVAL", match="not all bound"):
        table.unbind(start, end)
    assert list(table) == before


# -- history


def test_a_page_bound_once_is_not_bound_at_another_gfn() -> None:
    """R4, `fixed_gfn`."""
    table = Bindings()
    bind(table, 1, 0, 10, 0x100)
    table.unbind(0, 10)
    with refused("EINVAL", match="page 0x5 was bound at GFN 0x105 before"):
        bind(table, 1, 5, 1, 0x106)
    assert len(table) == 0
    bind(table, 2, 5, 1, 0x105)


def test_part_of_a_range_with_a_past_is_enough_to_refuse_it_all() -> None:
    table = Bindings()
    bind(table, 1, 10, 2, 0x100)
    table.unbind(10, 12)
    with refused("EINVAL"):
        bind(table, 1, 0, 100, 0x200)
    bind(table, 1, 0, 10, 0x200)
    bind(table, 1, 12, 10, 0x300)


def test_the_past_outlives_unbind_and_clear() -> None:
    table = Bindings()
    bind(table, 1, 0, 10, 0x100)
    table.clear()
    assert len(table) == 0
    with refused("EINVAL"):
        bind(table, 1, 0, 1, 0)
    bind(table, 1, 0, 1, 0x100)


def test_without_fixed_gfn_a_page_moves_freely() -> None:
    table = Bindings()
    bind(table, 1, 0, 10, 0x100, fixed=False)
    table.unbind(0, 10)
    bind(table, 1, 0, 10, 0x200, fixed=False)


@pytest.mark.parametrize("start", [0, 8, 12, 30])
def test_a_binding_without_a_past_is_at_a_gfn_that_nothing_fixed(start: int) -> None:
    """Before the first range of the past, across its end, and after it."""
    table = Bindings()
    assert table.moved() is None
    bind(table, 1, 10, 10, 0x110)
    assert table.moved() is None
    stray = bound(2, start, 10, 0x100 + start)
    table._pages.clear()
    table._pages.put(start, start + 10, (2, 0x100))
    assert table.moved() == stray


def test_without_any_past_every_binding_has_moved() -> None:
    table = Bindings()
    bind(table, 1, 4, 4, 0x104, fixed=False)
    assert table.moved() == bound(1, 4, 4, 0x104)


def test_a_refused_binding_leaves_no_past() -> None:
    table = Bindings()
    bind(table, 1, 0, 10, 0x100)
    with refused("EEXIST"):
        bind(table, 1, 5, 20, 0x200)
    bind(table, 1, 15, 10, 0x300)


def test_bindings_of_a_file_are_limited() -> None:
    table = Bindings(limit=2)
    bind(table, 1, 0, 1, 0)
    bind(table, 2, 10, 1, 100)
    with refused("ENOSPC", match="2 bindings"):
        bind(table, 3, 20, 1, 200)


def test_the_past_is_limited() -> None:
    table = Bindings(limit=1)
    for page in range(4):
        bind(table, 1, 2 * page, 1, 100 * page)
        table.clear()
    with refused("ENOSPC", match="history is full"):
        bind(table, 1, 50, 1, 7)
    bind(table, 1, 2, 1, 100)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("fixed", [True, False])
def test_random_binding_and_unbinding_agrees_with_a_dict(seed: int, fixed: bool) -> None:
    """now: page -> (slot, gfn). ever: page -> gfn."""
    rng = random.Random(seed)
    table = Bindings()
    now: dict[int, tuple[int, int]] = {}
    ever: dict[int, int] = {}
    seen = set()
    for _ in range(400):
        start, count = rng.randrange(40), rng.randrange(1, 9)
        pages = range(start, start + count)
        if rng.random() < 0.6:
            slot, distance = rng.randrange(3), rng.choice([100, 100, 100, 500])
            expected = None
            if any(page in now for page in pages):
                expected = "EEXIST"
            elif fixed and any(ever.get(page, page + distance) != page + distance for page in pages):
                expected = "EINVAL"
            seen.add(expected)
            if expected:
                with refused(expected):
                    bind(table, slot, start, count, start + distance, fixed=fixed)
            else:
                bind(table, slot, start, count, start + distance, fixed=fixed)
                now.update((page, (slot, page + distance)) for page in pages)
                ever.update((page, page + distance) for page in pages)
        elif all(page in now for page in pages):
            table.unbind(start, start + count)
            for page in pages:
                del now[page]
        else:
            with refused("EINVAL"):
                table.unbind(start, start + count)
        for page in range(50):
            found = table.find(page)
            assert (None if found is None else (found.slot, found.gfn_of(page))) == now.get(page)
        ordered = list(table)
        assert all(a.end <= b.start for a, b in pairwise(ordered))
        probe = rng.randrange(50)
        assert table.overlapping(probe, probe + 5) == [b for b in ordered if b.start < probe + 5 and b.end > probe]
    assert seen == ({None, "EEXIST", "EINVAL"} if fixed else {None, "EEXIST"})


def test_where_a_binding_ends_is_right_after_every_change() -> None:
    """The last answer is remembered, as long as it is true."""
    table = Bindings()
    bind(table, 1, 10, 10, 0x10A)
    assert (table.bound_until(15), table.bound_until(16), table.bound_until(20)) == (20, 20, None)
    table.unbind(14, 16)
    assert [table.bound_until(page) for page in (13, 14, 16)] == [14, None, 20]
    bind(table, 1, 14, 2, 0x10E)
    assert table.bound_until(13) == 20, "one binding again"
    assert table.copy().bound_until(13) == 20
    table.clear()
    assert table.bound_until(13) is None
