"""The page table of one file, in its three forms: gigs, chunks and single pages."""

import tracemalloc
from collections.abc import Callable
from itertools import pairwise

import pytest

from memfsd.core.memory.page_table import FilePages, TablesThen
from memfsd.uapi.units import PGOFF_END

CHUNK = 512
GIG = 1 << 18


@pytest.fixture
def pages() -> FilePages:
    return FilePages()


def test_an_empty_file(pages: FilePages) -> None:
    assert pages.page_count == 0
    assert pages.lookup(0) is None
    assert pages.run_at(5, 10) is None
    assert list(pages.extents(0, PGOFF_END)) == []
    assert list(pages.holes(0, PGOFF_END)) == [(0, PGOFF_END)]
    assert list(pages.holes(7, 7)) == []
    assert pages.hole_at(3, 9) == 9
    assert pages.next_data(0) is None
    assert pages.mapped_until(4, 8) == 4
    assert pages.unmap(0, PGOFF_END) == []


def test_frame_zero_is_a_frame(pages: FilePages) -> None:
    pages.map_run(3, 0, 2)
    assert [pages.lookup(page) for page in range(2, 6)] == [None, 0, 1, None]
    assert list(pages.extents(0, 100)) == [(3, 0, 2)]
    assert pages.run_at(3, 10) == (0, 2)


def test_the_last_frame_of_the_largest_pool(pages: FilePages) -> None:
    last = (1 << 31) - 1
    pages.map_run(PGOFF_END - 1, last, 1)
    pages.map_run(1, last - 9, 10)
    assert pages.lookup(PGOFF_END - 1) == last
    assert pages.run_at(1, 99) == (last - 9, 10)
    assert pages.mapped_until(PGOFF_END - 1, 8) == PGOFF_END


@pytest.mark.parametrize("start", [0, 1, CHUNK - 1, CHUNK, GIG - 700, GIG, 3 * GIG + 5])
@pytest.mark.parametrize("count", [1, 2, CHUNK, CHUNK + 1, 3000, GIG, 2 * GIG + 1000])
def test_one_run_is_one_run_in_every_form(pages: FilePages, start: int, count: int) -> None:
    pages.map_run(start, 77, count)
    end = start + count
    assert pages.page_count == count
    assert pages.lookup(start) == 77
    assert pages.lookup(end - 1) == 77 + count - 1
    assert pages.lookup(end) is None
    assert start == 0 or pages.lookup(start - 1) is None
    assert pages.run_at(start, PGOFF_END) == (77, count)
    assert pages.run_at(end - 1, 5) == (77 + count - 1, 1)
    assert list(pages.extents(0, PGOFF_END)) == [(start, 77, count)]
    assert list(pages.holes(start, end + 1)) == [(end, end + 1)]
    assert pages.next_data(0) == start
    assert pages.mapped_until(start, 1 << 12) == end
    assert pages.unmap(0, PGOFF_END) == [(start, 77, count)]
    assert pages.page_count == 0
    assert list(pages.extents(0, PGOFF_END)) == []


@pytest.mark.parametrize("hole", [(0, 1), (5, 6), (600, 700), (CHUNK, 2 * CHUNK), (GIG - 1, GIG + 1), (10, GIG)])
def test_a_hole_in_large_frames_leaves_the_rest(pages: FilePages, hole: tuple[int, int]) -> None:
    low, high = hole
    total = 2 * GIG
    pages.map_run(0, 1000, total)
    assert pages.unmap(low, high) == [(low, 1000 + low, high - low)]
    assert pages.page_count == total - (high - low)
    left = [(0, 1000, low), (high, 1000 + high, total - high)]
    assert list(pages.extents(0, PGOFF_END)) == [run for run in left if run[2]]
    assert list(pages.holes(0, total)) == [hole]
    assert pages.hole_at(low, PGOFF_END) == high - low
    assert pages.mapped_until(0, 1 << 12) == low
    assert pages.next_data(low) == high


@pytest.mark.parametrize("order", [1, -1])
def test_a_chunk_filled_page_by_page_is_one_number_again(pages: FilePages, order: int) -> None:
    """What `metadata stays small` depends on: a guest that touches page after page ends with a large frame's entry."""
    for page in range(CHUNK)[::order]:
        assert pages._chunks.get(1) != 7 * CHUNK
        pages.map_page(CHUNK + page, 7 * CHUNK + page)
    assert pages._chunks[1] == 7 * CHUNK
    assert pages.run_at(CHUNK, PGOFF_END) == (7 * CHUNK, CHUNK)


@pytest.mark.parametrize("form", ["page", "chunk", "gig"])
def test_a_gap_is_its_length_and_the_frame_that_would_go_on(pages: FilePages, form: str) -> None:
    count = {"page": 3, "chunk": CHUNK, "gig": GIG}[form]
    pages.map_run(GIG, 7 * GIG, count)
    end = GIG + count
    pages.map_run(end + 9, 5, 1)
    assert pages.gap_at(end, 4) == (4, 7 * GIG + count)
    assert pages.gap_at(end, 100) == (9, 7 * GIG + count)
    assert pages.gap_at(end + 1, 100) == (8, None)
    assert pages.gap_at(end + 10, 600) == (600, 6)
    assert pages.gap_at(0, 7) == (7, None)
    assert pages.gap_at(GIG - 2, 7) == (2, None)


def test_a_gap_after_frame_zero_and_after_a_full_chunk(pages: FilePages) -> None:
    pages.map_run(0, 0, 1)
    assert pages.gap_at(1, 5) == (5, 1)
    for page in range(CHUNK):
        pages.map_run(CHUNK + page, 9 * CHUNK - page, 1)
    assert pages.gap_at(2 * CHUNK, 5) == (5, 8 * CHUNK + 2)


def test_runs_stop_where_frames_jump(pages: FilePages) -> None:
    pages.map_run(0, 100, 4)
    pages.map_run(4, 200, 4)
    pages.map_run(8, 50, 1)
    assert pages.run_at(0, 100) == (100, 4)
    assert pages.run_at(1, 2) == (101, 2)
    assert pages.run_at(1, 1) == (101, 1)
    assert pages.run_at(6, 100) == (202, 2)
    assert list(pages.extents(2, 9)) == [(2, 102, 2), (4, 200, 4), (8, 50, 1)]


def test_runs_go_on_across_forms(pages: FilePages) -> None:
    pages.map_run(CHUNK - 3, 100, 3)
    pages.map_run(CHUNK, 103, CHUNK)
    pages.map_run(2 * CHUNK, 103 + CHUNK, 5)
    assert pages.run_at(CHUNK - 3, 10_000) == (100, CHUNK + 8)
    assert pages.run_at(CHUNK - 2, CHUNK) == (101, CHUNK)
    assert list(pages.extents(0, PGOFF_END)) == [(CHUNK - 3, 100, CHUNK + 8)]


def test_pages_filled_in_any_order_become_one_chunk(pages: FilePages) -> None:
    for page in [*range(0, CHUNK, 2), *range(1, CHUNK, 2)]:
        pages.map_run(page, 40 + page, 1)
    assert pages.run_at(0, PGOFF_END) == (40, CHUNK)
    assert pages.unmap(9, 10) == [(9, 49, 1)]
    assert pages.lookup(9) is None
    assert pages.lookup(10) == 50
    pages.map_run(9, 7, 1)
    assert list(pages.extents(0, PGOFF_END)) == [(0, 40, 9), (9, 7, 1), (10, 50, CHUNK - 10)]


def test_mapping_a_mapped_page_is_a_bug(pages: FilePages) -> None:
    pages.map_run(10, 1, 1)
    pages.map_run(CHUNK, 1000, CHUNK)
    pages.map_run(GIG, 10_000, GIG)
    for start, count in ((10, 1), (9, 3), (CHUNK + 5, 1), (CHUNK, CHUNK), (0, CHUNK), (GIG + 9, 1)):
        with pytest.raises(AssertionError):
            pages.map_run(start, 5, count)
    for start, count in ((0, GIG), (GIG, GIG), (GIG + CHUNK, CHUNK)):
        with pytest.raises(AssertionError):
            pages.map_run(start, 5, count)


def test_unmap_of_holes_removes_nothing(pages: FilePages) -> None:
    pages.map_run(10, 1, 5)
    for start, end in ((0, 10), (15, CHUNK), (CHUNK, PGOFF_END), (0, 1), (12, 12)):
        assert pages.unmap(start, end) == []
    assert pages.page_count == 5


def test_a_sparse_file_of_2_51_pages(pages: FilePages) -> None:
    where = [0, 1 << 20, 1 << 35, 1 << 50, PGOFF_END - 1]
    for index, page in enumerate(where):
        pages.map_run(page, 10 * index, 1)
    assert [run[0] for run in pages.extents(0, PGOFF_END)] == where
    assert [pages.next_data(page) for page in where] == where
    assert [pages.next_data(page + 1) for page in where] == [*where[1:], None]
    assert [pages.hole_at(page + 1, PGOFF_END) for page in where[:-1]] == [
        after - page - 1 for page, after in pairwise(where)
    ]
    assert len(list(pages.holes(0, PGOFF_END))) == 4
    pages.unmap(1, PGOFF_END - 1)
    assert [run[0] for run in pages.extents(0, PGOFF_END)] == [0, PGOFF_END - 1]


def test_a_tebibyte_in_one_run(pages: FilePages) -> None:
    count = 1 << 28
    pages.map_run(0, 0, count)
    assert pages.run_at(0, PGOFF_END) == (0, count)
    assert pages.unmap(12345, 12346) == [(12345, 12345, 1)]
    assert len(pages.unmap(0, PGOFF_END)) == 2


def test_metadata_stays_small(pages: FilePages) -> None:
    count = 64 * CHUNK
    tracemalloc.start()
    try:
        for page in range(count):
            pages.map_run(page, count - page, 1)
        assert tracemalloc.get_traced_memory()[0] < count * 4.4
        for page in range(0, count, 2):
            pages.unmap(page, page + 1)
        for page in range(0, count, CHUNK):
            last = page + (300 if page % (2 * CHUNK) else 511)
            pages.unmap(page + 1, last)
            pages.unmap(last, page + CHUNK)
        assert pages.page_count == 0
        assert tracemalloc.get_traced_memory()[0] < 8192
    finally:
        tracemalloc.stop()


def test_frames_are_shown_in_order_in_every_form_and_a_copy_stays(pages: FilePages) -> None:
    """A gig, chunks in one run, and single pages in more chunks than are shown at once."""
    pages.map_run(0, 1 << 20, GIG)
    pages.map_run(2 * GIG, 0, 2 * CHUNK)
    for number in range(300):
        pages.map_run(3 * GIG + number * CHUNK + 7, 5000 + 2 * number, 1)
    runs = list(pages.extents(0, PGOFF_END))
    then = TablesThen()
    try:
        copied = then.of(pages)
        _change(pages)
    finally:
        then.close()
    shown = list(copied.frames())
    assert max(len(pfns) for _, pfns in shown) <= GIG + 2 * CHUNK + 300
    assert len(shown) > 1
    got = [pair for pgoffs, pfns in shown for pair in zip(pgoffs.tolist(), pfns.tolist(), strict=True)]
    assert got == [(pgoff + n, pfn + n) for pgoff, pfn, count in runs for n in range(count)]
    assert copied.page_count == len(got)
    assert list(FilePages().frames()) == []


def _change(pages: FilePages) -> None:
    pages.unmap(3 * GIG, 3 * GIG + 9 * CHUNK)
    pages.map_run(GIG, 9, 1)
    pages.map_run(3 * GIG + 9 * CHUNK, 77, 3)


def _map_page(pages: FilePages) -> None:
    pages.map_page(8, 99)


def _unmap_page(pages: FilePages) -> None:
    pages.unmap(7, 8)


def _unmap_some(pages: FilePages) -> None:
    pages.unmap(6, 9)


def _detach(pages: FilePages) -> None:
    pages.detach()


def _take(pages: FilePages) -> None:
    pages.take()


@pytest.mark.parametrize("change", [_map_page, _unmap_page, _unmap_some, _detach, _take])
@pytest.mark.parametrize("is_copied", [False, True])
def test_a_table_is_seen_as_it_was_whatever_changes_it(
    pages: FilePages, change: Callable[[FilePages], None], is_copied: bool
) -> None:
    """Whether or not its turn has come."""
    pages.map_run(4, 40, 2)
    pages.map_run(7, 70, 1)
    before = list(pages.extents(0, PGOFF_END))
    then = TablesThen()
    try:
        if is_copied:
            assert list(then.of(pages).extents(0, PGOFF_END)) == before
        change(pages)
        assert list(then.of(pages).extents(0, PGOFF_END)) == before
        assert then.of(pages).page_count == 3
        assert pages.page_count != 3
    finally:
        then.close()


def test_what_was_looked_at_is_not_kept(pages: FilePages) -> None:
    pages.map_run(4, 40, 2)
    then = TablesThen()
    try:
        assert then.peek(pages) is pages
        then.seen(pages)
        pages.map_page(6, 60)
        assert not then.has(pages)
    finally:
        then.close()


def test_what_one_has_looked_at_is_kept_for_another(pages: FilePages) -> None:
    pages.map_run(4, 40, 2)
    first, second = TablesThen(), TablesThen()
    try:
        second.seen(pages)
        pages.map_page(6, 60)
        assert first.peek(pages).page_count == 2
    finally:
        first.close()
        second.close()


def test_a_few_nodes_are_given_as_numbers(pages: FilePages) -> None:
    pages.map_run(3, 30, 2)
    pages.map_run(9 * CHUNK, 8 * CHUNK, CHUNK)
    found = pages.few()
    assert found is not None
    pgoffs, pfns = (numbers.tolist() for numbers in found)
    assert pgoffs == [3, 4, *range(9 * CHUNK, 10 * CHUNK)]
    assert pfns == [30, 31, *range(8 * CHUNK, 9 * CHUNK)]
    for number in range(20, 24):
        pages.map_run(number * CHUNK, number, 1)
    assert pages.few() is None


def test_holes_are_found_a_step_at_a_time(pages: FilePages) -> None:
    for page in range(0, 4000, 2):
        pages.map_run(page, 5000 + page, 1)
    found, at = list[tuple[int, int]](), 0
    while at < 4001:
        some, reached = pages.some_holes(at, 4001, 40)
        assert at < reached and len(some) <= 40
        found, at = [*found, *some], int(reached)
    assert found == list(pages.holes(0, 4001))
    for page in range(1, 4000, 2):
        pages.map_run(page, 20000 - page, 1)
    some, reached = pages.some_holes(0, 4001, 40)
    assert some == [] and reached < 1000, "pieces are bounded where there is no hole"


def test_two_may_look_and_each_sees_its_own_moment(pages: FilePages) -> None:
    pages.map_run(4, 40, 2)
    first = TablesThen()
    try:
        pages.map_page(8, 80)
        second = TablesThen()
        pages.map_page(9, 90)
        assert (first.of(pages).page_count, second.of(pages).page_count, pages.page_count) == (2, 3, 4)
        second.close()
        pages.unmap(4, 5)
        assert first.of(pages).page_count == 2
    finally:
        first.close()


def test_what_is_made_or_changed_later_is_not_kept(pages: FilePages) -> None:
    then = TablesThen()
    try:
        later = FilePages()
        later.map_run(0, 0, 1)
        assert not then.has(later)
    finally:
        then.close()
    pages.map_run(0, 5, 1)
    assert not then.has(pages)


def test_a_part_is_bounded_by_extents_and_by_pages(pages: FilePages) -> None:
    assert pages.part(3, 99) == ([], 99)
    for page in range(0, 1000, 2):
        pages.map_run(page, page, 1)
    runs, reached = pages.part(1, 1000)
    assert runs == [(page, page, 1) for page in range(2, reached, 2)]
    assert 10 < len(runs) < 100
    pages.map_run(GIG, 1 << 20, 100 * GIG)
    ((start, _, page_count),), reached = pages.part(1001, PGOFF_END)
    assert start == GIG
    assert reached == GIG + page_count < 101 * GIG


def test_pages_are_counted_some_nodes_at_a_time(pages: FilePages) -> None:
    for number in range(5):
        pages.map_run(2 * number * CHUNK + 3, 9 * number, 2)
    assert pages.count_some(0, PGOFF_END, 2) == (4, 3 * CHUNK)
    assert pages.count_some(3 * CHUNK, PGOFF_END, 99) == (6, PGOFF_END)
    assert pages.count_some(0, 4, 1) == (1, 4)
