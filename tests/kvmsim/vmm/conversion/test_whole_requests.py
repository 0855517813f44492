"""A guest's request over several slots, files and holes: all of it happens, or nothing changes."""

import errno

import pytest

from kvmsim.kvm.alias import PRIVATE
from kvmsim.kvm.exits import Exit, HypercallExit, MemoryErrorExit
from kvmsim.kvm.hypercalls import KVM_HC_MAP_GPA_RANGE, MAP_GPA_RANGE_ENCRYPTED, negative
from memfsd.uapi.errors import Refused
from tests.kvmsim.vmm.conversion.world import DESIGNS, PAGES, World
from tests.support.both_sides import LocalStore, page

MORE = 8
END = PAGES + MORE


@pytest.fixture(params=DESIGNS, ids="-".join)
def world(request: pytest.FixtureRequest, store: LocalStore) -> World:
    """16 pages of one file, and 8 of another after them."""
    world = World(store, *request.param)
    store.create("more", MORE)
    world.local.private_slot(1, page(PAGES), page(MORE), "more")
    return world


def shown(world: World, *, private: bool) -> list[int]:
    """Pages that a guest reaches in one alias."""
    got = [world.local.read(page(number), 1, shared=not private) for number in range(END)]
    return [number for number, byte in enumerate(got) if isinstance(byte, bytes)]


def test_a_request_over_two_files_happens_both_ways(world: World) -> None:
    for _ in range(3):
        assert world.map(12, 8, private=False) is None
        assert shown(world, private=False) == list(range(12, 20))
        assert world.map(0, END, private=True) is None
        assert shown(world, private=True) == list(range(END))
        assert shown(world, private=False) == []
    assert world.store.findings() == []


def test_private_slots_side_by_side_need_no_conversion(world: World) -> None:
    assert world.map(0, END, private=True) is None
    assert world.local.vmm.converted_count == 0


def test_a_request_in_part_under_a_persons_slot_happens_to_shared(world: World) -> None:
    world.local.delete(1, private=True)
    memory = world.local.shared_slot(7, page(PAGES), page(MORE))
    memory.write(0, b"mine")
    assert world.map(14, 4, private=False) is None
    assert world.touch(PAGES, shared=True) == b"m"
    assert shown(world, private=False)[:2] == [14, 15]


def test_and_to_private_it_changes_nothing(world: World) -> None:
    """No design makes a person's memory private."""
    world.local.delete(1, private=True)
    world.local.shared_slot(7, page(PAGES), page(MORE))
    assert world.map(4, 4, private=False) is None
    before = world.state(), world.local.vmm.converted_count
    for _ in range(2):
        assert world.map(4, 14, private=True) == MemoryErrorExit(page(4), page(14), private=True, explicit=True)
        assert (world.state(), world.local.vmm.converted_count) == before


def test_a_hole_that_another_private_slot_fills_is_private_already(store: LocalStore) -> None:
    world = World(store, "punch", "kept")
    store.create("more", MORE)
    world.local.vmm.memory.punch_slot(0, page(4), page(2))
    world.local.private_slot(1, page(4), page(2), "more")
    assert world.map(6, 2, private=False) is None
    assert world.map(0, PAGES, private=True) is None


def test_a_page_goes_back_to_the_slot_that_showed_it_last(store: LocalStore) -> None:
    """Not to a slot around that one, in whose hole it was made."""
    world = World(store, "punch", "kept")
    store.create("more", MORE)
    world.local.vmm.memory.punch_slot(0, page(4), page(4))
    world.local.private_slot(1, page(4), page(4), "more")
    assert world.map(5, 2, private=False) is None
    assert world.map(3, 6, private=True) is None
    slots = {slot.id: slot.segments for slot in world.local.vm.slots[PRIVATE]}
    assert slots == {0: [(0, 4), (8, PAGES)], 1: [(4, 8)]}
    assert world.private_bytes() == [1, 2, 3, 4, 0, 0, 0, 0, *range(9, PAGES + 1)]


def test_what_recreate_remembers_of_a_range_goes_when_it_is_private_again(store: LocalStore) -> None:
    """Each part once: a slot made twice for a page would be EEXIST, one forgotten could never be made."""
    world = World(store, "recreate", "kept")
    assert world.map(2, 10, private=False) is None
    for first, pages in ((4, 2), (2, 1), (11, 1), (8, 2)):
        assert world.map(first, pages, private=True) is None
    recreate = world.local.vmm._recreate
    assert [(low, high) for low, high, _ in recreate._converted] == [(3, 4), (6, 8), (10, 11)]
    assert world.map(0, PAGES, private=True) is None
    assert len(recreate._converted) == 0
    assert world.map(5, 6, private=False) is None
    assert [(low, high) for low, high, _ in recreate._converted] == [(5, 6), (6, 8), (8, 10), (10, 11)]
    assert world.map(5, 6, private=True) is None
    assert len(recreate._converted) == 0


# -- holes: the addresses of devices


def test_a_hole_is_shared_already(world: World) -> None:
    assert world.map(END, 4, private=False) is None
    assert world.local.vmm.converted_count == 0
    exit_ = MemoryErrorExit(page(END), page(4), private=True, explicit=True)
    assert world.map(END, 4, private=True) == exit_


def test_without_a_policy_the_request_is_the_scripts_to_answer(world: World) -> None:
    world.local.vmm.set_policy("none")
    exit_ = MemoryErrorExit(page(END), page(4), private=False, explicit=True)
    assert world.map(END, 4, private=False) == exit_
    assert world.local.vcpu.kvm_run() == exit_, "looked at again"
    world.local.vcpu.run.memory_error.answered = 1
    assert world.local.vcpu.kvm_run() is None


# -- KVM_HC_MAP_GPA_RANGE


@pytest.fixture
def linux_way(world: World) -> World:
    world.local.vm.exit_hypercalls = 1 << KVM_HC_MAP_GPA_RANGE
    return world


def call(world: World, first: int, pages: int, attributes: int) -> int | Exit:
    local = world.local
    args = (page(first), pages, attributes)
    return local.vmm.run(local.vcpu, lambda: local.guest.vmcall(local.vcpu, KVM_HC_MAP_GPA_RANGE, args))


def test_user_space_converts_on_the_hypercall_exit(linux_way: World) -> None:
    for _ in range(2):
        assert linux_way.map(12, 8, private=False) is None
        assert shown(linux_way, private=False) == list(range(12, 20))
        assert linux_way.map(0, END, private=True) is None
        assert shown(linux_way, private=True) == list(range(END))
    assert call(linux_way, 3, 2, 0) == 0
    assert call(linux_way, 3, 2, 0) == 0, "shared already"
    assert shown(linux_way, private=False) == [3, 4]
    assert call(linux_way, 3, 2, MAP_GPA_RANGE_ENCRYPTED) == 0
    assert shown(linux_way, private=False) == []


def test_a_hypercall_for_a_hole(linux_way: World) -> None:
    assert linux_way.map(END, 4, private=False) is None
    assert call(linux_way, 1 << 36, 1 << 40, 0) == 0
    assert call(linux_way, END - 1, 2, 0) == HypercallExit(12, (page(END - 1), 2, 0)), "half of it is memory"
    assert call(linux_way, END, 1, MAP_GPA_RANGE_ENCRYPTED) == HypercallExit(12, (page(END), 1, 16))
    assert linux_way.local.vmm.converted_count == 0


def test_a_conversion_that_is_refused_is_what_the_guest_is_told(store: LocalStore) -> None:
    world = World(store, "punch", "kept", max_slots=1)
    world.local.shared_slot(0, page(64), page(1))
    world.local.vm.exit_hypercalls = 1 << KVM_HC_MAP_GPA_RANGE
    before = world.state()
    with pytest.raises(Refused) as refused:
        call(world, 3, 2, 0)
    assert refused.value.errno == errno.ENOSPC
    assert world.state() == before
    with pytest.raises(Refused):
        call(world, 3, 2, 0)
    assert world.local.vcpu.kvm_run() == negative(errno.ENOSPC)


def test_other_hypercalls_are_nobodys(linux_way: World) -> None:
    local = linux_way.local
    local.vm.exit_hypercalls = 1 << 11
    got = local.vmm.run(local.vcpu, lambda: local.guest.vmcall(local.vcpu, 11, (0, 1, 0)))
    assert got == HypercallExit(11, (0, 1, 0))
