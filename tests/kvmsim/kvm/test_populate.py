"""The initial image: all of it or nothing, in the frames of the store, before the guest runs."""

import errno
from pathlib import Path

import pytest

from kvmsim.kvm.measurement import Measurement
from kvmsim.kvm.region import Region2, SlotFlag, Userspace
from kvmsim.memory.memory import AnonymousMemory
from memfsd.uapi.abi import GMEM_6_18
from memfsd.uapi.errors import Refused
from memfsd.uapi.units import PAGE_SIZE, Gfn
from tests.support.both_sides import LocalStore, LocalVm, alias, errno_of, opened_store, page

IMAGE = b"".join(bytes([number]) * PAGE_SIZE for number in range(1, 9))
EMPTY = Measurement().digest()


def read(offset: int, length: int) -> bytes:
    return IMAGE[offset : offset + length]


def populate(vm: LocalVm, gpa: int, page_count: int = 8) -> None:
    vm.kvm.image.populate(vm.vcpu, gpa, page_count, read)


def refusal(vm: LocalVm, gpa: int, page_count: int = 8) -> str:
    return errno_of(vm.kvm.image.populate, vm.vcpu, gpa, page_count, read)


def expected(gpa: int, page_count: int = 8) -> bytes:
    measured = Measurement()
    for number in range(page_count):
        measured.add(gpa + page(number), IMAGE[page(number) : page(number + 1)])
    return measured.digest()


@pytest.fixture
def vm(store: LocalStore) -> LocalVm:
    """64 private pages at page 16."""
    store.create("mem", 64)
    vm = store.vm()
    vm.private_slot(0, page(16), page(64), "mem")
    return vm


def test_the_guest_reads_the_image_and_it_is_measured(vm: LocalVm) -> None:
    populate(vm, page(20))
    assert vm.read(page(20), page(8)) == IMAGE
    assert vm.read(page(19), 4) == bytes(4)
    assert vm.read(page(28), 4) == bytes(4)
    assert vm.kvm.image.measurement() == expected(page(20))


def test_further_images_go_on_with_the_measurement(vm: LocalVm) -> None:
    """Also where the store has granted frames ahead, which hold nothing."""
    populate(vm, page(20), 3)
    populate(vm, page(23), 2)
    both = Measurement()
    for gpa, at in ((20, 0), (21, 1), (22, 2), (23, 0), (24, 1)):
        both.add(page(gpa), IMAGE[page(at) : page(at + 1)])
    assert vm.kvm.image.measurement() == both.digest()


def test_after_finalize_nothing_is_populated(vm: LocalVm) -> None:
    populate(vm, page(16), 1)
    vm.kvm.image.finalize()
    assert refusal(vm, page(20)) == "EINVAL"
    assert errno_of(vm.kvm.image.finalize) == "EINVAL"
    assert vm.kvm.image.measurement() == expected(page(16), 1)
    assert vm.read(page(20), 4) == bytes(4)


def test_an_image_larger_than_its_slot_changes_nothing(vm: LocalVm, store: LocalStore) -> None:
    free = store.free_count
    assert refusal(vm, page(76)) == "EFBIG"
    assert store.free_count == free
    assert vm.kvm.image.measurement() == EMPTY
    vm.vmm.memory.punch_slot(0, page(24), page(1))
    assert refusal(vm, page(20)) == "EFBIG", "a hole in the slot"
    assert vm.read(page(20), 4) == bytes(4)


def test_bad_places_are_einval(vm: LocalVm) -> None:
    vm.shared_slot(1, page(256), page(64))
    for gpa, page_count in ((page(20) + 1, 1), (page(20), 0), (page(200), 1), (page(256), 1), (alias(page(20)), 1)):
        assert refusal(vm, gpa, page_count) == "EINVAL"


def test_a_shared_page_is_einval(tmp_path: Path) -> None:
    with opened_store(tmp_path, 64, abi=GMEM_6_18) as store:
        memfd = store.create_memfd("mem", 16)
        vm = store.vm()
        region = Region2(0, SlotFlag.GUEST_MEMFD, 0, page(16))
        vm.vmm.memory.set_region2(region, Userspace(AnonymousMemory(page(16)), 0, "(ram)", owned=True), memfd)
        assert refusal(vm, 0) == "EINVAL", "all are"
        vm.vmm.memory.set_attributes(Gfn(0), Gfn(8), private=True)
        assert refusal(vm, page(1)) == "EINVAL", "the last one is"
        assert refusal(vm, page(9)) == "EFBIG", "the slot ends before"
        assert store.file("mem").pages.page_count == 0
        populate(vm, 0)
        assert vm.kvm.image.measurement() == expected(0)


def test_a_page_under_an_overlay_is_einval(vm: LocalVm) -> None:
    vm.vmm.set_policy("overlay")
    vm.shared_slot(1, page(24), page(1))
    assert refusal(vm, page(20)) == "EINVAL"
    assert vm.read(page(20), 4) == bytes(4)


def test_what_is_in_use_is_not_overwritten(vm: LocalVm) -> None:
    assert vm.write(page(22), b"the guest's") is None
    assert refusal(vm, page(20)) == "EEXIST"
    assert vm.read(page(20), 4) == bytes(4)
    assert vm.read(page(22), 11) == b"the guest's"
    populate(vm, page(30))
    assert refusal(vm, page(30)) == "EEXIST", "nor what was populated before"
    assert vm.kvm.image.measurement() == expected(page(30))


@pytest.mark.parametrize("used", range(20, 28))
def test_the_page_that_is_in_use_is_named(vm: LocalVm, used: int) -> None:
    assert vm.write(page(used), b"x") is None
    with pytest.raises(Refused, match=f"gpa {page(used):#x} is in use: populate a page before the guest, and once$"):
        vm.kvm.image.populate(vm.vcpu, page(20), 8, read)


def test_a_pool_that_is_too_small_changes_nothing(small_store: LocalStore) -> None:
    small_store.create("mem", 64)
    vm = small_store.vm()
    vm.private_slot(0, 0, page(64), "mem")
    assert vm.touch(0, page(26)) is None
    assert refusal(vm, page(32)) == "ENOSPC"
    assert vm.kvm.image.measurement() == EMPTY
    assert vm.read(page(32), 4) == bytes(4)
    populate(vm, page(33), 5)


def test_an_image_that_cannot_be_read_to_its_end_leaves_zeros(store: LocalStore) -> None:
    store.create("mem", 600)
    vm = store.vm()
    vm.private_slot(0, 0, page(600), "mem")

    def half(offset: int, length: int) -> bytes:
        if offset:
            raise Refused(errno.EIO, "truncated")
        return b"x" * length

    assert errno_of(vm.kvm.image.populate, vm.vcpu, 0, 600, half) == "EIO"
    assert vm.read(0, page(256)) == bytes(page(256))
    assert vm.kvm.image.measurement() == EMPTY


def test_a_kick_is_eintr_and_nothing_is_there(vm: LocalVm) -> None:
    vm.vcpu.request_exit()
    assert refusal(vm, page(20)) == "EINTR"
    vm.vcpu.run.immediate_exit = 0
    populate(vm, page(20))


@pytest.mark.parametrize("page_size", ["2M"])
def test_into_large_pages(store: LocalStore, page_size: str) -> None:
    store.create("large", 512, page_size=page_size)
    vm = store.vm()
    vm.private_slot(0, 2 << 20, 2 << 20, "large")
    populate(vm, (2 << 20) + page(3))
    assert vm.read((2 << 20) + page(2), page(10)) == bytes(PAGE_SIZE) + IMAGE + bytes(PAGE_SIZE)
