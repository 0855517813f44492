"""Memory of devices beside private and shared memory, in one guest."""

import errno
import os

import pytest

from kvmsim.kvm.alias import PRIVATE, SHARED
from kvmsim.kvm.exits import MemoryErrorExit
from kvmsim.kvm.mmu.ept import MEMORY_TYPE_UC, MEMORY_TYPE_WB, entry_memory_type
from memfsd.uapi.frame_state import FrameState
from memfsd.uapi.units import PAGE_SIZE, Gfn
from tests.support.both_sides import LocalStore, LocalVm, errno_of, page
from tests.support.threads import Beside, Gate

MEM, GPU, NIC, RAM = page(0), page(512), page(2048), page(4096)
"""GPAs of private memory, of two devices, and of shared memory."""


def add(store: LocalStore, name: str, pages: int, page_size: str = "4K") -> None:
    file = store.create(name, pages, page_size=page_size)
    store.store.devices.add(file.ino)


def remove(store: LocalStore, name: str) -> None:
    store.store.devices.remove(store.file(name).ino)


@pytest.fixture
def guest(store: LocalStore) -> LocalVm:
    """Private memory, a device of large pages, one of small ones, and shared memory, each with its own bytes."""
    store.create("mem", 16)
    add(store, "gpu", 1024, "2M")
    add(store, "nic", 16)
    local = store.vm()
    local.private_slot(0, MEM, page(16), "mem")
    local.private_slot(1, GPU, page(1024), "gpu")
    local.private_slot(2, NIC, page(16), "nic")
    local.shared_slot(3, RAM, page(16))
    for gpa, data, shared in ((MEM, b"mem", False), (GPU, b"gpu", False), (NIC, b"nic", False), (RAM, b"ram", True)):
        assert local.write(gpa, data, shared=shared) is None
    return local


def all_bytes(local: LocalVm) -> list[object]:
    return [
        *(local.read(gpa, 3) for gpa in (MEM, GPU, NIC)),
        local.read(RAM, 3, shared=True),
    ]


def types(local: LocalVm) -> list[int]:
    with local.vm.mmu.lock:
        entries = [
            *(local.vm.mmu.epts[PRIVATE].walk(Gfn(gpa // PAGE_SIZE)) for gpa in (MEM, GPU, NIC)),
            local.vm.mmu.epts[SHARED].walk(Gfn(RAM // PAGE_SIZE)),
        ]
    return [entry_memory_type(entry) for entry in entries]


def test_private_shared_and_device_memory_side_by_side(store: LocalStore, guest: LocalVm) -> None:
    assert all_bytes(guest) == [b"mem", b"gpu", b"nic", b"ram"]
    assert types(guest) == [MEMORY_TYPE_WB, MEMORY_TYPE_UC, MEMORY_TYPE_UC, MEMORY_TYPE_WB]
    with guest.vm.mmu.lock:
        assert guest.vm.mmu.epts[PRIVATE].leaf_counts[1] == 2, "4 MiB of the GPU in two leaves"
    assert store.count(FrameState.PRIVATE) == 1
    assert store.findings() == []


def test_an_unmap_destroys_private_contents_and_leaves_a_device_as_it_is(store: LocalStore, guest: LocalVm) -> None:
    for slot, gpa, size, name in ((0, MEM, 16, "mem"), (1, GPU, 1024, "gpu"), (2, NIC, 16, "nic")):
        guest.delete(slot, private=True)
        guest.private_slot(slot, gpa, page(size), name)
    assert all_bytes(guest) == [bytes(3), b"gpu", b"nic", b"ram"]


def test_a_device_is_not_encrypted(store: LocalStore, guest: LocalVm) -> None:
    """Nor is it zeroed when its VM ends: its window is the device."""
    window = store.windows.device_window(store.file("nic").ino)
    assert os.pread(window, 3, 0) == b"nic"
    guest.close()
    assert os.pread(window, 3, 0) == b"nic"
    os.close(window)
    assert errno_of(store.vm("another").private_slot, 0, 0, page(16), "nic") == "EPERM", "one VM for life (R1)"


def test_a_device_that_is_removed_under_its_guest(store: LocalStore, guest: LocalVm) -> None:
    remove(store, "gpu")
    for access in (
        lambda: guest.read(GPU, 3),
        lambda: guest.write(GPU + 5, b"x"),
        lambda: guest.read(GPU + page(700), 1),
    ):
        exit_ = access()
        assert isinstance(exit_, MemoryErrorExit)
        assert (exit_.private, exit_.errno) == (True, errno.ENODEV)
    assert all_bytes(guest)[2:] == [b"nic", b"ram"]
    assert guest.read(MEM, 3) == b"mem"
    assert store.findings() == []
    add(store, "gpu2", 1024)
    guest.delete(1, private=True)
    guest.private_slot(1, GPU, page(1024), "gpu2")
    assert guest.read(GPU, 3) == bytes(3), "another device, another memory"


def test_vcpus_that_run_meanwhile_see_the_device_or_an_exit(store: LocalStore, guest: LocalVm) -> None:
    guest.vm.create_vcpu(1)
    begun = Gate()

    def run() -> list[object]:
        seen: list[object] = []
        while not seen or isinstance(seen[-1], bytes):
            seen.append(guest.guest.read(guest.vm.vcpu(1), GPU, 3))
            begun.open()
        return seen

    beside = Beside(run)
    begun.wait()
    remove(store, "gpu")
    *before, last = beside.result()
    assert set(before) == {b"gpu"}
    assert isinstance(last, MemoryErrorExit)
    assert last.errno == errno.ENODEV


def test_a_device_vanishes_while_its_vm_dies(store: LocalStore, guest: LocalVm) -> None:
    ending = Beside(guest.close)
    remove(store, "gpu")
    remove(store, "nic")
    ending.result()
    assert store.windows.device_count() == 0
    assert store.free_count == store.service.pool.frame_count


def test_a_silent_vm_is_cut_off_and_the_device_is_dead_all_the_same(store: LocalStore, guest: LocalVm) -> None:
    store.hang_up("gpu")
    remove(store, "gpu")
    assert store.windows.device_count() == 1
    assert errno_of(remove, store, "gpu") == "ENODEV"


def test_a_device_is_no_part_of_an_image(guest: LocalVm) -> None:
    image = guest.kvm.image
    assert errno_of(image.populate, guest.vcpu, NIC + page(4), 1, lambda offset, length: bytes(length)) == "EINVAL"
    assert guest.read(NIC, 3) == b"nic"
