"""Memslots: lookup, segments, and the checks of a new region as Linux makes them."""

import errno
from typing import Any

import pytest

from kvmsim.kvm.alias import PRIVATE, SHARED
from kvmsim.kvm.region import MemoryRegion, SlotFlag
from kvmsim.kvm.slots.memslots import Memslot, Memslots, RegionChange, check_addressable, check_region
from memfsd.uapi.errors import Refused
from memfsd.uapi.limits import MAX_SLOTS
from memfsd.uapi.units import PAGE_SHIFT, Gfn, Pgoff
from tests.support.slots import NO_BACKING


def slot(slot_id: int, gfn: int, page_count: int, flags: int = 0, pgoff: int = 0) -> Memslot:
    return Memslot(slot_id, SHARED, Gfn(gfn), page_count, SlotFlag(flags), NO_BACKING, Pgoff(pgoff))


def slots(*made: Memslot) -> Memslots:
    memslots = Memslots(SHARED)
    for one in made:
        memslots.add(one)
    return memslots


def test_a_slot_is_found_from_its_first_page_to_its_last() -> None:
    low, high = slot(3, 0x10, 4), slot(1, 0x20, 1)
    memslots = slots(high, low)
    assert [memslots.lookup(Gfn(gfn)) for gfn in (0xF, 0x10, 0x13, 0x14, 0x20, 0x21)] == [
        None,
        low,
        low,
        None,
        high,
        None,
    ]
    assert memslots.segment(Gfn(0x12)) == (low, 0x10, 0x14)
    assert memslots.segment(Gfn(0x14)) is None
    assert list(memslots) == [low, high]
    assert (len(memslots), memslots.get(3), memslots.get(2)) == (2, low, None)
    assert [memslots.next_start(Gfn(gfn)) for gfn in (0, 0xF, 0x10, 0x20)] == [0x10, 0x10, 0x20, None]
    assert [s.id for s in memslots.overlaps(Gfn(0x13), Gfn(0x21))] == [3, 1]
    assert memslots.overlaps(Gfn(0x14), Gfn(0x20)) == []


def test_an_overlap_is_refused_and_names_the_slot() -> None:
    memslots = slots(slot(0, 0x10, 4))
    for gfn, page_count in ((0x10, 4), (0x13, 1), (0x13, 4), (0xF, 2), (0, 0x100)):
        with pytest.raises(Refused, match=r"overlaps .* shared slot 0 ") as refused:
            memslots.add(slot(7, gfn, page_count))
        assert refused.value.errno == errno.EEXIST
    memslots.add(slot(1, 0x14, 1))
    memslots.add(slot(2, 0xF, 1))
    assert len(memslots) == 3


def test_deleting_what_is_not_there_is_refused() -> None:
    memslots = slots(slot(0, 0, 4))
    assert memslots.delete(0).id == 0
    assert (memslots.lookup(Gfn(0)), len(memslots), memslots.next_start(Gfn(-1))) == (None, 0, None)
    with pytest.raises(Refused) as refused:
        memslots.delete(0)
    assert refused.value.errno == errno.EINVAL


def test_a_hole_lets_another_slot_in_and_closes_when_it_has_left() -> None:
    memslots = slots(slot(0, 0x10, 0x10, pgoff=5))
    assert memslots.punch(0, Gfn(0x14), Gfn(0x18)) == [(0x14, 0x18)]
    punched = memslots.get(0)
    assert punched is not None
    assert punched.segments == [(0x10, 0x14), (0x18, 0x20)]
    assert (punched.gfn, punched.page_count, punched.pgoff_of(Gfn(0x18))) == (0x10, 0x10, 13)
    assert memslots.lookup(Gfn(0x15)) is None
    assert memslots.covers(Gfn(0x10), Gfn(0x14)) is punched
    assert memslots.covers(Gfn(0x10), Gfn(0x20)) is None

    guest = slot(1, 0x14, 2)
    memslots.add(guest)
    assert memslots.lookup(Gfn(0x15)) is guest
    with pytest.raises(Refused) as refused:
        memslots.fill(0, Gfn(0x14), Gfn(0x18))
    assert refused.value.errno == errno.EEXIST
    memslots.fill(0, Gfn(0x16), Gfn(0x17))
    assert punched.segments == [(0x10, 0x14), (0x16, 0x17), (0x18, 0x20)]

    memslots.delete(1)
    memslots.fill(0, Gfn(0x17), Gfn(0x18))
    assert punched.segments == [(0x10, 0x14), (0x16, 0x20)]
    memslots.fill(0, Gfn(0x14), Gfn(0x16))
    assert punched.segments == [(0x10, 0x20)]
    assert memslots.covers(Gfn(0x10), Gfn(0x20)) is punched


def test_a_slot_that_is_all_hole_still_exists_and_keeps_its_holes_outside() -> None:
    memslots = slots(slot(0, 0x10, 2))
    memslots.punch(0, Gfn(0x10), Gfn(0x12))
    assert ([s.id for s in memslots], memslots.lookup(Gfn(0x10)), memslots.overlaps(Gfn(0), Gfn(0x100))) == (
        [0],
        None,
        [],
    )
    memslots.add(slot(1, 0x10, 2))
    empty = memslots.delete(0)
    memslots.add(empty)
    assert memslots.lookup(Gfn(0x10)) is memslots.get(1)
    memslots.delete(1)
    memslots.fill(0, Gfn(0x10), Gfn(0x12))
    assert memslots.lookup(Gfn(0x11)) is empty


@pytest.mark.parametrize(
    ("start", "end"), [(0xF, 0x12), (0x12, 0x21), (0x12, 0x12), (0x13, 0x12), (0, 4), (0x30, 0x31)]
)
def test_punch_and_fill_stay_inside_the_slot(start: int, end: int) -> None:
    memslots = slots(slot(0, 0x10, 0x10))
    generation = memslots.generation
    for change in (memslots.punch, memslots.fill):
        with pytest.raises(Refused) as refused:
            change(0, Gfn(start), Gfn(end))
        assert refused.value.errno == errno.EINVAL
    assert (memslots.generation, memslots.covers(Gfn(0x10), Gfn(0x20))) == (generation, memslots.get(0))


@pytest.mark.parametrize(("start", "end"), [(0x14, 0x18), (0x13, 0x15), (0x17, 0x19), (0x12, 0x1A), (0x15, 0x16)])
def test_a_hole_is_not_punched_again(start: int, end: int) -> None:
    memslots = slots(slot(0, 0x10, 0x10))
    memslots.punch(0, Gfn(0x14), Gfn(0x18))
    with pytest.raises(Refused, match="in part a hole") as refused:
        memslots.punch(0, Gfn(start), Gfn(end))
    assert refused.value.errno == errno.EINVAL


@pytest.mark.parametrize(("start", "end"), [(0x10, 0x14), (0x13, 0x15), (0x17, 0x19), (0x12, 0x1A)])
def test_what_is_visible_is_not_filled(start: int, end: int) -> None:
    memslots = slots(slot(0, 0x10, 0x10))
    memslots.punch(0, Gfn(0x14), Gfn(0x18))
    with pytest.raises(Refused, match="not all a hole") as refused:
        memslots.fill(0, Gfn(start), Gfn(end))
    assert refused.value.errno == errno.EINVAL


def test_every_change_makes_a_new_generation_and_a_refusal_does_not() -> None:
    memslots = slots(slot(0, 0, 4))
    seen = [memslots.generation]
    for change in (
        lambda: memslots.punch(0, Gfn(1), Gfn(2)),
        lambda: memslots.add(slot(1, 1, 1)),
        lambda: memslots.delete(1),
        lambda: memslots.fill(0, Gfn(1), Gfn(2)),
    ):
        change()
        seen.append(memslots.generation)
    assert len(set(seen)) == len(seen)
    for refused in (lambda: memslots.add(slot(2, 0, 1)), lambda: memslots.delete(9)):
        with pytest.raises(Refused):
            refused()
    assert memslots.generation == seen[-1]


def region(
    slot_id: int = 0,
    gpa: int = 0,
    size: int = 0x4000,
    flags: int = 0,
    offset: int = 0,
    as_id: int = 0,
    existing: Memslot | None = None,
) -> RegionChange | str:
    """The change, or the name of the errno."""
    try:
        asked = MemoryRegion(slot_id, as_id, flags, gpa, size, offset)
        change = check_region(asked, MAX_SLOTS, existing)
        if change in (RegionChange.CREATE, RegionChange.MOVE):
            check_addressable(asked)
        return change
    except Refused as refused:
        return errno.errorcode[refused.errno]


@pytest.mark.parametrize(("private", "bits"), [(True, 64), (False, 63)])
def test_an_offset_and_a_size_that_wrap_are_refused(private: bool, bits: int) -> None:
    """guest_memfd_offset + memory_size in 64 bits; a userspace_addr is half of them."""
    as_id, flags = (1, 4) if private else (0, 0)
    for offset, size, result in (
        ((1 << bits) - 0x1000, 0x1000, "EINVAL"),
        ((1 << bits) - 0x1000, 0x2000, "EINVAL"),
        ((1 << bits) - 0x2000, 0x2000, "EINVAL"),
        ((1 << bits) - 0x2000, 0x1000, RegionChange.CREATE),
        (1 << bits, 0x1000, "EINVAL"),
        (-0x1000, 0x1000, "EINVAL"),
    ):
        assert region(offset=offset, size=size, as_id=as_id, flags=flags) == result


# Recorded on Linux 6.18 with KVM_SET_USER_MEMORY_REGION2 (cases slot/ and gslot/).
@pytest.mark.parametrize(
    ("arguments", "result"),
    [
        ({}, RegionChange.CREATE),
        ({"flags": 1}, RegionChange.CREATE),
        ({"flags": 2}, RegionChange.CREATE),
        ({"flags": 3}, RegionChange.CREATE),
        ({"flags": 4}, "EINVAL"),
        ({"flags": 8}, "EINVAL"),
        ({"flags": 0x10000}, "EINVAL"),
        ({"flags": 0x80000000}, "EINVAL"),
        ({"flags": 4, "as_id": 1}, RegionChange.CREATE),
        ({"flags": 5, "as_id": 1}, "EINVAL"),
        ({"flags": 6, "as_id": 1}, "EINVAL"),
        ({"flags": 7, "as_id": 1}, "EINVAL"),
        ({"gpa": 1}, "EINVAL"),
        ({"gpa": 0x800}, "EINVAL"),
        ({"gpa": 0xFFF}, "EINVAL"),
        ({"size": 1}, "EINVAL"),
        ({"size": 0x1001}, "EINVAL"),
        ({"offset": 1}, "EINVAL"),
        ({"offset": 0x800}, "EINVAL"),
        ({"slot_id": 32763}, RegionChange.CREATE),
        ({"slot_id": 32764}, "EINVAL"),
        ({"slot_id": 65535}, "EINVAL"),
        ({"slot_id": 32764, "size": 0}, "EINVAL"),
        ({"as_id": 2}, "EINVAL"),
        ({"as_id": 65535}, "EINVAL"),
        ({"as_id": 2, "size": 0}, "EINVAL"),
        ({"size": 0}, "EINVAL"),
        ({"size": 0, "gpa": 0x1000}, "EINVAL"),
        ({"gpa": 0xFFFF_FFFF_FFFF_F000, "size": 0x1000}, "EINVAL"),
        ({"gpa": 0xFFFF_FFFF_FFFF_F000, "size": 0x2000}, "EINVAL"),
        ({"gpa": 1 << 63, "size": 0x1000}, "EINVAL"),
        ({"gpa": 1 << 52, "size": 0x1000}, "EINVAL"),
        ({"gpa": (1 << 48) - 0x1000, "size": 0x1000}, RegionChange.CREATE),
        ({"gpa": (1 << 36) - 0x8000}, RegionChange.CREATE),
        ({"size": 1 << 43}, "EINVAL"),
        ({"size": (1 << 43) - 0x1000}, RegionChange.CREATE),
        ({"size": 1 << 63}, "EINVAL"),
        ({"offset": (1 << 64) - 0x4000}, "EINVAL"),
        ({"offset": (1 << 64) - 0x1000}, "EINVAL"),
        ({"offset": 1 << 64}, "EINVAL"),
        ({"offset": -0x1000}, "EINVAL"),
        ({"flags": 4, "as_id": 1, "offset": (1 << 64) - 0x5000}, RegionChange.CREATE),
        ({"flags": 4, "as_id": 1, "offset": (1 << 64) - 0x4000}, "EINVAL"),
        ({"flags": 4, "as_id": 1, "offset": (1 << 64) - 0x1000}, "EINVAL"),
        ({"slot_id": -1}, "EINVAL"),
        ({"gpa": -0x1000}, "EINVAL"),
    ],
    ids=str,
)
def test_a_new_region_as_linux_takes_it(arguments: dict[str, Any], result: RegionChange | str) -> None:
    assert region(**arguments) == result


@pytest.mark.parametrize(
    ("flags", "arguments", "result"),
    [
        (0, {}, RegionChange.NONE),
        (0, {"gpa": 0x10000}, RegionChange.MOVE),
        (0, {"gpa": 0x10000, "flags": 1}, RegionChange.MOVE),
        (0, {"gpa": 0x1000}, RegionChange.MOVE),
        (0, {"flags": 1}, RegionChange.FLAGS_ONLY),
        (1, {"flags": 0}, RegionChange.FLAGS_ONLY),
        (0, {"flags": 2}, "EINVAL"),
        (2, {"flags": 0}, "EINVAL"),
        (2, {"flags": 3}, RegionChange.FLAGS_ONLY),
        (0, {"size": 0x5000}, "EINVAL"),
        (0, {"offset": 0x1000}, "EINVAL"),
        (0, {"gpa": 1 << 52}, "EINVAL"),
        (1, {"size": 0, "flags": 2}, RegionChange.DELETE),
        (0, {"size": 0, "gpa": 0x1234000}, RegionChange.DELETE),
    ],
    ids=str,
)
def test_a_change_of_a_shared_slot_as_linux_takes_it(
    flags: int, arguments: dict[str, int], result: RegionChange | str
) -> None:
    assert region(existing=slot(0, 0, 4, flags), **arguments) == result


def test_a_private_slot_is_immutable_but_can_be_deleted() -> None:
    private = Memslot(0, PRIVATE, Gfn(0), 4, SlotFlag.GUEST_MEMFD, NO_BACKING, Pgoff(0))
    for arguments in ({"flags": 4}, {"flags": 0}, {"gpa": 0x10000, "flags": 4}, {"size": 0x8000, "flags": 4}):
        assert region(as_id=1, existing=private, **arguments) == "EINVAL"
    assert region(existing=private, flags=1) == "EINVAL", "the flag of the slot that is there counts too"
    assert region(as_id=1, existing=private, size=0) == RegionChange.DELETE
    assert region(as_id=1, existing=private, size=0, flags=4, offset=1 << 40) == RegionChange.DELETE
    assert region(as_id=1, existing=private, size=0, flags=4, offset=1) == "EINVAL"


def test_addresses_beyond_the_four_levels_are_refused_by_name() -> None:
    def check(gfn: int, page_count: int) -> None:
        check_addressable(MemoryRegion(0, 0, 0, gfn << PAGE_SHIFT, page_count << PAGE_SHIFT, 0))

    with pytest.raises(Refused, match=r"gpa 0x1000000000000 .* end at 2\^48"):
        check(1 << 36, 1)
    with pytest.raises(Refused, match=r"end at 2\^48"):
        check((1 << 36) - 1, 2)
    check((1 << 36) - 1, 1)


def test_the_first_thing_wrong_is_the_one_named() -> None:
    def reason(**wrong: int) -> str:
        arguments = {
            "id": 0,
            "space": 0,
            "flags": 0,
            "gpa": 0,
            "size": 0,
            "offset": 0,
        } | wrong
        with pytest.raises(Refused) as refused:
            check_region(MemoryRegion(**arguments), MAX_SLOTS, None)
        return refused.value.reason

    wrong = {"flags": 8, "size": 1, "gpa": 1, "offset": 1, "space": 9, "id": MAX_SLOTS}
    named = ["flags 0x8", "size 0x1", "gpa 0x1", "offset 0x1", "address space 9", f"slot {MAX_SLOTS}"]
    for argument, name in zip(list(wrong), named, strict=True):
        assert reason(**wrong).startswith(f"{name} is refused: ")
        del wrong[argument]
    assert reason(**wrong).startswith("size 0 of slot 0 is refused: ")


def test_the_segment_that_was_looked_up_last_is_forgotten_when_slots_change() -> None:
    low = slot(3, 0x10, 8)
    memslots = slots(low)
    assert memslots.segment(Gfn(0x12)) == memslots.segment(Gfn(0x13)) == (low, 0x10, 0x18)
    memslots.punch(3, Gfn(0x12), Gfn(0x14))
    assert [memslots.segment(Gfn(gfn)) for gfn in (0x11, 0x13, 0x14)] == [(low, 0x10, 0x12), None, (low, 0x14, 0x18)]
    memslots.delete(3)
    assert memslots.segment(Gfn(0x14)) is None
