"""The bits of an entry are those of the SDM (volume 3, 29.3.2) that the simulator needs."""

import pytest

from kvmsim.kvm.mmu import eptentry as e


def test_flags_are_where_the_hardware_has_them() -> None:
    assert (e.READ, e.WRITE, e.EXECUTE) == (1, 2, 4)
    assert e.MEMORY_TYPE_WB == 0b110_000
    assert (e.MEMORY_TYPE_UC, e.MEMORY_TYPE_MASK) == (0, 0b111_000)
    assert (e.LARGE, e.ACCESSED, e.DIRTY) == (1 << 7, 1 << 8, 1 << 9)
    assert e.PFN_SHIFT == 12


@pytest.mark.parametrize("pfn", [0, 1, e.MAX_PFN - 1])
def test_a_frame_number_shares_no_bit_with_the_flags(pfn: int) -> None:
    flags = e.READ | e.WRITE | e.EXECUTE | e.MEMORY_TYPE_WB | e.LARGE | e.ACCESSED | e.DIRTY
    entry = pfn << e.PFN_SHIFT | flags
    assert e.entry_pfn(entry) == pfn
    assert entry < 1 << 52
    assert e.entry_writable(entry)
    assert not e.entry_writable(entry & ~e.WRITE)
    assert e.entry_memory_type(entry) == e.MEMORY_TYPE_WB


@pytest.mark.parametrize(("level", "size_bytes"), [(0, 4 << 10), (1, 2 << 20), (2, 1 << 30)])
def test_a_leaf_is_4_kib_2_mib_or_1_gib(level: int, size_bytes: int) -> None:
    assert e.leaf_pages(level) << e.PFN_SHIFT == size_bytes


def test_four_levels_reach_48_bits() -> None:
    assert e.leaf_pages(e.TOP_LEVEL + 1) == e.MAX_GFN_EPT == 1 << 48 - 12
