"""Ranges with values, against a dict."""

import itertools
import random

from kvmsim.journal.spans import Spans, without


def test_spans_are_what_a_dict_of_pages_is() -> None:
    for seed in range(30):
        dice, spans, model = random.Random(seed), Spans[int](), dict[int, int]()
        for _ in range(60):
            start = dice.randrange(40)
            end = start + dice.randrange(1, 12)
            if dice.random() < 0.6:
                value = dice.randrange(3)
                spans.put(start, end, value)
                model.update(dict.fromkeys(range(start, end), value))
            else:
                gone = spans.cut(start, end)
                expected = {at: model.pop(at) for at in range(start, end) if at in model}
                assert {at: value for low, high, value in gone for at in range(low, high)} == expected
            whole = spans.within(0, 100)
            assert {at: value for low, high, value in whole for at in range(low, high)} == model
            assert all(a[1] < b[0] or a[2] != b[2] for a, b in itertools.pairwise(whole)), "joined where they meet"
            low, high = sorted(dice.sample(range(60), 2))
            part = spans.within(low, high)
            assert {at: v for a, b, v in part for at in range(a, b)} == {
                at: v for at, v in model.items() if low <= at < high
            }
        spans.clear()
        assert len(spans) == 0


def test_a_range_less_what_is_kept() -> None:
    assert without(0, 10, []) == [(0, 10)]
    assert without(0, 10, [(2, 4), (6, 7)]) == [(0, 2), (4, 6), (7, 10)]
    assert without(3, 10, [(0, 5), (9, 20)]) == [(5, 9)]
    assert without(3, 10, [(0, 20)]) == []
