"""Host frame numbers: each memory has its range, and no run crosses from one to another."""

import pytest

from kvmsim.core.physmap import PhysMap
from tests.support.both_sides import errno_of


def test_ranges_are_apart_by_at_least_one_frame() -> None:
    physmap: PhysMap[str] = PhysMap()
    first, second = physmap.add("first", 10), physmap.add("second", 5)
    assert first + 10 < second
    assert physmap.find(first) == ("first", 0)
    assert physmap.find(first + 9) == ("first", 9)
    assert physmap.find(second + 4) == ("second", 4)


def test_a_frame_that_nothing_backs_must_not_be_asked_for() -> None:
    physmap: PhysMap[str] = PhysMap()
    base = physmap.add("only", 10)
    with pytest.raises(AssertionError, match="has no memory"):
        physmap.find(base + 10)


def test_a_gap_is_used_again_when_it_is_large_enough() -> None:
    physmap: PhysMap[str] = PhysMap()
    bases = [physmap.add(name, 10) for name in "abc"]
    physmap.remove(bases[1])
    larger = physmap.add("larger", 11)
    assert larger > bases[2]
    assert physmap.add("same", 10) == bases[1]
    assert physmap.find(bases[1] + 3) == ("same", 3)
    assert physmap.find(bases[2]) == ("c", 0)
    physmap.remove(bases[0])
    assert physmap.add("first", 1) == 0


def test_host_addresses_end_at_2_to_the_40_frames() -> None:
    physmap: PhysMap[str] = PhysMap()
    physmap.add("most", (1 << 40) - 10)
    assert errno_of(physmap.add, "more", 10) == "ENOSPC"
    physmap.add("fits", 9)
