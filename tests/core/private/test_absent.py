"""Pages that have no frame and are no holes."""

import pytest

from memfsd.core.private.absent import AbsentPages, Lost


@pytest.fixture
def absent() -> AbsentPages:
    pages = AbsentPages()
    for pgoff in (7, 3, 100, 4):
        pages.put(pgoff, Lost.POISONED)
    return pages


@pytest.mark.parametrize(
    ("start", "end", "found"),
    [(0, 3, []), (0, 4, [3]), (3, 8, [3, 4, 7]), (4, 5, [4]), (8, 100, []), (0, 1 << 51, [3, 4, 7, 100])],
)
def test_pages_are_found_in_order_in_short_and_in_long_ranges(
    absent: AbsentPages, start: int, end: int, found: list[int]
) -> None:
    assert absent.within(start, end) == found
    assert absent.first(start, end) == (found[0] if found else end)
    assert absent.take(start, end) == [(pgoff, Lost.POISONED) for pgoff in found]
    assert absent.within(start, end) == []
    assert len(absent) == 4 - len(found)


def test_a_page_is_absent_for_one_reason(absent: AbsentPages) -> None:
    with pytest.raises(AssertionError):
        absent.put(7, Lost.POISONED)
    assert not AbsentPages(), "a fault tests for nothing absent by truth"
