"""What each design does to slots, to data around and under a converted range, and to memory."""

import errno

import pytest

from kvmsim.kvm.alias import PRIVATE, SHARED
from kvmsim.kvm.exits import MemoryErrorExit, MmioExit
from kvmsim.kvm.region import MAX_SLOT_PAGES, MemoryRegion
from memfsd.uapi.errors import Refused
from memfsd.uapi.units import PAGE_SIZE, Gfn, GfnRange, Pgoff
from tests.kvmsim.vmm.conversion.world import DESIGNS, WHOLE, World
from tests.support.both_sides import LocalStore, LocalVm, page


def slots(world: World, *, private: bool) -> list[tuple[Gfn, Gfn, list[GfnRange]]]:
    return [(slot.gfn, slot.end, slot.segments) for slot in world.local.vm.slots[private]]


@pytest.mark.parametrize(("policy", "under"), DESIGNS, ids=lambda word: word)
def test_a_page_goes_to_shared_and_back(store: LocalStore, policy: str, under: str) -> None:
    world = World(store, policy, under)
    assert world.touch(3, shared=True, data=b"public") is None
    assert world.touch(3, shared=True) == b"p"
    assert world.local.guest.host_access(page(3), 6, None) == b"public"
    assert world.local.read(page(3), 1) == MemoryErrorExit(page(3), PAGE_SIZE, private=True), "not both at once"
    back = world.touch(3, shared=False)
    assert back == (bytes([4]) if under == "kept" and policy == "overlay" else b"\0")
    assert isinstance(world.local.read(page(3), 1, shared=True), MemoryErrorExit)
    assert world.local.vmm.shared_pages() == 0
    assert world.touch(3, shared=True) == b"\0", "the shared copy is gone, too"
    assert store.findings() == []


@pytest.mark.parametrize(("policy", "under"), [d for d in DESIGNS if d[0] != "recreate"], ids=lambda word: word)
def test_data_around_a_converted_range_survives(store: LocalStore, policy: str, under: str) -> None:
    world = World(store, policy, under)
    assert world.map(4, 3, private=False) is None
    assert world.private_bytes() == [*WHOLE[:4], None, None, None, *WHOLE[7:]]
    assert world.map(5, 1, private=True) is None
    assert world.private_bytes()[:4] == WHOLE[:4]
    assert world.private_bytes()[7:] == WHOLE[7:]
    assert world.local.vmm.tally.lost_pages == 0


def test_recreate_destroys_the_data_around_and_says_how_much(store: LocalStore) -> None:
    world = World(store, "recreate", "kept")
    assert world.touch(3, shared=True) == b"\0"
    assert world.private_bytes() == [0, 0, 0, None, *[0] * 12]
    assert world.local.vmm.tally.lost_pages == 15


def test_recreate_makes_three_slots_of_one(store: LocalStore) -> None:
    world = World(store, "recreate", "kept")
    world.map(4, 2, private=False)
    assert slots(world, private=True) == [(0, 4, [(0, 4)]), (6, 16, [(6, 16)])]
    assert slots(world, private=False) == [(4, 6, [(4, 6)])]
    world.map(4, 2, private=True)
    assert [(low, high) for low, high, _ in slots(world, private=True)] == [(0, 4), (4, 6), (6, 16)]
    assert slots(world, private=False) == []


def test_recreate_loses_no_neighbours_the_second_time(store: LocalStore) -> None:
    world = World(store, "recreate", "kept")
    world.touch(3, shared=True)
    world.touch(3, shared=False, data=b"again")
    world.touch(2, shared=False, data=b"beside")
    lost = world.local.vmm.tally.lost_pages
    assert world.touch(3, shared=True) == b"\0"
    assert world.touch(2, shared=False) == b"b"
    assert world.local.vmm.tally.lost_pages == lost


def test_recreate_brings_back_parts_of_what_it_converted(store: LocalStore) -> None:
    world = World(store, "recreate", "kept")
    world.map(4, 8, private=False)
    for number in range(4, 12):
        world.touch(number, shared=True, data=bytes([100 + number]) * 8)
    for first, pages in ((6, 2), (4, 1), (10, 2)):
        assert world.map(first, pages, private=True) is None
    assert [number for number, byte in enumerate(world.private_bytes()) if byte is None] == [5, 8, 9]
    assert [world.shared_bytes()[number] for number in (5, 8, 9)] == [bytes([100 + n]) * 8 for n in (5, 8, 9)]
    assert world.map(0, 16, private=True) is None, "many slots cover it together"
    assert None not in world.private_bytes()


def test_punch_keeps_one_slot_with_holes(store: LocalStore) -> None:
    world = World(store, "punch", "kept")
    for number in (3, 4, 9):
        world.touch(number, shared=True)
    assert slots(world, private=True) == [(0, 16, [(0, 3), (5, 9), (10, 16)])]
    assert [slot.id for slot in world.local.vm.slots[PRIVATE]] == [0]
    assert slots(world, private=False) == [(3, 5, [(3, 5)]), (9, 10, [(9, 10)])]


@pytest.mark.parametrize("under", ["kept", "freed"])
def test_overlay_never_touches_the_private_slot(store: LocalStore, under: str) -> None:
    world = World(store, "overlay", under)
    before, bound = slots(world, private=True), list(store.guest("file").bindings)
    for number in (3, 4, 9):
        world.touch(number, shared=True)
    world.map(4, 1, private=True)
    assert slots(world, private=True) == before
    assert list(store.guest("file").bindings) == bound
    assert slots(world, private=False) == [(3, 4, [(3, 4)]), (9, 10, [(9, 10)])]


def test_overlay_kept_holds_the_memory_twice_and_reports_it(store: LocalStore) -> None:
    world, free = World(store, "overlay", "kept"), store.free_count
    world.touch(3, shared=True, data=b"public")
    assert (store.free_count, world.local.vmm.doubled_pages()) == (free, 1)
    assert world.touch(3, shared=False) == bytes([4]), "its data was there all the time"
    assert world.local.vmm.doubled_pages() == 0


def test_overlay_freed_gives_the_frame_back_and_holds_nothing_twice(store: LocalStore) -> None:
    world, free = World(store, "overlay", "freed"), store.free_count
    world.touch(3, shared=True, data=b"public")
    assert (store.free_count, world.local.vmm.doubled_pages()) == (free + 1, 0)
    assert world.touch(3, shared=False) == b"\0"


@pytest.mark.parametrize("under", ["kept", "freed"])
def test_under_an_overlay_a_private_range_is_an_exit_to_its_last_page(store: LocalStore, under: str) -> None:
    """A bulk access stops before the ordinary slot, and a run that the store grants is not mapped under it."""
    world = World(store, "overlay", under)
    world.map(6, 2, private=False)
    got = world.local.read(page(4), page(6))
    assert got == MemoryErrorExit(page(6), PAGE_SIZE, private=True)
    explicit = world.local.guest.map(world.local.vcpu, page(4), page(6), private=True)
    assert explicit == MemoryErrorExit(page(4), page(6), private=True, explicit=True)
    assert world.local.guest.map(world.local.vcpu, page(8), page(8), private=True) is None


def test_an_ordinary_slot_of_the_users_is_an_overlay_too(store: LocalStore) -> None:
    world = World(store, "overlay", "kept")
    memory = world.local.shared_slot(5, page(2), page(2))
    memory.write(0, b"mine")
    assert world.private_bytes() == [1, 2, None, None, *WHOLE[4:]]
    assert world.touch(2, shared=False) == MemoryErrorExit(page(2), PAGE_SIZE, private=True), (
        "not the policy's to remove"
    )
    world.local.delete(5, private=False)
    assert world.private_bytes() == WHOLE


def test_switching_to_overlay_blocks_what_lies_under_ordinary_slots_already(store: LocalStore) -> None:
    world = World(store, "none", "kept")
    world.local.shared_slot(5, page(2), page(2))
    assert world.private_bytes() == WHOLE, "two address spaces, and both aliases work"
    world.local.vmm.set_policy("overlay")
    assert world.private_bytes() == [1, 2, None, None, *WHOLE[4:]]
    world.local.vmm.set_policy("none")
    assert world.private_bytes() == WHOLE


def test_moving_an_overlay_uncovers_and_covers(store: LocalStore) -> None:
    world = World(store, "overlay", "kept")
    world.local.shared_slot(5, page(2), page(2))
    world.local.vmm.memory.set_shared_slot(MemoryRegion.shared(5, page(8), page(2)), None, owned=False)
    assert world.private_bytes() == [*WHOLE[:8], None, None, *WHOLE[10:]]


def test_a_punch_under_a_kept_overlay_takes_the_page_away(store: LocalStore) -> None:
    world = World(store, "overlay", "kept")
    world.touch(3, shared=True, data=b"public")
    store.punch("file", 3, 1)
    assert world.local.vmm.doubled_pages() == 0
    assert world.touch(3, shared=False) == b"\0"


@pytest.mark.parametrize(("policy", "under"), DESIGNS, ids=lambda word: word)
def test_a_range_that_is_not_all_the_guests_memory_is_not_converted_in_part(
    store: LocalStore, policy: str, under: str
) -> None:
    world = World(store, policy, under)
    assert world.map(8, 16, private=False) == MemoryErrorExit(page(8), page(16), private=False, explicit=True)
    assert world.private_bytes() == WHOLE


@pytest.mark.parametrize(("policy", "under"), DESIGNS, ids=lambda word: word)
def test_the_slot_cap_refuses_and_changes_nothing(store: LocalStore, policy: str, under: str) -> None:
    world = World(store, policy, under, max_slots=3)
    world.local.shared_slot(0, page(64), page(1))
    world.local.shared_slot(1, page(66), page(1))
    world.local.shared_slot(2, page(68), page(1))
    before = world.state()
    with pytest.raises(Exception, match="--max-slots"):
        world.touch(3, shared=True)
    assert world.state() == before


def test_a_store_that_takes_back_only_the_first_range_leaves_the_rest_destroyed_and_counted(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(store, "punch", "kept")
    world.touch(6, shared=True, data=b"x")
    (link,) = world.local.kvm.pairings.links.values()
    calls, punch = [], link.punch

    def once(pgoff: int, page_count: int) -> None:
        calls.append(pgoff)
        if len(calls) > 1:
            raise Refused(5, "the store will not")
        punch(Pgoff(pgoff), page_count)

    monkeypatch.setattr(link, "punch", once)
    assert world.map(4, 6, private=False) is None
    assert calls == [4, 7]
    assert world.local.vmm.tally.unreturned_pages == 3
    monkeypatch.undo()
    assert world.map(4, 6, private=True) is None
    assert world.private_bytes()[4:10] == [0] * 6


@pytest.mark.parametrize(("policy", "under"), DESIGNS, ids=lambda word: word)
def test_bytes_of_a_shared_slot_that_a_person_deleted_are_not_shown_again(
    store: LocalStore, policy: str, under: str
) -> None:
    world = World(store, policy, under)
    assert world.touch(3, shared=True, data=b"old") is None
    (slot,) = world.local.vm.slots[SHARED]
    world.local.delete(slot.id, private=False)
    world.touch(3, shared=False)
    got = world.touch(3, shared=True)
    assert got == b"\0" or isinstance(got, MemoryErrorExit | MmioExit), "zeros, or not the VMM's any more"


@pytest.mark.parametrize(("policy", "under"), DESIGNS, ids=lambda word: word)
def test_conversions_go_on_while_the_file_is_shorter(resizable_store: LocalStore, policy: str, under: str) -> None:
    """What is behind its end stays bound, or it would never be had again once the file has grown."""
    world = World(resizable_store, policy, under)
    resizable_store.truncate("file", 8)
    assert world.map(6, 6, private=False) is None
    assert world.map(3, 1, private=False) is None
    failed = world.map(10, 1, private=True)
    assert isinstance(failed, MemoryErrorExit) and failed.errno == errno.EFAULT
    resizable_store.truncate("file", 16)
    assert [number for number, byte in enumerate(world.private_bytes()) if byte is None] == [3, 6, 7, 8, 9, 11]
    assert resizable_store.findings() == []


@pytest.mark.parametrize("before", [[], [(0, 1)], [(MAX_SLOT_PAGES - 1, MAX_SLOT_PAGES)]], ids=repr)
def test_what_is_too_large_for_one_shared_slot_takes_several(vm: LocalVm, before: list[GfnRange]) -> None:
    """Also when its neighbours would have fitted in a slot by themselves."""
    copy, first, end = vm.vmm._copy, Gfn(1), Gfn(2 * MAX_SLOT_PAGES)
    with vm.vmm.memory.lock:
        for low, high in before:
            copy.add(Gfn(low), Gfn(high))
        for low, high in vm.vmm.memory.ram.shared.missing(first, end):
            copy.add(low, high)
        assert vm.vmm.memory.ram.shared.missing(first, end) == []
        assert all(region.page_count <= MAX_SLOT_PAGES for region in vm.vmm.memory.ram.shared)
        assert len(vm.vmm.memory.ram.shared) <= 3
        assert copy.remove(first, end)
        assert copy.ranges(first, end) == []
