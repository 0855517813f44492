"""kvmsim.core.ranges and segments against plain sets and dicts."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from kvmsim.core.ranges import RangeSet
from kvmsim.core.segments import SegmentIndex

SPACE = 30
spans = st.tuples(st.integers(0, SPACE - 1), st.integers(1, 8)).map(lambda span: (span[0], span[0] + span[1]))


def pages(ranges: list[tuple[int, int]]) -> set[int]:
    return {page for start, end in ranges for page in range(start, end)}


@given(steps=st.lists(st.tuples(st.booleans(), spans), max_size=30), asked=spans)
def test_a_range_set_is_a_set_of_pages_kept_in_few_ranges(
    steps: list[tuple[bool, tuple[int, int]]], asked: tuple[int, int]
) -> None:
    real, model = RangeSet(), set[int]()
    for adds, (start, end) in steps:
        if adds:
            real.add(start, end)
            model |= set(range(start, end))
        else:
            real.discard(start, end)
            model -= set(range(start, end))
        held = real.ranges(0, SPACE + 10)
        assert pages(held) == model
        assert len(real) == len(held)
        assert all(end < start for (_, end), (start, _) in itertools.pairwise(held)), "touching ranges are joined"
    assert pages(real.ranges(*asked)) == model & set(range(*asked))


@given(steps=st.lists(st.tuples(st.booleans(), spans), max_size=30), asked=spans)
def test_a_segment_index_finds_by_page_and_by_range(
    steps: list[tuple[bool, tuple[int, int]]], asked: tuple[int, int]
) -> None:
    real, model = SegmentIndex[str](), dict[int, tuple[str, int, int]]()
    for adds, (start, end) in steps:
        overlapping = [segment for segment in model.values() if segment[1] < end and segment[2] > start]
        if adds and not overlapping:
            real.add(f"{start}", start, end)
            model[start] = (f"{start}", start, end)
        elif not adds and start in model:
            real.remove(start)
            del model[start]
        assert len(real) == len(model)
    for page in range(SPACE):
        holding = [segment for segment in model.values() if segment[1] <= page < segment[2]]
        assert real.find(page) == (holding[0] if holding else None)
        assert real.next_start(page) == min((start for start in model if start > page), default=None)
    inside = sorted((s for s in model.values() if s[1] < asked[1] and s[2] > asked[0]), key=lambda s: s[1])
    assert list(real.overlapping(*asked)) == inside
