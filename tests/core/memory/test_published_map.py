"""The map that follows a page table: the same pages in the same frames, and no page covered twice."""

import random

import numpy as np
import pytest

from memfsd.core.memory.page_table import FilePages
from memfsd.core.memory.published_map import PageMap
from memfsd.uapi.page_map import CLOSED_FOR_GOOD, FIRST_WORD, ORDER_MASK, ORDER_SHIFT, gate
from memfsd.uapi.units import ORDER_1G, ORDER_2M, Ino, Seq

MIB2, GIB = 1 << ORDER_2M, 1 << ORDER_1G


class Shown:
    """A page table, its map, and how many entries of each order the map has."""

    def __init__(self, page_count: int) -> None:
        self.words = np.zeros(FIRST_WORD + page_count, np.uint64)
        self.map = PageMap(Ino(1), self.words)
        self.pages = FilePages()
        self.pages.published = self.map

    def orders(self) -> dict[int, int]:
        entries = self.words[FIRST_WORD:]
        found = (entries[entries != 0] >> np.uint64(ORDER_SHIFT)) & np.uint64(ORDER_MASK)
        return {int(order): int((found == order).sum()) for order in np.unique(found)}

    def check(self) -> None:
        covered = sum(count << order for order, count in self.orders().items())
        assert covered == self.pages.page_count, "each page has one entry"
        for pgoffs, pfns in self.pages.frames():
            step = max(len(pgoffs) // 64, 1)
            for pgoff, pfn in zip(pgoffs[::step].tolist(), pfns[::step].tolist(), strict=True):
                assert self.map.lookup(pgoff) == pfn, pgoff


def test_a_page_comes_and_goes() -> None:
    shown = Shown(8)
    shown.pages.map_run(3, 40, 1)
    shown.pages.map_page(4, 7)
    assert [shown.map.lookup(page) for page in range(8)] == [None, None, None, 40, 7, None, None, None]
    shown.pages.unmap(3, 4)
    assert shown.map.lookup(3) is None
    shown.check()


def test_whole_blocks_take_one_word_and_are_cut_where_a_part_goes() -> None:
    shown = Shown(2 * GIB)
    shown.pages.map_run(0, 5, GIB + MIB2)
    assert shown.orders() == {ORDER_1G: 1, ORDER_2M: 1}
    shown.pages.unmap(MIB2 + 3, MIB2 + 4)
    assert shown.orders() == {0: MIB2 - 1, ORDER_2M: MIB2}
    assert (shown.map.lookup(MIB2 + 3), shown.map.lookup(MIB2 + 4)) == (None, 5 + MIB2 + 4)
    shown.check()
    shown.pages.unmap(0, GIB + MIB2)
    assert not shown.words[FIRST_WORD:].any()


def test_pages_after_the_end_of_the_map_are_left_out() -> None:
    shown = Shown(MIB2 + 100)
    shown.pages.map_run(MIB2, 0, MIB2)
    shown.pages.map_run(5 * MIB2, 9999, 1)
    assert shown.map.lookup(MIB2 + 99) == 99
    assert shown.map.lookup(MIB2 + 100) is None
    shown.pages.unmap(0, 8 * MIB2)
    assert not shown.words[FIRST_WORD:].any()


@pytest.mark.parametrize("seed", range(6))
def test_random_changes_leave_both_the_same(seed: int) -> None:
    chance, shown = random.Random(seed), Shown(3 * GIB)
    limits = [GIB * 3, MIB2 * 4, 16]
    for step in range(150):
        start = chance.randrange(limits[chance.randrange(3)])
        count = chance.choice([1, 1, 3, 100, MIB2, 3 * MIB2, GIB])
        start = chance.choice([start, start & -MIB2, start & -GIB])
        end = min(start + count, 3 * GIB)
        if chance.random() < 0.5:
            shown.pages.unmap(start, end)
        else:
            holes = list(shown.pages.holes(start, end))
            for low, high in holes[:8]:
                shown.pages.map_run(low, chance.randrange(1 << 30), high - low)
        if step % 30 == 29:
            shown.check()
    shown.pages.unmap(0, 3 * GIB)
    assert not shown.words[FIRST_WORD:].any()


def test_the_gate_is_open_for_one_number_and_at_last_for_none() -> None:
    shown = Shown(4)
    gates = []
    shown.map.open(Seq(3))
    gates.append(int(shown.words[0]))
    shown.map.close(Seq(3))
    gates.append(int(shown.words[0]))
    shown.map.open(Seq(4))
    gates.append(int(shown.words[0]))
    shown.map.close_for_good()
    gates.append(int(shown.words[0]))
    assert gates == [gate(3, is_open=False), gate(3, is_open=True), gate(4, is_open=False), CLOSED_FOR_GOOD]


def test_a_dropped_map_is_not_written_any_more() -> None:
    shown = Shown(4)
    words = shown.words
    shown.map.drop()
    with pytest.raises(IndexError):
        shown.map.open(Seq(1))
    assert not words.any()


def test_a_table_that_is_published_is_not_detached() -> None:
    shown = Shown(4)
    with pytest.raises(AssertionError):
        shown.pages.detach()
