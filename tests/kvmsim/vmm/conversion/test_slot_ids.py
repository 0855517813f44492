"""Ids from the top, also when people take some and give some up."""

from kvmsim.vmm.conversion.slot_ids import SlotIds
from kvmsim.vmm.ram import Region, Regions
from memfsd.uapi.units import Gfn, Pgoff
from tests.support.both_sides import errno_of


def region(id_: int) -> Region[None]:
    return Region(id_, Gfn(id_ * 2), 1, 0, None, Pgoff(0))


def test_the_highest_free_id_comes_first_and_what_is_given_back_again() -> None:
    regions: Regions[None] = Regions()
    ids = SlotIds("shared", regions, 4)
    regions.add(region(2))
    assert [ids.take(), ids.take()] == [3, 1]
    ids.give_back(3)
    assert ids.take() == 3


def test_a_full_space_is_enospc_and_what_a_person_deleted_is_found_again() -> None:
    regions: Regions[None] = Regions()
    ids = SlotIds("shared", regions, 3)
    regions.add(region(2))
    for _ in range(2):
        regions.add(region(ids.take()))
    assert errno_of(ids.take) == "ENOSPC"
    regions.remove(2)
    assert ids.take() == 2


def test_an_id_that_is_given_back_again_and_again_is_kept_once() -> None:
    """A conversion that is undone gives its slots their old ids without `take`."""
    regions: Regions[None] = Regions()
    ids = SlotIds("shared", regions, 3)
    id_ = ids.take()
    for _ in range(3):
        ids.give_back(id_)
    assert ids._returned == [-id_]
    regions.add(region(id_))
    assert ids.take() == id_ - 1
    regions.remove(id_)
    ids.give_back(id_)
    assert ids.take() == id_
