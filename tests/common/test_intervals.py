"""Intervals against plain sets and dicts."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memfsd.common.intervals import IntervalMap, IntervalSet, subtract, within

SPACE = 30
spans = st.tuples(st.integers(0, SPACE - 1), st.integers(1, 8)).map(lambda span: (span[0], span[0] + span[1]))
Span = tuple[int, int]


def members(intervals: list[Span]) -> set[int]:
    return {at for start, end in intervals for at in range(start, end)}


@given(steps=st.lists(st.tuples(st.booleans(), spans), max_size=30), asked=spans)
def test_a_set_is_kept_in_intervals_that_never_touch(steps: list[tuple[bool, Span]], asked: Span) -> None:
    real, model = IntervalSet(), set[int]()
    for adds, (start, end) in steps:
        if adds:
            real.add(start, end)
            model |= set(range(start, end))
        else:
            real.discard(start, end)
            model -= set(range(start, end))
        held = real.within(0, SPACE + 10)
        assert members(held) == model
        assert len(real) == len(held)
        assert all(end < start for (_, end), (start, _) in itertools.pairwise(held)), "touching intervals are joined"
    inside = real.within(*asked)
    assert members(inside) == model & set(range(*asked))
    assert real.first(*asked) == (inside[0] if inside else None)
    real.clear()
    assert len(real) == 0


@given(steps=st.lists(st.tuples(st.one_of(st.none(), st.integers(0, 2)), spans), max_size=40), asked=spans)
def test_put_and_cut_are_those_of_a_dict(steps: list[tuple[int | None, Span]], asked: Span) -> None:
    real, model = IntervalMap[int](), dict[int, int]()
    for value, (start, end) in steps:
        if value is None:
            gone = real.cut(start, end)
            expected = {at: model.pop(at) for at in range(start, end) if at in model}
            assert {at: was for low, high, was in gone for at in range(low, high)} == expected
        else:
            real.put(start, end, value)
            model |= dict.fromkeys(range(start, end), value)
        whole = list(real)
        assert {at: was for low, high, was in whole for at in range(low, high)} == model
        assert all(a[1] < b[0] or a[2] != b[2] for a, b in itertools.pairwise(whole)), "joined where they meet"
    part = {at: was for low, high, was in real.within(*asked) for at in range(low, high)}
    assert part == {at: was for at, was in model.items() if asked[0] <= at < asked[1]}
    assert real.covers(*asked) == (len(part) == asked[1] - asked[0])
    met = real.overlapping(*asked)
    assert real.first_other(*asked, 1) == next((found for found in met if found[2] != 1), None)
    assert real.reach(*asked, 1) == (min(met[0][1], asked[1]) if len(met) > 1 else asked[1])
    real.clear()
    assert len(real) == 0
    assert list(real) == []


@given(steps=st.lists(st.tuples(st.booleans(), spans), max_size=30), asked=spans)
def test_what_was_added_keeps_its_identity(steps: list[tuple[bool, Span]], asked: Span) -> None:
    real, model = IntervalMap[str](), dict[int, tuple[int, int, str]]()
    for adds, (start, end) in steps:
        free = not any(low < end and high > start for low, high, _ in model.values())
        if adds and free:
            real.add(start, end, "one value")
            model[start] = (start, end, "one value")
        elif adds:
            with pytest.raises(AssertionError):
                real.add(start, end, "over another")
        elif start in model:
            assert real.remove(start) == model.pop(start)
        assert len(real) == len(model)
    for at in range(SPACE + 10):
        holding = [found for found in model.values() if found[0] <= at < found[1]]
        assert real.find(at) == (holding[0] if holding else None)
        assert real.next_start(at) == min((start for start in model if start > at), default=None)
        if not holding:
            assert real.previous_end(at) == max((end for _, end, _ in model.values() if end <= at), default=None)
    inside = sorted(found for found in model.values() if found[0] < asked[1] and found[1] > asked[0])
    assert real.overlapping(*asked) == inside
    assert real.first(*asked) == (inside[0] if inside else None)


def test_removing_what_is_not_there_is_a_mistake() -> None:
    real = IntervalMap[int]()
    real.add(4, 8, 0)
    with pytest.raises(AssertionError):
        real.remove(3)


@given(whole=spans, taken=st.lists(spans, max_size=8))
def test_what_is_left_of_an_interval(whole: Span, taken: list[Span]) -> None:
    rest = subtract(*whole, taken)
    assert members(rest) == set(range(*whole)) - members(taken)
    assert all(end < start for (_, end), (start, _) in itertools.pairwise(rest))


def test_nothing_is_left_of_nothing_and_nonsense_takes_nothing() -> None:
    assert subtract(5, 5, []) == []
    assert subtract(0, 10, [(7, 3)]) == [(0, 10)]


@given(taken=st.lists(spans, max_size=8), asked=spans)
def test_the_intervals_that_meet_another_one(taken: list[Span], asked: Span) -> None:
    ordered = subtract(-1, SPACE + 20, taken)
    met = [(low, high) for low, high in ordered if low < asked[1] and high > asked[0]]
    assert list(within(ordered, *asked)) == (met if asked[0] < asked[1] else [])
