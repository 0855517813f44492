"""User space under a policy: what it does about an exit, what survives, and what it never holds twice."""

import errno

import pytest

from kvmsim.kvm.alias import SHARED
from kvmsim.kvm.exits import MemoryErrorExit, MmioExit
from memfsd.uapi.errors import Refused
from memfsd.uapi.units import PAGE_SIZE, Gfn
from tests.support.both_sides import LocalStore, LocalVm, page


def started(store: LocalStore, policy: str, max_slots: int = 64) -> LocalVm:
    """Private slot 0 at 0, 16 pages, each holding its number."""
    store.create("file", 16)
    local = store.vm(max_slots=max_slots)
    local.private_slot(0, 0, page(16), "file")
    local.vmm.set_policy(policy)
    for number in range(16):
        assert local.write(page(number), bytes([number + 1])) is None
    return local


@pytest.fixture
def punching(store: LocalStore) -> LocalVm:
    return started(store, "punch")


def run_write(local: LocalVm, gpa: int, data: bytes, *, shared: bool) -> object:
    return local.vmm.run(local.vcpu, lambda: local.write(gpa, data, shared=shared))


def run_read(local: LocalVm, gpa: int, length: int, *, shared: bool) -> object:
    return local.vmm.run(local.vcpu, lambda: local.read(gpa, length, shared=shared))


def run_map(local: LocalVm, first: int, pages: int, *, private: bool) -> object:
    return local.vmm.run(local.vcpu, lambda: local.guest.map(local.vcpu, page(first), page(pages), private=private))


def private_bytes(local: LocalVm) -> list[int | None]:
    """The first byte of each page, None where no private slot shows it."""
    found: list[int | None] = []
    for number in range(16):
        got = local.read(page(number), 1)
        found.append(got[0] if isinstance(got, bytes) else None)
    return found


def shared_slots(local: LocalVm) -> list[tuple[int, int]]:
    return [(slot.gfn, slot.end) for slot in local.vm.slots[SHARED]]


WHOLE = [number + 1 for number in range(16)]


def test_none_handles_nothing(store: LocalStore) -> None:
    local = started(store, "none")
    assert run_write(local, page(3), b"x", shared=True) == MemoryErrorExit(page(3), PAGE_SIZE, private=False)
    assert (private_bytes(local), shared_slots(local)) == (WHOLE, [])


def test_punch_converts_the_page_that_is_touched_and_data_around_it_survives(punching: LocalVm) -> None:
    assert run_write(punching, page(3) + 5, b"public", shared=True) is None
    assert run_read(punching, page(3), 11, shared=True) == b"\0" * 5 + b"public"
    assert private_bytes(punching) == [*WHOLE[:3], None, *WHOLE[4:]]
    assert punching.guest.host_access(page(3) + 5, 6, None) == b"public"


def test_a_converted_page_gives_its_frame_back_at_once(store: LocalStore, punching: LocalVm) -> None:
    free = store.free_count
    run_map(punching, 4, 3, private=False)
    assert store.free_count == free + 3


def test_a_page_that_comes_back_is_zero_and_its_shared_copy_is_gone(punching: LocalVm) -> None:
    run_write(punching, page(3), b"public", shared=True)
    assert run_read(punching, page(3), 6, shared=False) == bytes(6)
    assert shared_slots(punching) == []
    assert punching.vmm.shared_pages() == 0
    assert private_bytes(punching) == [*WHOLE[:3], 0, *WHOLE[4:]]
    assert run_read(punching, page(3), 6, shared=True) == bytes(6), "and shared again it is zero, too"


def test_nothing_is_ever_held_twice(punching: LocalVm) -> None:
    for first, pages, private in ((2, 4, False), (3, 1, True), (0, 16, False), (0, 16, True), (5, 6, False)):
        assert run_map(punching, first, pages, private=private) is None
        gpa = page(first)
        punching.touch(gpa, page(pages), shared=not private)
        assert punching.vmm.doubled_pages() == 0
        assert punching.vmm.shared_pages() <= 16


def test_doubled_memory_is_seen_when_there_is_some(store: LocalStore, punching: LocalVm) -> None:
    run_write(punching, page(3), b"public", shared=True)
    punching.vmm.memory.fill_slot(0, Gfn(3), Gfn(4))
    punching.write(page(3), b"secret")
    assert punching.vmm.doubled_pages() == 1


def test_slots_of_user_space_take_ids_from_the_top(punching: LocalVm) -> None:
    run_write(punching, page(3), b"x", shared=True)
    run_write(punching, page(9), b"x", shared=True)
    assert sorted(slot.id for slot in punching.vm.slots[SHARED]) == [62, 63]


def test_part_of_a_shared_range_goes_private_and_the_rest_keeps_its_data(punching: LocalVm) -> None:
    assert run_map(punching, 4, 8, private=False) is None
    for number in range(4, 12):
        punching.write(page(number), bytes([100 + number]), shared=True)
    assert run_map(punching, 6, 2, private=True) is None
    assert shared_slots(punching) == [(4, 6), (8, 12)]
    kept = [punching.read(page(number), 1, shared=True) for number in (4, 5, 8, 9, 10, 11)]
    assert kept == [bytes([100 + number]) for number in (4, 5, 8, 9, 10, 11)]
    assert private_bytes(punching) == [*WHOLE[:4], None, None, 0, 0, *[None] * 4, *WHOLE[12:]]


def test_neighbours_that_were_converted_one_by_one_can_be_mapped_as_one(punching: LocalVm) -> None:
    run_write(punching, page(4), b"four", shared=True)
    run_write(punching, page(6), b"six", shared=True)
    assert run_map(punching, 4, 3, private=False) is None, "page 5 is still private: it is converted, the others stay"
    assert run_read(punching, page(4), 4, shared=True) == b"four"
    assert run_read(punching, page(6), 3, shared=True) == b"six"


def test_an_explicit_request_converts_only_what_is_not_yet(punching: LocalVm) -> None:
    run_map(punching, 4, 4, private=False)
    before = punching.vmm.converted_count
    assert run_map(punching, 4, 4, private=False) is None
    assert punching.vmm.converted_count == before
    assert run_map(punching, 0, 16, private=True) is None
    assert punching.vmm.converted_count == before + 4


def test_an_exit_that_no_conversion_can_mend_is_handed_on(punching: LocalVm) -> None:
    assert run_read(punching, page(99), 4, shared=True) == MmioExit(page(99), 4, is_write=False)
    assert run_read(punching, page(99), 4, shared=False) == MemoryErrorExit(page(99), PAGE_SIZE, private=True)
    far = MemoryErrorExit(page(8), page(16), private=False, explicit=True)
    assert run_map(punching, 8, 16, private=False) == far


def test_a_shared_slot_of_the_users_is_left_alone(punching: LocalVm) -> None:
    memory = punching.shared_slot(0, page(3), page(1))
    memory.write(0, b"mine")
    punching.vmm.memory.punch_slot(0, page(3), page(1))
    assert run_read(punching, page(3), 1, shared=False) == b"\0", "the hole is filled again"
    assert punching.read(page(3), 4, shared=True) == b"mine"


def test_a_conversion_without_a_free_slot_id_is_refused_and_changes_nothing_that_lasts(store: LocalStore) -> None:
    local = started(store, "punch", max_slots=1)
    local.shared_slot(0, page(64), page(1))
    with pytest.raises(Refused) as refused:
        run_write(local, page(3), b"x", shared=True)
    assert refused.value.errno == errno.ENOSPC
    assert shared_slots(local) == [(64, 65)]
    assert private_bytes(local) == WHOLE


def test_a_split_without_a_free_slot_id_is_refused_and_loses_no_data(store: LocalStore) -> None:
    local = started(store, "punch", max_slots=1)
    assert run_map(local, 4, 8, private=False) is None
    for number in range(4, 12):
        local.write(page(number), bytes([100 + number]), shared=True)
    with pytest.raises(Refused) as refused:
        run_map(local, 6, 2, private=True)
    assert refused.value.errno == errno.ENOSPC
    kept = [local.read(page(number), 1, shared=True) for number in range(4, 12)]
    assert kept == [bytes([100 + number]) for number in range(4, 12)]
    assert shared_slots(local) == [(4, 12)]


def test_a_store_that_is_gone_can_not_take_shared_data_away(store: LocalStore, punching: LocalVm) -> None:
    run_write(punching, page(3), b"public", shared=True)
    store.hang_up("file")
    with pytest.raises(Refused) as refused:
        run_read(punching, page(3), 1, shared=False)
    assert refused.value.errno == errno.EHOSTDOWN
    assert run_read(punching, page(3), 6, shared=True) == b"public"


def test_what_is_kept_under_an_overlay_is_destroyed_with_its_slot(store: LocalStore) -> None:
    """Unmapping destroys, also what is only blocked: it must not be back in the next slot of these pages."""
    store.create("file", 4)
    local = LocalVm(store)
    local.private_slot(0, 0, page(4), "file")
    local.write(page(1), b"secret")
    local.shared_slot(0, page(1), page(1))
    local.vmm.set_policy("overlay")
    local.delete(0, private=True)
    local.delete(0, private=False)
    local.private_slot(0, 0, page(4), "file")
    assert local.read(page(1), 6) == bytes(6)


def test_what_is_kept_under_an_overlay_is_not_reclaimed(store: LocalStore) -> None:
    """Its frame was granted ahead and is pending to the store, so only the VM knows that the guest has touched it."""
    store.create("file", 8)
    local = LocalVm(store)
    local.private_slot(0, 0, page(8), "file")
    for number in range(8):
        local.write(page(number), b"data %d" % number)
    local.vmm.set_policy("overlay")
    local.shared_slot(0, 0, page(8))
    store.reclaim()
    local.delete(0, private=False)
    assert [local.read(page(number), 6) for number in range(8)] == [b"data %d" % number for number in range(8)]


@pytest.mark.parametrize("policy", ["punch", "recreate"])
def test_a_conversion_that_was_taken_back_loses_nothing_later(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    """Unmapped meanwhile, the pages look untouched: a reclaim must not take them, and a deletion destroys them."""
    store.create("file", 8)
    local = LocalVm(store)
    local.private_slot(0, 0, page(8), "file")
    for number in range(8):
        local.write(page(number), b"data %d" % number)
    local.vmm.set_policy(policy)
    with monkeypatch.context() as patch:

        def refuse(pgoff: int, page_count: int) -> None:
            raise Refused(errno.EIO, "the store does not take it")

        patch.setattr(local.link(), "punch", refuse)
        with pytest.raises(Refused, match="does not take it"):
            local.vmm.run(local.vcpu, lambda: local.guest.map(local.vcpu, page(2), page(4), private=False))
    store.reclaim()
    assert [local.read(page(number), 6) for number in range(8)] == [b"data %d" % number for number in range(8)]
    local.vm.mmu.block(Gfn(0), Gfn(8))
    local.delete(0, private=True)
    local.private_slot(0, 0, page(8), "file")
    assert local.read(0, page(8)) == bytes(page(8))
