"""Large pages in a page table: whole, split, empty, and what a range cuts."""

import pytest

from memfsd.core.memory.large import count_cut, is_empty, place_of, whole_order
from memfsd.core.memory.page_table import FilePages
from memfsd.uapi.units import ORDER_1G, ORDER_2M

MIB2 = 512
GIB = 1 << 18


def whole(order: int = ORDER_2M, pages: int = 2) -> FilePages:
    """A file of so many large pages, in frames from the third one on."""
    table = FilePages()
    for number in range(pages):
        table.map_run(number << order, number + 3 << order, 1 << order)
    return table


def test_a_page_is_whole_while_its_frames_lie_together_and_aligned() -> None:
    table = whole()
    assert [whole_order(table, page, ORDER_2M) for page in (0, 511, 512)] == [ORDER_2M] * 3
    table.unmap(5, 6)
    assert [whole_order(table, page, ORDER_2M) for page in (0, 5, 511, 512)] == [0, 0, 0, ORDER_2M]
    table.map_run(5, 9000, 1)
    assert whole_order(table, 0, ORDER_2M) == 0
    table.unmap(5, 6)
    table.map_run(5, 3 * MIB2 + 5, 1)
    assert whole_order(table, 0, ORDER_2M) == ORDER_2M


def test_contiguous_frames_that_are_not_aligned_are_no_whole_page() -> None:
    table = FilePages()
    table.map_run(0, 7, MIB2)
    assert whole_order(table, 0, ORDER_2M) == 0


def test_the_rest_of_a_split_page_of_1_gib_is_whole_in_2_mib() -> None:
    table = whole(ORDER_1G, 1)
    assert whole_order(table, 77, ORDER_1G) == ORDER_1G
    table.unmap(GIB - 1, GIB)
    assert (whole_order(table, 77, ORDER_1G), whole_order(table, GIB - 2, ORDER_1G)) == (ORDER_2M, 0)


def test_a_page_is_empty_when_no_part_is_left() -> None:
    table = whole()
    table.unmap(0, 511)
    assert not is_empty(table, 100, ORDER_2M)
    table.unmap(511, 512)
    assert is_empty(table, 100, ORDER_2M)
    assert not is_empty(table, 512, ORDER_2M)


@pytest.mark.parametrize("order", [ORDER_2M, ORDER_1G])
def test_the_place_of_a_hole_is_in_line_with_what_is_left(order: int) -> None:
    table = whole(order, 1)
    table.unmap(100, 200)
    assert place_of(table, 150, order) == (3 << order) + 150
    table.unmap(0, MIB2)
    assert place_of(table, 150, order) == (None if order == ORDER_2M else (3 << order) + 150)


def test_what_was_filled_elsewhere_has_no_place() -> None:
    table = whole(pages=1)
    table.unmap(0, 512)
    table.map_run(10, 7, 1)
    assert place_of(table, 11, ORDER_2M) is None
    table.map_run(5, 2, 1)
    assert place_of(table, 11, ORDER_2M) is None, "before frame 0"


def test_a_range_cuts_the_whole_pages_at_its_ends() -> None:
    table = whole(pages=4)
    assert count_cut(table, 0, 4 * MIB2, ORDER_2M) == 0
    assert count_cut(table, MIB2, MIB2 + 1, ORDER_2M) == 1
    assert count_cut(table, 5, 6, ORDER_2M) == 1
    assert count_cut(table, 5, 3 * MIB2 + 1, ORDER_2M) == 2
    assert count_cut(table, 5, 2 * MIB2, ORDER_2M) == 1
    table.unmap(0, 1)
    assert count_cut(table, 5, 6, ORDER_2M) == 0, "it is split already"


def test_a_range_in_1_gib_cuts_that_and_later_2_mib_of_it() -> None:
    table = whole(ORDER_1G, 1)
    assert count_cut(table, MIB2, MIB2 + 1, ORDER_1G) == 1
    table.unmap(MIB2, MIB2 + 1)
    assert count_cut(table, 5, 6, ORDER_1G) == 1
    assert count_cut(table, MIB2 + 5, MIB2 + 6, ORDER_1G) == 0
