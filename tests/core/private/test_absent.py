"""Pages that have no frame and are no holes."""

import pytest

from memfsd.core.memory.page_table import FilePages
from memfsd.core.memory.swap_slots import SwapSlots
from memfsd.core.private.absent import AbsentPages, Lost, give_back

END = 1 << 51


@pytest.fixture
def absent() -> AbsentPages:
    """Pages 3, 4 and 100 failed, 7 is swapped out."""
    slots = SwapSlots(8)
    pages = AbsentPages(slots)
    for start, end in ((100, 101), (3, 5)):
        pages.put_poisoned(start, end)
    pages.put_swapped(7, slots.alloc())
    return pages


def pages_of(absent: AbsentPages, start: int, end: int) -> list[int]:
    return [page for low, high, _ in absent.runs(start, end) for page in range(low, high)]


@pytest.mark.parametrize(
    ("start", "end", "found"),
    [(0, 3, []), (0, 4, [3]), (3, 8, [3, 4, 7]), (4, 5, [4]), (8, 100, []), (0, END, [3, 4, 7, 100])],
)
def test_pages_are_found_in_order_in_short_and_in_long_ranges(
    absent: AbsentPages, start: int, end: int, found: list[int]
) -> None:
    assert pages_of(absent, start, end) == found
    assert absent.first(start, end) == (found[0] if found else end)
    assert absent.count_some(start, end, 99) == (len(found), end)
    present = [page for low, high in absent.gaps(start, min(end, 200)) for page in range(low, high)]
    assert present == [page for page in range(start, min(end, 200)) if page not in found]
    absent.take(start, end)
    assert pages_of(absent, start, end) == []
    assert absent.count == len(pages_of(absent, 0, END)) == 4 - len(found)


def test_why_a_page_is_absent(absent: AbsentPages) -> None:
    assert list(absent.runs(0, END)) == [(3, 5, Lost.POISONED), (7, 8, None), (100, 101, Lost.POISONED)]
    assert [absent.is_poisoned(page) for page in (4, 5, 7)] == [True, False, False]
    assert [absent.slot(page) for page in (4, 5, 7)] == [None, None, 0]
    assert absent.swapped_count == 1


def test_a_page_is_absent_for_one_reason(absent: AbsentPages) -> None:
    for start in (4, 6):
        with pytest.raises(AssertionError):
            absent.put_poisoned(start, 8)
    for page in (4, 7):
        with pytest.raises(AssertionError):
            absent.put_swapped(page, 3)
    assert not AbsentPages(), "a fault tests for nothing absent by its count"


def swapped(count: int, apart: int) -> tuple[AbsentPages, SwapSlots]:
    slots = SwapSlots(count)
    absent = AbsentPages(slots)
    for number in reversed(range(count)):
        absent.put_swapped(number * apart, slots.alloc())
    return absent, slots


@pytest.mark.parametrize("apart", [1, 2, 600])
def test_pages_that_are_swapped_out_are_taken_in_steps(apart: int) -> None:
    absent, slots = swapped(10_000, apart)
    at = steps = 0
    while at < 10_000 * apart:
        reached, used = absent.reach(at, 10_000 * apart), slots.used
        assert at < reached
        absent.take(at, reached)
        assert used - slots.used <= 1024
        at, steps = reached, steps + 1
    assert (slots.used, absent.count, steps > 2) == (0, 0, True)


@pytest.mark.parametrize("apart", [1, 2, 600])
def test_the_slots_of_a_file_that_ends_are_given_back_in_steps(apart: int) -> None:
    absent, slots = swapped(10_000, apart)
    table, used, steps = absent.detach(), slots.used, 1
    assert (absent.count, used, table.page_count) == (0, 10_000, 10_000)
    while give_back(slots, table):
        assert 0 < used - slots.used <= 1024
        used, steps = slots.used, steps + 1
    assert (slots.used, steps > 2) == (0, True)


def test_slots_that_lie_together_are_given_back_in_steps_too() -> None:
    slots, table = SwapSlots(20_000), FilePages()
    table.map_run(0, 0, 20_000)
    for _ in range(20_000):
        slots.alloc()
    assert give_back(slots, table)
    assert slots.used == 20_000 - 1024


def test_pages_in_any_slots_are_runs_of_some_length() -> None:
    """So that nobody looks at very many pages to find one run."""
    absent, _ = swapped(1000, 1)
    lengths = [high - low for low, high, _ in absent.runs(0, 1000)]
    assert (sum(lengths), max(lengths)) == (1000, 64)
    assert absent.swapped_from(5, 3) == [5, 6, 7]
    assert absent.swapped_run(998, 9) == [1, 0]
