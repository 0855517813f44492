"""Slots of the swap file: each is one page's, and a full file says so."""

import errno

import pytest

from memfsd.core.memory.swap_slots import SwapSlots
from memfsd.uapi.errors import Refused


def test_each_slot_is_given_once() -> None:
    slots = SwapSlots(3)
    assert sorted(slots.alloc() for _ in range(3)) == [0, 1, 2]
    assert (slots.used, slots.free_count) == (3, 0)


def test_a_full_file_is_enospc_until_a_slot_comes_back() -> None:
    slots = SwapSlots(2)
    first, _ = slots.alloc(), slots.alloc()
    with pytest.raises(Refused) as refused:
        slots.alloc()
    assert refused.value.errno == errno.ENOSPC
    slots.free([first])
    assert slots.alloc() == first


def test_a_slot_that_is_not_in_use_cannot_come_back() -> None:
    slots = SwapSlots(2)
    slot = slots.alloc()
    slots.free([slot])
    with pytest.raises(AssertionError):
        slots.free([slot])


def test_without_a_file_there_is_no_slot_and_nothing_leaves() -> None:
    slots = SwapSlots()
    assert (slots.is_on, slots.total, slots.free_count) == (False, 0, 0)
    with pytest.raises(Refused):
        slots.alloc()


def test_counts_are_named_as_memfs_stat_shows_them() -> None:
    slots = SwapSlots(8)
    slots.alloc()
    slots.out_count, slots.in_count, slots.failed_count = 5, 3, 1
    assert slots.counts() == {"swap_slots": 8, "swap_used": 1, "swapped_out": 5, "swapped_in": 3, "swap_failed": 1}
