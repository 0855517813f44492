"""The EPT against a dict of entries: random operations on both, everything compared after each."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmsim.core.ept import ACCESSED, DIRTY, EXECUTE, MAX_GFN_EPT, MEMORY_TYPE_WB, READ, WRITE, Ept
from memfsd.uapi.errors import Refused

MAX_TABLES = 2 + 16
# Around the places where one table ends and the next begins, at each level, and the two ends.
CORNERS = [0, 512, 1024, 1 << 18, 1 << 27, (1 << 36) - 1200]
Model = dict[int, int]
Run = tuple[int, int, int]

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
operations = st.one_of(
    st.tuples(st.just("map"), gfns, counts, st.sampled_from([0, 1, 5]), st.booleans(), st.integers(0, 1400)),
    st.tuples(st.just("zap"), ranges),
    st.tuples(st.just("zap_untouched"), ranges),
    st.tuples(st.just("mark"), gfns, bits),
    st.tuples(st.just("mark_range"), ranges, bits),
)


def merged(model: Model, wanted: Callable[[int], bool] = lambda entry: True) -> list[Run]:
    runs: list[Run] = []
    for gfn in sorted(model):
        pfn = model[gfn] >> 12
        if not wanted(model[gfn]):
            continue
        if runs and (runs[-1][0] + runs[-1][2], runs[-1][1] + runs[-1][2]) == (gfn, pfn):
            runs[-1] = (runs[-1][0], runs[-1][1], runs[-1][2] + 1)
        else:
            runs.append((gfn, pfn, 1))
    return runs


def inside(model: Model, start: int, end: int) -> Model:
    return {gfn: entry for gfn, entry in model.items() if start <= gfn < end}


def tables(model: Model) -> set[tuple[int, int]]:
    return {(shift, gfn >> shift) for gfn in model for shift in (9, 18, 27)}


def apply(ept: Ept, model: Model, operation: tuple) -> None:  # type: ignore[type-arg]
    match operation:
        case "map", gfn, count, shift, writable, accessed:
            # Few distances between GFN and frame, so that runs meet; up to the first page with another one.
            pfn = gfn + shift
            pages = range(min(count, MAX_GFN_EPT - gfn))
            clash = next((i for i in pages if gfn + i in model and model[gfn + i] >> 12 != pfn + i), None)
            pages = pages[:clash]
            if not pages:
                with pytest.raises(AssertionError):
                    ept.map_run(gfn, pfn, 1)
                return
            accessed = min(accessed, len(pages))
            new = dict(model)
            for i in pages:
                flags = READ | EXECUTE | MEMORY_TYPE_WB | (WRITE if writable else 0)
                new[gfn + i] = model.get(gfn + i, pfn + i << 12 | flags) | (ACCESSED if i < accessed else 0)
            if len(tables(new)) > MAX_TABLES - 2:
                with pytest.raises(Refused):
                    ept.map_run(gfn, pfn, len(pages), writable=writable, accessed=accessed)
            else:
                ept.map_run(gfn, pfn, len(pages), writable=writable, accessed=accessed)
                model.update(new)
        case "zap", (start, end):
            removed = inside(model, start, end)
            assert ept.zap(start, end) == merged(removed)
            for gfn in removed:
                del model[gfn]
        case "zap_untouched", (start, end):
            removed = {g: e for g, e in inside(model, start, end).items() if not e & ACCESSED}
            assert ept.zap_untouched(start, end) == merged(removed)
            for gfn in removed:
                del model[gfn]
        case "mark", gfn, bits:
            ept.mark(gfn, bits)
            if gfn in model:
                model[gfn] |= bits
        case "mark_range", (start, end), bits:
            ept.mark_range(start, end, bits)
            for gfn in inside(model, start, end):
                model[gfn] |= bits
        case _:
            raise AssertionError(operation)


def compare(ept: Ept, model: Model, start: int, end: int) -> None:
    assert (ept.leaf_count, ept.table_count) == (len(model), 1 + len(tables(model)))
    assert list(ept.runs(0, MAX_GFN_EPT)) == merged(model)
    part = inside(model, start, end)
    assert list(ept.runs(start, end)) == merged(part)
    touched: list[tuple[int, int]] = []
    for gfn in sorted(part):
        if part[gfn] & ACCESSED:
            if touched and touched[-1][1] == gfn:
                touched[-1] = (touched[-1][0], gfn + 1)
            else:
                touched.append((gfn, gfn + 1))
    assert ept.touched(start, end) == touched
    missing = start
    while missing < end and missing in model:
        missing += 1
    assert ept.first_missing(start, end) == missing
    asked = [g for c in CORNERS for g in (c - 1, c, c + 7, c + 511) if g >= 0] + [start, *sorted(part)]
    expected = [model.get(gfn, 0) for gfn in asked]
    assert ept.lookup(np.array(asked)).tolist() == expected
    assert [ept.walk(gfn) for gfn in asked] == expected


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(st.tuples(operations, ranges), max_size=14))
def test_the_ept_agrees_with_a_dict(steps: list) -> None:  # type: ignore[type-arg]
    ept, model = Ept(MAX_TABLES), dict[int, int]()
    for operation, (start, end) in steps:
        apply(ept, model, operation)
        compare(ept, model, start, end)
    ept.zap(0, MAX_GFN_EPT)
    compare(ept, {}, 0, MAX_GFN_EPT)
