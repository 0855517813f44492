"""Slots with userspace_addr and guest_memfd in one: the wall, what a guest finds in them, and the life of the file.

B, D and E are the numbered conformance cases of the kernel's selftests.
"""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvmsim.kvm.alias import PRIVATE, SHARED
from kvmsim.kvm.exits import FailedExit, MemoryFaultExit, MmioExit
from kvmsim.kvm.guest_memfds import GuestMemfds
from kvmsim.kvm.hypercalls import KVM_HC_MAP_GPA_RANGE, MAP_GPA_RANGE_ENCRYPTED
from kvmsim.kvm.mmu.runs import Run
from kvmsim.kvm.pairings import Pairings
from kvmsim.kvm.region import ATTRIBUTE_PRIVATE, AttributesRange, GmemFd, Region2, SlotFlag, Userspace
from kvmsim.kvm.slots.memslots import Memslot
from kvmsim.memory.mapped import MappedFile
from kvmsim.memory.memory import AnonymousMemory
from kvmsim.store.link import FileId
from memfsd.uapi.abi import GMEM_6_18, GMEM_7_2, GMEM_INPLACE, Abi, GmemFlag
from memfsd.uapi.limits import MAX_SLOTS
from memfsd.uapi.units import PAGE_SIZE, Gfn, GfnRange, HostPfn
from tests.support.both_sides import LocalStore, LocalVm, errno_of, opened_store, page
from tests.support.threads import until

GMEM = SlotFlag.GUEST_MEMFD
SECRET = b"what only the guest knows"
BOTH = GmemFlag.MMAP | GmemFlag.INIT_SHARED
ABIS = pytest.mark.parametrize("abi", [GMEM_6_18, GMEM_7_2], ids=lambda abi: abi.name)


class GmemVm(LocalVm):
    def set(self, id_: int, gpa: int, pages: int, file: GmemFd | None = None, **fields: Any) -> None:
        flags = fields.pop("flags", GMEM if file is not None else 0)
        region = Region2(id_, flags, gpa, page(pages), **fields)
        space = Userspace(AnonymousMemory(page(pages)), 0, "a", owned=True) if pages else Userspace()
        self.kvm.guest_memfds.set_region2(region, space, file)

    def refused(self, id_: int, gpa: int, pages: int, file: GmemFd | None = None, **fields: Any) -> str:
        return errno_of(self.set, id_, gpa, pages, file, **fields)

    def attributes(self, gpa: int, pages: int, *, private: bool) -> None:
        asked = AttributesRange(gpa, page(pages), ATTRIBUTE_PRIVATE if private else 0)
        self.kvm.attributes.set(asked)


@pytest.fixture
def store(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[LocalStore]:
    abi: Abi = getattr(request, "param", GMEM_6_18)
    with opened_store(tmp_path, 64, abi=abi) as opened:
        yield opened


@pytest.fixture
def vm(store: LocalStore) -> Iterator[GmemVm]:
    with closing(GmemVm(store)) as vm:
        yield vm


def fault(gpa: int, *, private: bool) -> MemoryFaultExit:
    return MemoryFaultExit(gpa, PAGE_SIZE, private, errno.EFAULT)


def without_why(exit_: object) -> object:
    return replace(exit_, why="") if isinstance(exit_, MemoryFaultExit) else exit_


# -- B: set_memory_region_test


def test_b1_to_b4_flags(vm: GmemVm, store: LocalStore) -> None:
    g = store.create_memfd("g", 4)
    assert vm.refused(0, 0, 4, g, is_v2=False) == "EINVAL"
    assert vm.refused(0, 0, 4, flags=0x10, is_v2=False) == "EINVAL"
    assert vm.refused(0, 0, 4, flags=0x10) == "EINVAL"
    assert vm.refused(0, 0, 4, g, flags=GMEM | SlotFlag.LOG_DIRTY_PAGES) == "EINVAL"
    assert vm.refused(0, 0, 4, g, flags=GMEM | SlotFlag.READONLY) == "EINVAL"
    assert store.guest("g").pairing is None, "nothing was asked of the file"


def test_b5_ids_end_at_the_cap(vm: GmemVm) -> None:
    vm.set(MAX_SLOTS - 1, 0, 1)
    assert vm.refused(MAX_SLOTS, page(1), 1) == "EINVAL"
    assert vm.refused(1 << 16, page(1), 1) == "EINVAL", "there is one address space"


def test_b6_b7_what_is_no_guest_memfd_of_this_vm(vm: GmemVm, store: LocalStore, tmp_path: Path) -> None:
    g = store.create_memfd("g", 4)
    plain = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert vm.refused(0, 0, 4, GmemFd(plain, "plain")) == "EINVAL"
    finally:
        os.close(plain)
    with closing(GmemVm(store, "other")) as other:
        other.kvm.guest_memfds.own(g)
        assert vm.refused(0, 0, 4, g) == "EINVAL"
        other.set(0, 0, 4, g)
    assert vm.refused(0, 0, 4, flags=GMEM) == "EBADF"


def test_b8_b9_offsets(vm: GmemVm, store: LocalStore) -> None:
    g = store.create_memfd("g", 4)
    for offset in (1, 2048, PAGE_SIZE - 1, page(4), page(1 << 40)):
        assert vm.refused(0, 0, 4, g, offset=offset) == "EINVAL"
    vm.set(0, 0, 4, g)


@pytest.mark.parametrize(("store", "twice"), [(GMEM_6_18, "EINVAL"), (GMEM_7_2, "EEXIST")], indirect=["store"])
def test_b10_to_b14_overlaps(store: LocalStore, vm: GmemVm, twice: str) -> None:
    g = store.create_memfd("g", 5)
    vm.set(10, 0, 2, g)
    vm.set(11, page(16), 2, g, offset=page(2))
    vm.set(10, 0, 0)
    assert vm.refused(10, 0, 2, g, offset=page(1)) == twice
    assert vm.refused(10, 0, 2, g, offset=page(3)) == twice
    assert vm.refused(10, page(15), 2, g) == "EEXIST"
    assert vm.refused(10, page(17), 2, g) == "EEXIST"
    vm.set(10, 0, 2, g)


def test_a_slot_with_a_file_is_immutable_and_its_overlap_comes_before_its_descriptor(
    vm: GmemVm, store: LocalStore
) -> None:
    g = store.create_memfd("g", 4)
    vm.set(0, 0, 4, g)
    for change in ({"flags": GMEM}, {"flags": 0}, {"flags": SlotFlag.LOG_DIRTY_PAGES}):
        assert vm.refused(0, 0, 4, g, **change) == "EINVAL"
    assert vm.refused(0, page(8), 4, g) == "EINVAL"
    assert vm.refused(1, 0, 4, flags=GMEM) == "EEXIST"
    assert vm.refused(7, 0, 0) == "EINVAL", "there is no slot to delete"


def test_an_ordinary_slot_moves_and_logs(vm: GmemVm) -> None:
    vm.set(0, 0, 4)
    assert vm.write(0, b"here", shared=True) is None
    vm.set(0, page(8), 4)
    assert vm.read(page(8), 4, shared=True) == b"here"
    assert isinstance(vm.read(0, 4, shared=True), MmioExit)
    vm.set(0, page(8), 4, flags=SlotFlag.LOG_DIRTY_PAGES)
    vm.write(page(9), b"x", shared=True)
    assert vm.kvm.slots.get_dirty_log(0) == [(9, 10)]
    assert vm.refused(0, page(8), 4, userspace_addr=page(1)) == "EINVAL"
    assert vm.refused(0, page(8), 2) == "EINVAL"


# -- C: private_mem_conversions_test


def test_c1_to_c6_conversions_keep_what_is_theirs(vm: GmemVm, store: LocalStore) -> None:
    vm.set(0, 0, 8, store.create_memfd("g", 8))
    assert vm.write(0, b"p1" * 4096, shared=True) is None
    vm.attributes(0, 4, private=True)
    assert vm.read(0, 4) == bytes(4)
    assert vm.write(0, b"p2" * 4096) is None
    assert vm.guest.host_access(0, 4, None) == b"p1p1", "as the host's mapping"
    vm.attributes(page(1), 1, private=False)
    assert vm.read(page(1), 2, shared=True) == b"p1"
    assert without_why(vm.read(0, page(2))) == fault(page(1), private=True)
    vm.attributes(page(1), 1, private=True)
    assert vm.read(page(1), 2) == b"p2", "conversion alone destroys nothing"
    store.punch("g", 0, 2)
    assert vm.read(0, page(2)) == bytes(page(2)), "C6"


def test_c7_the_hypercall_exits_in_chunks_and_ret_answers(vm: GmemVm) -> None:
    vm.set(0, 0, 1024)
    assert errno_of(vm.guest.map, vm.vcpu, 0, page(1024), private=True) == "EINVAL", "without KVM_CAP_EXIT_HYPERCALL"
    vm.vm.exit_hypercalls = 1 << KVM_HC_MAP_GPA_RANGE
    exit_ = vm.guest.map(vm.vcpu, 0, page(1024), private=True)
    for first in (0, 2 << 20):
        assert (exit_.nr, exit_.args[:3]) == (12, (first, 512, MAP_GPA_RANGE_ENCRYPTED))  # type: ignore[union-attr]
        vm.attributes(first, 512, private=True)
        vm.vcpu.run.hypercall.ret = 0
        exit_ = vm.vcpu.kvm_run()  # type: ignore[assignment]
    assert without_why(exit_) == fault(0, private=True), "the guest accepts its pages, and no guest_memfd is there"


def test_c8_the_file_outlives_the_vm(store: LocalStore) -> None:
    g = store.create_memfd("g", 4)
    with closing(GmemVm(store)) as vm:
        vm.set(0, 0, 4, g)
        vm.attributes(0, 4, private=True)
        assert vm.write(0, b"data") is None
    store.punch("g", 0, 4)
    store.allocate("g", 0, 4)


# -- D: private_mem_kvm_exits_test


def test_d1_a_slot_that_goes_is_a_memory_fault_of_the_page(vm: GmemVm, store: LocalStore) -> None:
    vm.set(0, 0, 4, store.create_memfd("g", 4))
    vm.attributes(0, 4, private=True)
    assert vm.read(page(2) + 8, 4) == bytes(4)
    vm.set(0, 0, 0)
    assert without_why(vm.read(page(2) + 8, 4)) == fault(page(2), private=True)
    run = vm.vcpu.run
    assert (run.exit_reason, run.memory_error.flags, run.memory_error.gpa) == (39, 1 << 3, page(2))


def test_d2_private_in_a_slot_without_a_file_is_the_same(vm: GmemVm) -> None:
    vm.set(0, 0, 4)
    vm.attributes(0, 4, private=True)
    assert without_why(vm.read(0, 4)) == fault(0, private=True)


# -- E: pre_fault_memory_test


def test_e1_to_e3_pre_fault(vm: GmemVm, store: LocalStore) -> None:
    vm.set(0, 0, 16, store.create_memfd("g", 16))
    vm.attributes(0, 16, private=True)
    assert vm.kvm.pre_fault(vm.vcpu, 0, page(16), shared=True) == 0, "the attribute says which alias"
    assert vm.vm.mmu.epts[PRIVATE].leaf_count == 16
    left = vm.kvm.pre_fault(vm.vcpu, page(15), page(2), shared=False)
    assert left == page(1)
    assert errno_of(vm.kvm.pre_fault, vm.vcpu, page(16), page(1), shared=False) == "ENOENT"
    assert errno_of(vm.kvm.pre_fault, vm.vcpu, 0, 0, shared=False) == "EINVAL", "E6"


# -- the file


@pytest.mark.parametrize("flags", [GmemFlag(0), GmemFlag.INIT_SHARED], ids=["none", "init_shared"])
def test_a_file_that_cannot_be_mapped_leaves_shared_accesses_to_userspace_addr(
    vm: GmemVm, store: LocalStore, flags: GmemFlag
) -> None:
    vm.set(0, 0, 4, store.create_memfd("g", 4, flags))
    assert vm.write(0, b"x", shared=True) is None
    assert vm.guest.host_access(0, 1, None) == b"x"
    assert store.file("g").pages.page_count == 0


@pytest.mark.parametrize("flags", [GmemFlag.MMAP, BOTH], ids=["mmap", "both"])
def test_a_file_that_can_be_mapped_is_the_guests_shared_memory_and_userspace_addr_is_kvms(
    vm: GmemVm, store: LocalStore, flags: GmemFlag
) -> None:
    g = store.create_memfd("g", 4, flags)
    vm.set(0, 0, 4, g)
    assert vm.write(0, b"guest", shared=True) is None
    assert vm.read(0, 5, shared=True) == b"guest"
    assert vm.guest.host_access(0, 5, None) == bytes(5), "as recorded of a real KVM"
    if flags == BOTH:
        assert os.pread(g.fd, 5, 0) == b"guest", "what a mapping of the host shows"


@pytest.mark.parametrize("flags", [GmemFlag(0), GmemFlag.MMAP, BOTH], ids=["none", "mmap", "both"])
def test_closing_the_file_leaves_slots_that_fault(vm: GmemVm, store: LocalStore, flags: GmemFlag) -> None:
    g = store.create_memfd("g", 4, flags)
    vm.set(0, 0, 4, g)
    has_private_memory = GmemFlag.INIT_SHARED not in flags
    if has_private_memory:
        vm.attributes(page(1), 1, private=True)
    assert vm.read(0, 1, shared=True) == b"\0"
    status = os.fstat(g.fd)
    vm.kvm.guest_memfds.release(FileId(status.st_dev, status.st_ino))
    assert vm.vm.mmu.epts[PRIVATE].leaf_count == 0
    shared = vm.read(0, 1, shared=True)
    assert without_why(shared) == (b"\0" if flags == 0 else fault(0, private=False))
    if has_private_memory:
        assert without_why(vm.read(page(1), 1)) == fault(page(1), private=True)
    assert vm.refused(0, page(8), 4) == "EINVAL", "it is immutable still"
    vm.set(0, 0, 0)
    vm.set(0, 0, 4)
    assert vm.read(0, 1, shared=True) == b"\0", "repaired, the access goes on"


def test_nothing_at_userspace_addr_is_efault_without_a_word_in_kvm_run(vm: GmemVm, store: LocalStore) -> None:
    vm.kvm.guest_memfds.set_region2(Region2(0, GMEM, 0, page(4)), Userspace(), store.create_memfd("g", 4))
    exit_ = vm.read(0, 1, shared=True)
    assert isinstance(exit_, FailedExit)
    assert (exit_.errno, vm.vcpu.run.exit_reason) == (errno.EFAULT, 0)


def test_delete_and_recreate_keeps_the_contents(vm: GmemVm, store: LocalStore) -> None:
    g = store.create_memfd("g", 4)
    vm.set(0, 0, 4, g)
    vm.attributes(0, 1 << 20, private=True)
    assert vm.write(page(1), b"kept") is None
    vm.set(0, 0, 0)
    vm.set(3, page(32), 4, g)
    assert vm.read(page(33), 4) == b"kept", "at another GFN, too"


@pytest.mark.parametrize("store", [GMEM_INPLACE], indirect=True)
def test_in_place_the_file_says_what_a_page_is(store: LocalStore, vm: GmemVm) -> None:
    vm.set(0, 0, 4, store.create_memfd("g", 4, GmemFlag.MMAP))
    assert vm.write(0, b"secret") is None
    assert without_why(vm.read(0, 1, shared=True)) == fault(0, private=False)
    store.convert("g", 0, 1, private=False)
    assert without_why(vm.read(0, 1)) == fault(0, private=True)
    assert vm.write(0, b"public", shared=True) is None
    assert vm.read(page(1), 1) == b"\0", "only page 0 was converted"
    store.convert("g", 0, 1, private=True)
    assert without_why(vm.read(0, 1, shared=True)) == fault(0, private=False)
    assert vm.read(0, 6) == b"secret"


# -- shared pages that are the file's: MMAP without INIT_SHARED, and attributes of the VM


def shared_runs(vm: LocalVm) -> list[Run]:
    return list(vm.vm.mmu.epts[SHARED].runs(Gfn(0), Gfn(64)))


@pytest.mark.parametrize("store", [GMEM_6_18, GMEM_7_2], indirect=True, ids=lambda abi: abi.name)
def test_shared_pages_that_nobody_touched_are_reclaimed(vm: GmemVm, store: LocalStore) -> None:
    vm.set(0, 0, 32, store.create_memfd("g", 32, GmemFlag.MMAP))
    for number in range(8):
        assert vm.write(page(number), b"%d" % number, shared=True) is None
    assert shared_runs(vm) == [(0, 0, 15)]
    assert store.reclaim()
    assert shared_runs(vm) == [(0, 0, 8)]
    assert vm.write(page(8), b"AAAA", shared=True) is None
    assert vm.write(page(20), b"BBBB", shared=True) is None
    assert [vm.read(page(number), 4, shared=True) for number in (7, 8, 20)] == [b"7\0\0\0", b"AAAA", b"BBBB"]
    assert store.findings() == []


def test_reclaim_keeps_what_was_touched_by_either_alias(vm: GmemVm, store: LocalStore) -> None:
    vm.set(0, 0, 32, store.create_memfd("g", 32, GmemFlag.MMAP))
    vm.attributes(page(16), 16, private=True)
    for number in (*range(4), *range(16, 20)):
        assert vm.write(page(number), b"%2d" % number, shared=number < 16) is None
    assert store.reclaim()
    assert (shared_runs(vm)[0][2], [run[2] for run in vm.vm.mmu.epts[PRIVATE].runs(Gfn(0), Gfn(64))]) == (4, [4])
    assert [vm.read(page(number), 2, shared=number < 16) for number in (3, 16, 19)] == [b" 3", b"16", b"19"]


def test_a_check_sees_shared_leaves(vm: GmemVm, store: LocalStore) -> None:
    vm.set(0, 0, 32, store.create_memfd("g", 32, GmemFlag.MMAP))
    assert vm.write(0, b"a", shared=True) is None
    assert store.findings() == []
    with vm.vm.mmu.lock:
        vm.vm.mmu.epts[SHARED].map_page(Gfn(9), HostPfn(vm.link().base + 9), writable=True)
    (finding,) = store.findings()
    assert finding == ("R3", f"inode {store.file('g').ino}: GFN 0x9 is frame 0x9 in the VM and no frame here")
    store.is_broken = True


def test_the_end_of_the_store_takes_shared_pages_too(vm: GmemVm, store: LocalStore) -> None:
    vm.set(0, 0, 4, store.create_memfd("g", 4, GmemFlag.MMAP))
    vm.attributes(page(1), 1, private=True)
    assert vm.write(0, b"shared", shared=True) is None
    assert vm.write(page(1), b"private") is None
    store.hang_up("g")
    until(lambda: not shared_runs(vm) and not vm.vm.mmu.epts[PRIVATE].leaf_count, "nothing of it is mapped")
    assert without_why(vm.read(0, 1, shared=True)) == fault(0, private=False)
    assert without_why(vm.read(page(1), 1)) == fault(page(1), private=True)


class _AfterForget(Pairings):
    """Something happens as soon as the store has heard that it is shown no more."""

    happens: Callable[[], None]

    def forget(self, slot: Memslot, segments: list[GfnRange]) -> None:
        super().forget(slot, segments)
        self.happens()


@pytest.mark.parametrize("how", ["delete", "close"])
def test_no_shared_page_is_mapped_when_the_store_hears_that_its_slot_goes(
    vm: GmemVm, store: LocalStore, how: str
) -> None:
    kvm, mapped = vm.kvm, list[Run]()
    pairings = _AfterForget(kvm.vm, kvm.slots_lock, kvm.notifier, store.pair)
    pairings.links = kvm.pairings.links
    pairings.happens = lambda: mapped.extend(shared_runs(vm))
    memfds = GuestMemfds(kvm.vm, kvm.slots_lock, kvm.unmapper, pairings, kvm.slots, MappedFile)
    memory = Userspace(AnonymousMemory(page(4)), 0, "a", owned=True)
    memfds.set_region2(Region2(0, GMEM, 0, page(4)), memory, store.create_memfd("g", 4, GmemFlag.MMAP))
    assert vm.write(0, b"a", shared=True) is None
    if how == "delete":
        memfds.set_region2(Region2(0, 0, 0, 0), Userspace())
        assert isinstance(vm.read(0, 1, shared=True), MmioExit)
    else:
        memfds.release(vm.link().file)
        assert without_why(vm.read(0, 1, shared=True)) == fault(0, private=False)
    assert mapped == []
    memfds.forget()


@pytest.mark.parametrize("how", ["attributes", "slot"])
def test_a_page_of_a_guest_memfd_that_was_punched_while_it_was_not_mapped_is_zero(tmp_path: Path, how: str) -> None:
    """KVM has unmapped it, and it kept its contents; of the punch it sees nothing that it holds."""
    with opened_store(tmp_path, 32, encrypted=True, abi=GMEM_6_18) as store, closing(GmemVm(store)) as vm:
        file = store.create_memfd("g", 8)
        vm.set(0, 0, 4, file)
        vm.set(1, page(4), 4, file, offset=page(4))
        vm.attributes(0, 8, private=True)
        for punched in (False, True):
            assert vm.write(page(5), SECRET) is None
            if how == "slot":
                vm.set(1, page(4), 0)
            else:
                vm.attributes(page(4), 4, private=False)
            if punched:
                store.punch("g", 5, 1)
            if how == "slot":
                vm.set(1, page(4), 4, file, offset=page(4))
            else:
                vm.attributes(page(4), 4, private=True)
            assert vm.read(page(5), len(SECRET)) == (bytes(len(SECRET)) if punched else SECRET)
