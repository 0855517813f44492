"""Ids from the top, also when people take some and give some up."""

from kvmsim.kvm.slots.memslots import AddressSpaceId, Memslot, Memslots, SlotFlag
from kvmsim.vmm.conversion.slot_ids import SlotIds
from tests.support.both_sides import errno_of
from tests.support.slots import NO_BACKING


def slot(id_: int) -> Memslot:
    return Memslot(id_, AddressSpaceId.SHARED, id_ * 2, 1, SlotFlag(0), NO_BACKING, 0)


def test_the_highest_free_id_comes_first_and_what_is_given_back_again() -> None:
    slots = Memslots(AddressSpaceId.SHARED)
    ids = SlotIds(slots, 4)
    slots.add(slot(2))
    assert [ids.take(), ids.take()] == [3, 1]
    ids.give_back(3)
    assert ids.take() == 3


def test_a_full_space_is_enospc_and_what_a_person_deleted_is_found_again() -> None:
    slots = Memslots(AddressSpaceId.SHARED)
    ids = SlotIds(slots, 3)
    slots.add(slot(2))
    for _ in range(2):
        slots.add(slot(ids.take()))
    assert errno_of(ids.take) == "ENOSPC"
    slots.delete(2)
    assert ids.take() == 2
