"""The words of a page map: what is in one can be read from it, and a gate opens for one number only."""

import pytest

from memfsd.uapi.limits import MAX_POOL_BYTES
from memfsd.uapi.page_map import (
    CLOSED_FOR_GOOD,
    FIRST_WORD,
    FRAME_MASK,
    HEADER_BYTES,
    ORDER_MASK,
    ORDER_SHIFT,
    PRESENT,
    WORD_BYTES,
    entry,
    gate,
    map_bytes,
)
from memfsd.uapi.units import ORDERS, PAGE_SHIFT

LAST_FRAME = (MAX_POOL_BYTES >> PAGE_SHIFT) - 1


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("pfn", [0, 1, LAST_FRAME])
def test_an_entry_has_its_frame_and_order_and_is_no_hole(pfn: int, order: int) -> None:
    word = entry(pfn, order)
    assert word & PRESENT
    assert (word & FRAME_MASK, word >> ORDER_SHIFT & ORDER_MASK) == (pfn, order)
    assert word < 1 << 64


def test_the_entry_of_the_next_frame_is_the_next_number() -> None:
    """Readers compare runs by it."""
    assert entry(7, 0) + 1 == entry(8, 0)


def test_an_open_invalidation_and_another_number_close_the_gate() -> None:
    assert gate(5, is_open=False) != gate(5, is_open=True)
    assert len({gate(seq, is_open=is_open) for seq in range(4) for is_open in (False, True)}) == 8
    assert all(seq << 1 != CLOSED_FOR_GOOD for seq in (0, 1, (1 << 63) - 1))


def test_a_map_has_a_header_and_eight_bytes_a_page() -> None:
    assert map_bytes(0) == HEADER_BYTES == FIRST_WORD * WORD_BYTES
    assert map_bytes(1000) - map_bytes(0) == 8000
