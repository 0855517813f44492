"""The EPT against a dict of leaves: random operations on both, everything compared after each."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmsim.kvm.mmu.ept import ACCESSED, DIRTY, EXECUTE, LARGE, MAX_GFN_EPT, MEMORY_TYPE_WB, READ, WRITE, Ept
from memfsd.uapi.errors import Refused
from memfsd.uapi.units import Gfn, HostPfn

# Around the places where one table ends and the next begins, at each level, and the two ends.
CORNERS = [0, 512, 1024, 1 << 18, 1 << 27, (1 << 36) - 1200]
MAX_TABLES = 2 + 16
ORDERS = (0, 9, 18)
Model = dict[int, tuple[int, int]]
"""First GFN of a leaf -> (order, entry)."""
Run = tuple[int, int, int]

Steps = st.SearchStrategy[list[tuple[tuple[Any, ...], tuple[int, int]]]]


def steps() -> Steps:
    """(operation, range to compare) around the corners."""
    gfns = st.builds(
        lambda corner, offset: min(max(corner + offset, 0), MAX_GFN_EPT - 1),
        st.sampled_from(CORNERS),
        st.integers(-600, 1199),
    )
    counts = st.one_of(st.integers(1, 40), st.integers(1, 1400))
    ranges = st.one_of(
        st.just((0, MAX_GFN_EPT)),
        st.builds(lambda gfn, count: (gfn, min(gfn + count, MAX_GFN_EPT)), gfns, counts),
        st.builds(lambda a, b: (min(a, b), max(a, b)), gfns, gfns),
    )
    bits = st.sampled_from([ACCESSED, DIRTY, ACCESSED | DIRTY])
    # Few distances between GFN and frame, so that runs meet and leaves merge.
    distances = st.sampled_from([0, 0, 0, 1, 512, 1 << 18])
    mostly = st.sampled_from([True, True, True, False])
    leaves = st.tuples(st.just("map_large"), gfns, st.sampled_from([9, 9, 18]), mostly, mostly, st.booleans())
    operations = st.one_of(
        st.tuples(st.just("map"), gfns, counts, distances, mostly, st.integers(0, 1400)),
        st.tuples(st.just("zap"), ranges),
        st.tuples(st.just("zap_untouched"), ranges),
        st.tuples(st.just("mark"), gfns, bits),
        st.tuples(st.just("mark_range"), ranges, bits),
        leaves,
    )
    return st.lists(st.tuples(operations, ranges), max_size=14)


def leaf_over(model: Model, gfn: int) -> int | None:
    """The first GFN of the leaf that maps gfn."""
    for order in ORDERS:
        first = gfn & -(1 << order)
        if first in model and model[first][0] >= order:
            return first
    return None


def entry_of(model: Model, gfn: int) -> int:
    first = leaf_over(model, gfn)
    return 0 if first is None else model[first][1] + (gfn - first << 12)


def inside(model: Model, start: int, end: int) -> list[int]:
    """Leaves that map a page of [start, end), in order."""
    if start == end:
        return []
    return [first for first in sorted(model) if first < end and first + (1 << model[first][0]) > start]


def merged(
    model: Model, start: int = 0, end: int = MAX_GFN_EPT, wanted: Callable[[int], bool] = lambda entry: True
) -> list[Run]:
    runs: list[Run] = []
    for first in inside(model, start, end):
        order, entry = model[first]
        if not wanted(entry):
            continue
        low, high = max(first, start), min(first + (1 << order), end)
        pfn = (entry >> 12) + low - first
        if runs and (runs[-1][0] + runs[-1][2], runs[-1][1] + runs[-1][2]) == (low, pfn):
            runs[-1] = (runs[-1][0], runs[-1][1], runs[-1][2] + high - low)
        else:
            runs.append((low, pfn, high - low))
    return runs


def tables(model: Model) -> set[tuple[int, int]]:
    return {(shift, gfn >> shift) for gfn, (order, _) in model.items() for shift in (9, 18, 27) if shift > order}


def free_tables(ept: Ept, model: Model) -> int:
    return ept._max_tables - 2 - len(tables(model))


def split(model: Model, gfn: int, free: int) -> tuple[int, Model]:
    """A leaf begins at gfn if one reached over it, in the smallest number of steps; tables left, and what had to go."""
    first = leaf_over(model, gfn) if gfn < MAX_GFN_EPT else None
    while first is not None and first != gfn:
        order, entry = model.pop(first)
        if not free:
            return free, {first: (order, entry)}
        free -= 1
        below = order - 9
        if not below:
            entry &= ~LARGE
        for i in range(512):
            model[first + (i << below)] = (below, entry + (i << below + 12))
        first = leaf_over(model, gfn)
    return free, {}


def remove(ept: Ept, model: Model, start: int, end: int, wanted: Callable[[int], bool]) -> list[Run]:
    removed: Model = {}
    free = free_tables(ept, model)
    for edge in (start, end):
        if wanted(entry_of(model, edge) if edge < MAX_GFN_EPT else 0) and start < end:
            free, gone = split(model, edge, free)
            removed |= gone
    for first in inside(model, start, end):
        if wanted(model[first][1]):
            removed[first] = model.pop(first)
    return merged(removed)


def map_run(ept: Ept, model: Model, gfn: int, count: int, distance: int, writable: bool, accessed: int) -> None:
    """Up to the first page with another frame."""
    pfn = gfn + distance
    pages = range(min(count, MAX_GFN_EPT - gfn))
    clash = next((i for i in pages if (found := entry_of(model, gfn + i)) and found >> 12 != pfn + i), None)
    pages = pages[:clash]
    if not pages:
        with pytest.raises(AssertionError):
            ept.map_run(Gfn(gfn), HostPfn(pfn), 1)
        return
    accessed = min(accessed, len(pages))
    new = dict(model)
    flags = READ | EXECUTE | MEMORY_TYPE_WB | (WRITE if writable else 0)
    for i in pages:
        first = leaf_over(new, gfn + i)
        if first is None:
            first = gfn + i
            new[first] = (0, pfn + i << 12 | flags)
        order, entry = new[first]
        new[first] = (order, entry | (ACCESSED if i < accessed else 0))
    if free_tables(ept, new) < 0:
        with pytest.raises(Refused):
            ept.map_run(Gfn(gfn), HostPfn(pfn), len(pages), writable=writable, accessed=accessed)
    else:
        ept.map_run(Gfn(gfn), HostPfn(pfn), len(pages), writable=writable, accessed=accessed)
        model.update(new)


def map_large(ept: Ept, model: Model, gfn: int, order: int, near: bool, writable: bool, accessed: bool) -> None:
    gfn &= -(1 << order)
    pfn = gfn + (0 if near else 1 << order)
    flags = READ | EXECUTE | MEMORY_TYPE_WB | LARGE | (WRITE if writable else 0) | (ACCESSED if accessed else 0)
    there = inside(model, gfn, gfn + (1 << order))
    larger = len(there) == 1 and model[there[0]][0] >= order
    clash = any(model[first][1] >> 12 != pfn + first - gfn for first in there)
    if not larger:
        clash = clash or any((model[first][1] ^ flags) & WRITE for first in there)
    if clash:
        with pytest.raises(AssertionError):
            ept.map_large(Gfn(gfn), HostPfn(pfn), order, writable=writable, accessed=accessed)
        return
    new = dict(model)
    if larger:
        was, entry = new[there[0]]
        new[there[0]] = (was, entry | flags & ACCESSED)
    else:
        for first in there:
            flags |= new.pop(first)[1] & (ACCESSED | DIRTY)
        new[gfn] = (order, pfn << 12 | flags)
    if free_tables(ept, new) < 0:
        with pytest.raises(Refused):
            ept.map_large(Gfn(gfn), HostPfn(pfn), order, writable=writable, accessed=accessed)
        return
    ept.map_large(Gfn(gfn), HostPfn(pfn), order, writable=writable, accessed=accessed)
    model.clear()
    model.update(new)


def apply(ept: Ept, model: Model, operation: tuple[Any, ...]) -> None:
    match operation:
        case "map", gfn, count, distance, writable, accessed:
            map_run(ept, model, gfn, count, distance, writable, accessed)
        case "map_large", gfn, order, near, writable, accessed:
            map_large(ept, model, gfn, order, near, writable, accessed)
        case "zap", (start, end):
            assert ept.zap(start, end) == remove(ept, model, start, end, lambda entry: True)
        case "zap_untouched", (start, end):
            expected = remove(ept, model, start, end, lambda entry: not entry & ACCESSED)
            assert ept.zap_untouched(start, end) == expected
        case "mark", gfn, bits:
            ept.mark(gfn, bits)
            first = leaf_over(model, gfn)
            if first is not None:
                model[first] = (model[first][0], model[first][1] | bits)
        case "mark_range", (start, end), bits:
            ept.mark_range(start, end, bits)
            for first in inside(model, start, end):
                model[first] = (model[first][0], model[first][1] | bits)
        case _:
            raise AssertionError(operation)


def compare(ept: Ept, model: Model, start: int, end: int) -> None:
    sizes = [order for order, _ in model.values()]
    assert ept.leaf_counts == tuple(sizes.count(order) for order in ORDERS)
    assert (ept.page_count, ept.table_count) == (sum(1 << order for order in sizes), 1 + len(tables(model)))
    assert list(ept.runs(Gfn(0), MAX_GFN_EPT)) == merged(model)
    assert list(ept.runs(Gfn(start), Gfn(end))) == merged(model, start, end)
    by_size = [
        [run for order in ORDERS for run in merged({g: m for g, m in model.items() if m[0] == order}, start, end)],
        [run for order in ORDERS for o, run in ept.leaf_runs(Gfn(start), Gfn(end)) if o == order],
    ]
    assert by_size[0] == by_size[1]
    touched: list[tuple[int, int]] = []
    for gfn, _, count in merged(model, start, end, lambda entry: bool(entry & ACCESSED)):
        if touched and touched[-1][1] == gfn:
            touched[-1] = (touched[-1][0], gfn + count)
        else:
            touched.append((gfn, gfn + count))
    assert ept.touched(Gfn(start), Gfn(end)) == touched
    missing = start
    for first in inside(model, start, end):
        if first > missing:
            break
        missing = min(first + (1 << model[first][0]), end)
    assert ept.first_missing(Gfn(start), Gfn(end)) == missing
    asked = [g for c in CORNERS for g in (c - 1, c, c + 7, c + 511) if g >= 0] + [start, *inside(model, start, end)]
    expected = [entry_of(model, gfn) for gfn in asked]
    assert ept.lookup(np.array(asked)).tolist() == expected
    assert [ept.walk(Gfn(gfn)) for gfn in asked] == expected


@settings(max_examples=150, deadline=None, derandomize=True)
@given(steps())
def test_the_ept_agrees_with_a_dict(done: list[tuple[tuple[Any, ...], tuple[int, int]]]) -> None:
    ept, model = Ept(MAX_TABLES), Model()
    for operation, (start, end) in done:
        apply(ept, model, operation)
        compare(ept, model, start, end)
    ept.zap(Gfn(0), MAX_GFN_EPT)
    compare(ept, {}, 0, MAX_GFN_EPT)


@pytest.mark.parametrize("max_tables", [6, 7, 9, 18])
def test_large_leaves_agree_with_a_dict(max_tables: int) -> None:
    """In few places, so that they meet, split and merge; with few tables, so that there is none left to split into."""
    ept, model = Ept(max_tables), Model()
    chosen = random.Random(max_tables)
    for _ in range(400):
        gfn = chosen.choice([0, 512, 1 << 18]) + chosen.choice([0, 1, 100, 511])
        end = chosen.choice([gfn + 1, gfn + 1, gfn + 5, gfn + 512, (gfn | 511) + 1, (gfn | 1023) + 1, 1 << 19])
        near, accessed = chosen.random() < 0.9, chosen.random() < 0.5
        operation: tuple[Any, ...] = chosen.choice(
            [
                ("map_large", gfn, chosen.choice([9, 9, 18]), near, True, accessed),
                ("map_large", gfn, chosen.choice([9, 9, 18]), near, chosen.random() < 0.9, accessed),
                ("map", gfn, chosen.choice([1, 30, 512]), 0 if near else 512, True, int(accessed)),
                ("zap", (gfn, end)),
                ("zap_untouched", (gfn, end)),
                ("mark", gfn, chosen.choice([ACCESSED, DIRTY])),
                ("mark_range", (gfn, end), DIRTY),
            ]
        )
        apply(ept, model, operation)
        compare(ept, model, gfn, end)
    assert ept.split_count and ept.merge_count and all(ept.zapped_leaves)
