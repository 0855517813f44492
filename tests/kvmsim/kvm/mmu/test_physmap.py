"""Host frame numbers: each memory has its range, aligned to 1 GiB, and no run crosses from one to another."""

import pytest

from kvmsim.kvm.mmu.physmap import PhysMap
from tests.support.both_sides import errno_of

GIB = 1 << 18


@pytest.mark.parametrize("frames", [10, GIB - 1, GIB, GIB + 1])
def test_ranges_are_apart_by_at_least_one_frame(frames: int) -> None:
    physmap: PhysMap[str] = PhysMap()
    first, second = physmap.add("first", 0, frames), physmap.add("second", 0, 5)
    assert first + frames < second
    assert physmap.find(first) == ("first", 0)
    assert physmap.find(first + frames - 1) == ("first", frames - 1)
    assert physmap.find(second + 4) == ("second", 4)


def test_a_frame_is_aligned_as_in_its_memory() -> None:
    physmap: PhysMap[str] = PhysMap()
    assert [physmap.add("m", 0, frames) % GIB for frames in (1, 10, GIB + 1)] == [0, 0, 0]


def test_a_part_of_a_memory_takes_no_more_than_its_own_frames() -> None:
    physmap: PhysMap[str] = PhysMap()
    most = 1 << 39
    bases = [physmap.add("sparse", most + at * GIB + 7, most + at * GIB + 9) for at in range(100)]
    for at, base in enumerate(bases):
        frame = most + at * GIB + 8
        assert physmap.find(base + frame) == ("sparse", frame)
        assert base % GIB == 0
    physmap.remove(bases[50] + most + 50 * GIB + 7)
    with pytest.raises(AssertionError, match="has no memory"):
        physmap.find(bases[50] + most + 50 * GIB + 7)
    assert physmap.find(bases[51] + most + 51 * GIB + 7) == ("sparse", most + 51 * GIB + 7)


def test_a_frame_that_nothing_backs_must_not_be_asked_for() -> None:
    physmap: PhysMap[str] = PhysMap()
    base = physmap.add("only", 0, 10)
    with pytest.raises(AssertionError, match="has no memory"):
        physmap.find(base + 10)


def test_a_gap_is_used_again() -> None:
    physmap: PhysMap[str] = PhysMap()
    bases = [physmap.add(name, 0, 10) for name in "abc"]
    physmap.remove(bases[1] + 9)
    larger = physmap.add("larger", 0, GIB)
    assert larger > bases[2]
    assert physmap.add("same", 0, 12) == bases[1]
    assert physmap.find(bases[1] + 3) == ("same", 3)
    assert physmap.find(bases[2]) == ("c", 0)


def test_host_addresses_end_at_2_to_the_40_frames() -> None:
    physmap: PhysMap[str] = PhysMap()
    most = physmap.add("most", 0, (1 << 40) - 3 * GIB)
    first = physmap.add("first", 0, 10)
    second = physmap.add("second", 0, 10)
    assert errno_of(physmap.add, "more", 0, 10) == "ENOSPC"
    physmap.remove(first)
    physmap.remove(second)
    both = physmap.add("two gaps that are neighbours", 0, GIB + 10)
    assert both == first
    assert errno_of(physmap.add, "more", 0, 10) == "ENOSPC"
    physmap.remove(most)
    assert physmap.add("first of all", 0, 10) == 0
    assert physmap.find(both + 3) == ("two gaps that are neighbours", 3)


def test_a_memory_never_gets_frames_of_another() -> None:
    """After the fresh frames have run out, gaps are searched: each memory has its own frames still."""
    physmap: PhysMap[str] = PhysMap()
    bases = {name: physmap.add(name, 0, 10) for name in ("one", "two", "three")}
    rest_frames = (1 << 40) - 6 * GIB
    rest = physmap.add("rest", 0, rest_frames)
    bases["last"] = physmap.add("last", 0, 10)
    physmap.remove(bases.pop("two"))
    physmap.remove(rest)
    bases["wide"] = physmap.add("wide", 0, GIB + 10)
    assert errno_of(physmap.add, "rest again", 0, rest_frames) == "ENOSPC"
    bases["up to the last"] = physmap.add("up to the last", 0, rest_frames - 2 * GIB)
    bases["at the end"] = physmap.add("at the end", 0, 10)
    bases["in the first gap"] = physmap.add("in the first gap", 0, 10)
    assert errno_of(physmap.add, "more", 0, 10) == "ENOSPC"
    for name, base in bases.items():
        assert physmap.find(base) == (name, 0)
        assert physmap.find(base + 9) == (name, 9)


def test_slots_of_one_memory_share_its_range_until_the_last_goes() -> None:
    physmap: PhysMap[str] = PhysMap()
    base = physmap.share("copy", 10)
    assert physmap.share("copy", 10) == base
    physmap.unshare("copy")
    assert physmap.find(base + 9) == ("copy", 9)
    physmap.unshare("copy")
    with pytest.raises((AssertionError, IndexError)):
        physmap.find(base)
    assert physmap.share("other", 10) == base, "the range is free again"
