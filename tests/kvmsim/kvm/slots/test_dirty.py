"""Dirty logging of shared slots: what is in a log, when it is empty, and what keeps it."""

import errno
from functools import partial

import pytest

from kvmsim.kvm.alias import SHARED
from kvmsim.kvm.region import MemoryRegion, SlotFlag
from kvmsim.memory.memory import AnonymousMemory
from memfsd.uapi.errors import Refused
from memfsd.uapi.units import PAGE_SIZE, Gfn
from tests.support.both_sides import LocalStore, LocalVm, errno_of, page

LOG = int(SlotFlag.LOG_DIRTY_PAGES)
FIRST = 100
"""GFN of the slot's first page; it has 32."""


@pytest.fixture
def logged(vm: LocalVm) -> LocalVm:
    vm.shared_slot(1, page(FIRST), page(32), flags=LOG)
    return vm


def dirty(local: LocalVm, id_: int = 1) -> list[tuple[int, int]]:
    return [(start - FIRST, end - FIRST) for start, end in local.kvm.slots.get_dirty_log(id_)]


def write(local: LocalVm, number: int, data: bytes = b"x") -> None:
    assert local.write(page(FIRST + number), data, shared=True) is None


def test_a_new_log_is_empty_and_reading_leaves_it_empty(logged: LocalVm) -> None:
    assert logged.read(page(FIRST), page(4), shared=True) == bytes(page(4))
    assert dirty(logged) == []


def test_each_written_page_is_there_once(logged: LocalVm) -> None:
    for number in (3, 4, 9, 3):
        write(logged, number)
    assert dirty(logged) == [(3, 5), (9, 10)]
    assert dirty(logged) == []


def test_a_page_that_is_written_again_after_the_log_was_taken_is_there_again(logged: LocalVm) -> None:
    write(logged, 3)
    assert dirty(logged) == [(3, 4)]
    write(logged, 3)
    write(logged, 3, b"y")
    assert dirty(logged) == [(3, 4)], "although the TLB knew it"


def test_a_page_that_was_read_first_is_logged_when_it_is_written(logged: LocalVm) -> None:
    assert logged.read(page(FIRST + 5), 1, shared=True) == b"\0"
    write(logged, 5)
    assert dirty(logged) == [(5, 6)]


def test_bulk_writes_touches_and_kvms_own_writes_are_logged(logged: LocalVm) -> None:
    write(logged, 2, b"long" * (PAGE_SIZE // 2))
    assert dirty(logged) == [(2, 4)]
    assert logged.touch(page(FIRST + 8), page(16), shared=True) is None
    assert dirty(logged) == [(8, 24)]
    assert logged.guest.host_access(page(FIRST + 30) + 4094, 4, b"host") == b""
    assert dirty(logged) == [(30, 32)]
    assert logged.guest.host_access(page(FIRST), 4, None) == bytes(4)
    assert dirty(logged) == []


def test_another_vcpu_that_knew_the_page_as_writable_is_logged_too(logged: LocalVm) -> None:
    other = logged.vm.create_vcpu(1)
    for vcpu in (logged.vcpu, other):
        assert logged.guest.write(vcpu, page(FIRST), b"x", shared=True) is None
    assert dirty(logged) == [(0, 1)]
    assert logged.guest.write(other, page(FIRST), b"y", shared=True) is None
    assert dirty(logged) == [(0, 1)]


def test_a_slot_that_does_not_log_or_is_not_there_is_enoent(logged: LocalVm) -> None:
    logged.shared_slot(2, 0, page(1))
    assert errno_of(logged.kvm.slots.get_dirty_log, 2) == "ENOENT"
    assert errno_of(logged.kvm.slots.get_dirty_log, 7) == "ENOENT"


def test_an_id_that_no_slot_may_have_is_einval(logged: LocalVm) -> None:
    last = logged.vm.max_slots - 1
    assert errno_of(logged.kvm.slots.get_dirty_log, last) == "ENOENT"
    for id_ in (-1, last + 1, 1 << 16 | 1):
        assert errno_of(logged.kvm.slots.get_dirty_log, id_) == "EINVAL"


def test_logging_can_be_begun_and_ended_on_a_slot_that_is_in_use(vm: LocalVm) -> None:
    vm.shared_slot(1, page(FIRST), page(32))
    write(vm, 3)
    vm.kvm.slots.set_shared_slot(MemoryRegion.shared(1, page(FIRST), page(32), flags=LOG), None, owned=False)
    assert dirty(vm) == [], "what was written before is not in it"
    write(vm, 3)
    assert dirty(vm) == [(3, 4)]
    vm.kvm.slots.set_shared_slot(MemoryRegion.shared(1, page(FIRST), page(32)), None, owned=False)
    assert errno_of(vm.kvm.slots.get_dirty_log, 1) == "ENOENT"
    write(vm, 3)


def test_a_slot_that_moves_keeps_its_log(logged: LocalVm) -> None:
    write(logged, 3)
    logged.kvm.slots.set_shared_slot(MemoryRegion.shared(1, page(FIRST + 50), page(32), flags=LOG), None, owned=False)
    assert dirty(logged) == [(53, 54)]


def test_a_readonly_slot_logs_nothing(vm: LocalVm) -> None:
    vm.kvm.slots.set_shared_slot(
        MemoryRegion.shared(1, page(FIRST), page(4), flags=LOG | int(SlotFlag.READONLY)),
        AnonymousMemory(page(4)),
        owned=True,
    )
    assert vm.write(page(FIRST), b"x", shared=True) is not None, "an exit"
    assert dirty(vm) == []


@pytest.fixture
def converting(store: LocalStore) -> LocalVm:
    """Pages 4 to 12 are shared, in a slot of the VMM's that logs; 4, 6 and 11 were written."""
    store.create("file", 16)
    local = store.vm(max_slots=8)
    local.private_slot(0, 0, page(16), "file")
    local.vmm.set_policy("punch")
    assert local.vmm.convert(Gfn(4), Gfn(12), private=False) == 8
    (slot,) = local.vm.slots[SHARED]
    local.vmm.memory.set_shared_slot(
        MemoryRegion.shared(slot.id, page(4), page(8), flags=LOG, offset=page(4)), None, owned=False
    )
    for number in (4, 6, 11):
        assert local.write(page(number), b"x", shared=True) is None
    return local


def all_dirty(local: LocalVm) -> list[tuple[int, int]]:
    logging = [slot.id for slot in local.vm.slots[SHARED] if slot.flags & LOG]
    return sorted(run for id_ in logging for run in local.vmm.memory.get_dirty_log(id_))


def test_a_conversion_keeps_the_log_of_what_stays_shared(converting: LocalVm) -> None:
    """The VMM's slot is cut in two, then joined again: what is in its log comes along."""
    assert converting.vmm.convert(Gfn(6), Gfn(8), private=True) == 2
    assert all_dirty(converting) == [(4, 5), (11, 12)]
    assert converting.write(page(9), b"x", shared=True) is None
    assert converting.vmm.convert(Gfn(6), Gfn(8), private=False) == 2
    assert len(converting.vm.slots[SHARED]) == 1
    assert all_dirty(converting) == [(6, 8), (9, 10)]


def test_what_comes_back_from_private_is_zero_and_in_the_log(converting: LocalVm) -> None:
    """Whoever has copied the page before must copy it again."""
    assert all_dirty(converting) == [(4, 5), (6, 7), (11, 12)]
    assert converting.vmm.convert(Gfn(6), Gfn(7), private=True) == 1
    assert converting.vmm.convert(Gfn(6), Gfn(7), private=False) == 1
    assert converting.read(page(6), 1, shared=True) == b"\0"
    assert all_dirty(converting) == [(6, 7)]
    assert all_dirty(converting) == []


@pytest.mark.parametrize("start", [10, 4], ids=["a part of the slot", "all of it"])
def test_a_conversion_that_is_refused_leaves_the_log(
    converting: LocalVm, monkeypatch: pytest.MonkeyPatch, start: int
) -> None:
    """There are two holes to fill, and the second stays."""
    assert converting.vmm.convert(Gfn(13), Gfn(14), private=False) == 1
    fill = converting.kvm.slots.fill_slot

    def refusing(id_: int, gfn: Gfn, end: Gfn) -> None:
        if gfn == 13:
            raise Refused(errno.EIO, "the second hole stays")
        fill(id_, gfn, end)

    monkeypatch.setattr(converting.kvm.slots, "fill_slot", refusing)
    assert errno_of(partial(converting.vmm.convert, Gfn(start), Gfn(14), private=True)) == "EIO"
    assert all_dirty(converting) == [(4, 5), (6, 7), (11, 12)]
