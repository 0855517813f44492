"""KVM_SET_USER_MEMORY_REGION: every check and its errno, in KVM's order, and what a refusal leaves."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from kvmsim.kvm.alias import SHARED
from kvmsim.kvm.exits import Exit, MemoryErrorExit, MmioExit
from kvmsim.kvm.ioctls import SlotIoctls
from kvmsim.kvm.mmu.runs import Run
from kvmsim.kvm.region import MemoryRegion, SlotFlag
from kvmsim.kvm.unmapper import Unmapper
from kvmsim.kvm.vm import Vm
from kvmsim.memory.memory import AnonymousMemory
from kvmsim.vmm.host import Host
from memfsd.uapi.errors import Refused
from memfsd.uapi.units import PAGE_SIZE, Gfn, GfnRange
from tests.support.both_sides import LocalStore, LocalVm, errno_of, page
from tests.support.threads import Beside, until


@pytest.fixture
def one(store: LocalStore) -> LocalVm:
    """Private slot 0: GPA 0x10000, 16 pages, the first 16 of a file of 32."""
    store.create("file", 32)
    local = store.vm()
    local.private_slot(0, page(16), page(16), "file")
    return local


def shape(local: LocalVm) -> list[tuple[bool, int, int, int]]:
    return [(private, s.id, s.gfn, s.page_count) for private in (False, True) for s in local.vm.slots[private]]


# -- private slots


def test_an_overlap_is_eexist_before_the_file_is_looked_at(one: LocalVm) -> None:
    before = shape(one)
    for gpa, size in ((page(16), page(1)), (page(31), page(4)), (page(10), page(30)), (page(12), page(5))):
        assert errno_of(one.private_slot, 1, gpa, size, "no such file") == "EEXIST"
    assert shape(one) == before


def test_a_file_that_does_not_exist_is_enoent_and_names_it(one: LocalVm) -> None:
    with pytest.raises(Refused, match="no-such: No such file"):
        one.private_slot(1, 0, page(1), "no-such")
    assert errno_of(one.private_slot, 1, 0, page(1), "no-such") == "ENOENT"


def test_a_directory_is_eisdir(one: LocalVm) -> None:
    assert errno_of(one.private_slot, 1, 0, page(1), ".") == "EISDIR"


def test_a_fifo_that_nobody_reads_is_refused_at_once(one: LocalVm, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(Refused, match="fifo: No such device"):
        one.kvm.slots.set_private_slot(MemoryRegion.private(1, 0, page(1)), str(fifo))
    with pytest.raises(OSError, match="No such device"):
        Host().map_file(str(fifo), length=None, offset=0, shared=True, at=None)


def test_a_file_that_is_not_guest_private_memory_is_einval(vm: LocalVm, tmp_path: os.PathLike[str]) -> None:
    plain = os.path.join(tmp_path, "plain")
    with open(plain, "wb") as file:
        file.truncate(page(4))
    for gpa, size in ((0, page(4)), (0, page(5)), (1 << 48, page(4))):
        with pytest.raises(Refused, match="plain: not a file on a memfsd mount"):
            vm.kvm.slots.set_private_slot(MemoryRegion.private(0, gpa, size), plain)
    assert errno_of(vm.kvm.slots.set_private_slot, MemoryRegion.private(0, 0, page(4)), plain) == "EINVAL"
    assert shape(vm) == []
    assert vm.kvm.pairings.links == {}


@pytest.mark.parametrize(
    ("gpa", "size", "offset"),
    [(1, page(1), 0), (0, 100, 0), (0, page(1), 1), (0x800, page(1), 0), (0, page(1) + 1, 0), (0, page(1), 0x800)],
)
def test_anything_unaligned_is_einval(one: LocalVm, gpa: int, size: int, offset: int) -> None:
    assert errno_of(one.private_slot, 1, gpa, size, "file", offset) == "EINVAL"


@pytest.mark.parametrize(
    ("offset", "size"), [(page(32), page(1)), (page(31), page(2)), (page(1 << 40), page(1)), (0, page(33))]
)
def test_past_the_end_of_the_file_is_einval(one: LocalVm, offset: int, size: int) -> None:
    assert errno_of(one.private_slot, 1, page(64), size, "file", offset) == "EINVAL"
    assert len(shape(one)) == 1


def test_a_refused_first_slot_does_not_give_the_file_away(store: LocalStore) -> None:
    file = store.create("fresh", 4)
    first, second = store.vm("first"), store.vm("second")
    assert errno_of(first.private_slot, 0, 0, page(5), "fresh") == "EINVAL"
    assert file.guest is not None and file.guest.pairing is None
    second.private_slot(0, 0, page(4), "fresh")


def test_a_range_that_is_bound_already_is_eexist(one: LocalVm) -> None:
    for offset, size in ((0, page(16)), (page(15), page(2)), (page(3), page(1))):
        assert errno_of(one.private_slot, 1, page(64), size, "file", offset) == "EEXIST"


def test_a_page_that_was_bound_at_another_gfn_is_einval(one: LocalVm) -> None:
    one.delete(0, private=True)
    assert errno_of(one.private_slot, 0, page(64), page(16), "file") == "EINVAL"
    assert errno_of(one.private_slot, 0, page(64), page(17), "file", page(15)) == "EINVAL"
    assert shape(one) == []
    one.private_slot(0, page(16), page(16), "file")
    one.private_slot(1, page(64), page(16), "file", page(16))


def test_the_file_of_another_vm_is_eperm(store: LocalStore, one: LocalVm) -> None:
    other = store.vm("other")
    assert errno_of(other.private_slot, 0, 0, page(1), "file", page(20)) == "EPERM"
    assert (shape(other), other.kvm.pairings.links) == ([], {})


@pytest.mark.parametrize(
    ("gpa", "size", "flags"),
    [(page(64), page(16), 0), (page(16), page(16), 4), (page(16), page(8), 0), (page(16), page(16), 0)],
    ids=["move", "flags", "resize", "the same again"],
)
def test_a_private_slot_is_immutable(one: LocalVm, gpa: int, size: int, flags: int) -> None:
    assert errno_of(one.private_slot, 0, gpa, size, "file", 0, flags) == "EINVAL"
    assert shape(one) == [(True, 0, 16, 16)]


@pytest.mark.parametrize("flags", [SlotFlag.READONLY, SlotFlag.LOG_DIRTY_PAGES, SlotFlag(3), 8, 1 << 31])
def test_a_private_slot_takes_no_flags_of_ordinary_memory(one: LocalVm, flags: int) -> None:
    assert errno_of(one.private_slot, 1, 0, page(1), "file", page(16), flags) == "EINVAL"


def test_size_0_deletes_and_its_contents_are_destroyed(one: LocalVm) -> None:
    one.write(page(16), b"secret")
    one.private_slot(0, 0, 0, "")
    assert shape(one) == []
    assert one.read(page(16), 6) == MemoryErrorExit(page(16), PAGE_SIZE, private=True)
    one.private_slot(0, page(16), page(16), "file")
    assert one.read(page(16), 6) == bytes(6)


@pytest.mark.parametrize("private", [True, False], ids=["private", "shared"])
def test_deleting_a_slot_that_does_not_exist_is_einval(one: LocalVm, private: bool) -> None:
    assert errno_of(one.delete, 7, private=private) == "EINVAL"
    if private:
        assert errno_of(one.private_slot, 7, 0, 0, "file") == "EINVAL"
    else:
        assert errno_of(one.kvm.slots.set_shared_slot, MemoryRegion.shared(7, 0, 0), None, owned=True) == "EINVAL"


def test_slot_ids_of_the_two_address_spaces_are_apart(one: LocalVm) -> None:
    one.shared_slot(0, page(16), page(16))
    assert shape(one) == [(False, 0, 16, 16), (True, 0, 16, 16)]
    one.delete(0, private=False)
    assert shape(one) == [(True, 0, 16, 16)]


@pytest.mark.parametrize("id_", [32764, 65535, -1])
def test_slot_ids_end_where_kvms_end(one: LocalVm, id_: int) -> None:
    assert errno_of(one.private_slot, id_, 0, page(1), "file", page(16)) == "EINVAL"
    assert errno_of(one.shared_slot, id_, 0, page(1)) == "EINVAL"


def test_max_slots_caps_the_ids(store: LocalStore) -> None:
    store.create("file", 4)
    local = store.vm(max_slots=2)
    local.private_slot(1, 0, page(1), "file")
    local.shared_slot(1, 0, page(1))
    with pytest.raises(Refused, match="--max-slots"):
        local.private_slot(2, page(1), page(1), "file", page(1))
    assert errno_of(local.shared_slot, 2, page(1), page(1)) == "EINVAL"


# -- holes


def test_a_punched_slot_keeps_what_is_around_the_hole(one: LocalVm) -> None:
    one.write(page(16), b"first")
    one.write(page(20), b"gone")
    one.write(page(31), b"last")
    assert one.kvm.slots.punch_slot(0, page(18), page(4)) == [(18, 22)]
    assert one.read(page(20), 4) == MemoryErrorExit(page(20), PAGE_SIZE, private=True)
    assert (one.read(page(16), 5), one.read(page(31), 4)) == (b"first", b"last")
    one.kvm.slots.fill_slot(0, Gfn(18), Gfn(22))
    assert one.read(page(20), 4) == bytes(4), "a page that comes back is zero"
    assert (one.read(page(16), 5), one.read(page(31), 4)) == (b"first", b"last")


@pytest.mark.parametrize(
    ("id_", "gpa", "size"),
    [
        (0, page(15), page(2)),
        (0, page(31), page(2)),
        (0, page(16), 0),
        (0, page(16) + 1, page(1)),
        (0, page(16), 100),
        (5, page(16), page(1)),
        (0, page(20), page(1)),
    ],
    ids=["before", "behind", "empty", "unaligned gpa", "unaligned size", "no slot", "a hole already"],
)
def test_a_punch_that_makes_no_sense_is_einval(one: LocalVm, id_: int, gpa: int, size: int) -> None:
    one.vmm.memory.punch_slot(0, page(20), page(1))
    assert errno_of(one.vmm.memory.punch_slot, id_, gpa, size) == "EINVAL"


def test_another_slot_may_lie_in_a_hole(store: LocalStore, one: LocalVm) -> None:
    store.create("other", 4)
    one.vmm.memory.punch_slot(0, page(20), page(4))
    one.private_slot(1, page(20), page(4), "other")
    assert one.write(page(19), b"x" * (page(1) + 10)) is None, "one access across both files"
    assert one.read(page(20), 10) == b"x" * 10
    assert errno_of(one.vmm.memory.fill_slot, 0, 20, 24) == "EEXIST"


def test_a_slot_that_is_all_hole_can_be_deleted(one: LocalVm) -> None:
    one.vmm.memory.punch_slot(0, page(16), page(16))
    one.delete(0, private=True)
    assert shape(one) == []


# -- shared slots


def test_a_shared_slot_moves_with_its_memory(vm: LocalVm) -> None:
    memory = vm.shared_slot(0, 0, page(2))
    vm.write(0, b"data", shared=True)
    vm.kvm.slots.set_shared_slot(MemoryRegion.shared(0, page(8), page(2)), None, owned=True)
    assert vm.read(page(8), 4, shared=True) == b"data"
    assert vm.read(0, 4, shared=True) == MmioExit(0, 4, is_write=False), "the old place is stale nowhere"
    assert memory.read(0, 4) == b"data"


class _BeforeZap(Unmapper):
    """Something else happens just before the leaves of a slot go."""

    def __init__(self, vm: Vm, happens: Callable[[], None]) -> None:
        super().__init__(vm)
        self._happens = happens

    def zap(self, segments: list[GfnRange], *, private: bool) -> list[Run]:
        self._happens()
        return super().zap(segments, private=private)


@pytest.mark.parametrize(
    ("size", "flags", "gpa", "read"),
    [(4 << 20, SlotFlag.LOG_DIRTY_PAGES, 0, b"\x08"), (page(16), 0, page(1), b"\x07")],
    ids=["its log ends", "it moves"],
)
def test_a_fault_in_a_shared_slot_that_changes_is_retried_and_finds_the_new_one(
    vm: LocalVm, size: int, flags: int, gpa: int, read: bytes
) -> None:
    mmu, other = vm.vm.mmu, vm.vm.create_vcpu(1)
    memory = vm.shared_slot(0, 0, size, flags)
    for number in range(16):
        memory.write(page(number), bytes([number]))
    vm.read(page(9), 1, shared=True)
    faults: list[Beside[bytes | Exit]] = []

    def fault() -> None:
        retries = mmu.retry_count
        beside = Beside(lambda: vm.guest.read(other, page(8), page(8), shared=True))
        faults.append(beside)
        until(lambda: not beside.running or mmu.retry_count > retries, "the fault is over, or is retried")

    slots = SlotIoctls(vm.vm, vm.kvm.slots_lock, _BeforeZap(vm.vm, fault), vm.kvm.pairings)
    slots.set_shared_slot(MemoryRegion.shared(0, gpa, size), None, owned=False)
    (found,) = [beside.result() for beside in faults]
    assert isinstance(found, bytes)
    assert found[:1] == read
    assert vm.read(page(8), 1, shared=True) == read
    assert not mmu.in_progress


def test_a_move_onto_another_slot_is_eexist_and_changes_nothing(vm: LocalVm) -> None:
    vm.shared_slot(0, 0, page(2))
    vm.shared_slot(1, page(8), page(2))
    vm.write(0, b"data", shared=True)
    assert (
        errno_of(vm.kvm.slots.set_shared_slot, MemoryRegion.shared(0, page(9), page(2)), None, owned=True) == "EEXIST"
    )
    assert vm.read(0, 4, shared=True) == b"data"
    vm.kvm.slots.set_shared_slot(MemoryRegion.shared(0, page(1), page(2)), None, owned=True)
    assert vm.read(page(1), 4, shared=True) == b"data", "over its own old place it may move"


def test_flags_of_a_shared_slot_may_change_but_readonly_may_not(vm: LocalVm) -> None:
    vm.shared_slot(0, 0, page(1))
    vm.kvm.slots.set_shared_slot(MemoryRegion.shared(0, 0, page(1), flags=SlotFlag.LOG_DIRTY_PAGES), None, owned=True)
    (slot,) = vm.vm.slots[SHARED]
    assert slot.flags == SlotFlag.LOG_DIRTY_PAGES
    for change in (SlotFlag.READONLY, SlotFlag.GUEST_MEMFD, 16):
        assert (
            errno_of(vm.kvm.slots.set_shared_slot, MemoryRegion.shared(0, 0, page(1), flags=change), None, owned=True)
            == "EINVAL"
        )
    assert errno_of(vm.kvm.slots.set_shared_slot, MemoryRegion.shared(0, 0, page(2)), None, owned=True) == "EINVAL"
    vm.kvm.slots.set_shared_slot(MemoryRegion.shared(0, 0, page(1), flags=SlotFlag.LOG_DIRTY_PAGES), None, owned=True)


def test_shared_slots_overlap_as_little_as_private_ones(vm: LocalVm) -> None:
    vm.shared_slot(0, page(4), page(4))
    for gpa, size in ((page(4), page(1)), (page(2), page(3)), (page(7), page(9)), (0, page(64))):
        assert errno_of(vm.shared_slot, 1, gpa, size) == "EEXIST"
    vm.shared_slot(1, page(8), page(1))


def test_the_memory_of_a_refused_or_deleted_slot_is_closed(vm: LocalVm) -> None:
    def is_open(fd: int, inode: int) -> bool:
        try:
            return os.fstat(fd).st_ino == inode
        except OSError:
            return False

    kept = vm.shared_slot(0, 0, page(1))
    inode = os.fstat(kept.fd).st_ino
    refused = AnonymousMemory(page(1))
    refused_inode = os.fstat(refused.fd).st_ino
    assert errno_of(vm.kvm.slots.set_shared_slot, MemoryRegion.shared(1, 0, page(1)), refused, owned=True) == "EEXIST"
    assert not is_open(refused.fd, refused_inode)
    assert is_open(kept.fd, inode)
    vm.delete(0, private=False)
    assert not is_open(kept.fd, inode)


def test_a_deleted_shared_slot_leaves_mmio_behind(vm: LocalVm) -> None:
    vm.shared_slot(0, 0, page(2))
    vm.touch(0, page(2), shared=True)
    vm.delete(0, private=False)
    assert vm.vm.mmu.epts[SHARED].leaf_count == 0
    assert vm.read(page(1), 8, shared=True) == MmioExit(page(1), 8, is_write=False)
    vm.shared_slot(0, 0, page(2))
    assert vm.read(0, 4, shared=True) == bytes(4)


@pytest.mark.parametrize("gpa", [1 << 48, (1 << 48) - page(1), 1 << 52, (1 << 64) - page(2)])
def test_a_slot_beyond_the_guests_addresses_is_einval(vm: LocalVm, gpa: int) -> None:
    assert errno_of(vm.shared_slot, 0, gpa, page(2)) == "EINVAL"


def test_every_refusal_names_the_slot_or_the_value(one: LocalVm) -> None:
    refusals: list[tuple[Callable[[], object], str]] = [
        (lambda: one.private_slot(1, page(16), page(1), "file"), r"overlaps .* private slot 0"),
        (lambda: one.private_slot(1, page(64), page(1), "file"), r"bound to slot 0"),
        (lambda: one.private_slot(1, page(64), page(64), "file", page(16)), r"past the end"),
        (lambda: one.delete(3, private=True), r"no private slot 3"),
    ]
    for call, pattern in refusals:
        with pytest.raises(Refused) as refused:
            call()
        assert re.search(pattern, refused.value.reason), refused.value.reason
