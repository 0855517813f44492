"""The use cases of guest_memfds: creation and conversion, with a VM that acknowledges at once."""

import errno
import os
from dataclasses import replace

import pytest

from memfsd.core.files.inodes import Regular
from memfsd.core.gmem import guest_of
from memfsd.store.deadlines import Deadlines
from memfsd.store.guest_memfds import AttributesRefused
from memfsd.uapi.abi import GMEM_6_18, GMEM_INPLACE, THREAD, Abi, GmemFlag
from memfsd.uapi.gmem_ioctls import ATTRIBUTE_PRIVATE, CreateGuestMemfd, MemoryAttributes2
from memfsd.uapi.messages import Kind
from memfsd.uapi.units import PAGE_SIZE, Pgoff
from tests.core.test_host_access import BOTH, PAGES, memfd_of, read, store_page
from tests.support.core_store import PUNCH, CoreStore, ScriptedVm, refused

MMAP = GmemFlag.MMAP


def convert(store: CoreStore, ino: int, page: int, count: int, *, private: bool) -> None:
    attributes = ATTRIBUTE_PRIVATE if private else 0
    store.store.guest_memfds.set_attributes(ino, MemoryAttributes2(page * PAGE_SIZE, count * PAGE_SIZE, attributes))


def bound(store: CoreStore, file: Regular) -> ScriptedVm:
    """A VM that shows all of the file."""
    store.pair(file)
    store.gmem.bind(file, 1, 0x100, 0, PAGES)
    return store.vm_of(file)


def test_an_empty_file_becomes_one_of_a_fixed_size() -> None:
    store = CoreStore(abi=GMEM_6_18)
    file, _ = memfd_of(store)
    assert file.size == PAGES * PAGE_SIZE
    assert file.guest is not None
    assert file.guest.memfd is not None
    assert file.guest.memfd.flags == BOTH
    assert store.store.guest_memfds.shared_ranges(file.ino) == [(0, PAGES)]
    with refused("EINVAL", match="for life"):
        store.store.files.truncate(file.ino, 0)


@pytest.mark.parametrize(
    ("abi", "asked", "name", "said"),
    [
        (THREAD, CreateGuestMemfd(4096, 0), "EOPNOTSUPP", "abi=thread has no guest_memfds"),
        (GMEM_6_18, CreateGuestMemfd(4096, 4), "EINVAL", "flags 0x4"),
        (GMEM_6_18, CreateGuestMemfd(4097, 0), "EINVAL", "size 4097"),
    ],
)
def test_what_cannot_become_one_is_left_as_it_was(abi: Abi, asked: CreateGuestMemfd, name: str, said: str) -> None:
    store = CoreStore(abi=abi)
    file = store.make("file")
    handle = store.open(file, os.O_WRONLY)
    with refused(name, match=said):
        store.store.guest_memfds.create(file.ino, handle, asked)
    assert (file.guest, file.size) == (None, 0)


def test_a_file_that_is_in_use_is_ebusy() -> None:
    store = CoreStore(abi=GMEM_6_18)
    file = store.make("file")
    handle = store.open(file, os.O_WRONLY)
    store.open(file, os.O_RDONLY)
    with refused("EBUSY", match="empty file, open write-only"):
        store.store.guest_memfds.create(file.ino, handle, CreateGuestMemfd(4096, 0))


def test_a_handle_that_only_reads_makes_none() -> None:
    store = CoreStore(abi=GMEM_6_18)
    file = store.make("file")
    handle = store.open(file, os.O_RDONLY)
    with refused("EPERM", match="writable"):
        store.store.guest_memfds.create(file.ino, handle, CreateGuestMemfd(4096, 0))


def test_its_memory_outlives_its_vm_and_not_the_file() -> None:
    store = CoreStore(abi=GMEM_6_18)
    file, handle = store.memfd("vm.mem", BOTH, PAGES)
    store_page(store, handle, 0, b"x")
    store.pair(file)
    store.release_guest(file)
    assert read(store, handle, 0) == b"x" * PAGE_SIZE
    assert file.ino not in store.dropped
    free = store.pool.free_count
    store.unlink("vm.mem")
    store.close(handle)
    assert store.pool.free_count == free + 1
    assert file.ino in store.dropped


def test_a_page_that_becomes_private_leaves_the_kernels_cache_after_the_vm_let_go() -> None:
    store = CoreStore(abi=GMEM_INPLACE)
    file, handle = memfd_of(store)
    store_page(store, handle, 1, b"x")
    vm = bound(store, file)
    convert(store, file.ino, 1, 2, private=True)
    assert vm.calls == [Kind.INVALIDATE_BEGIN, Kind.INVALIDATE_END]
    assert store.forgotten_ranges == [(file.ino, PAGE_SIZE, 2 * PAGE_SIZE)]
    with refused("EIO"):
        read(store, handle, 1)
    convert(store, file.ino, 1, 2, private=False)
    assert vm.calls == [Kind.INVALIDATE_BEGIN, Kind.INVALIDATE_END] * 2
    assert len(store.forgotten_ranges) == 1, "the host has nothing of it that could be stale"
    assert read(store, handle, 1) == b"x" * PAGE_SIZE


def test_what_is_so_already_asks_nobody() -> None:
    store = CoreStore(abi=GMEM_INPLACE)
    file, _ = memfd_of(store)
    vm = bound(store, file)
    convert(store, file.ino, 0, PAGES, private=False)
    assert vm.calls == []


def test_a_profile_that_destroys_loses_the_contents() -> None:
    store = CoreStore(abi=replace(GMEM_INPLACE, destroys_unmapped=True))
    file, handle = memfd_of(store)
    store_page(store, handle, 0, b"x", 2)
    convert(store, file.ino, 0, 1, private=True)
    convert(store, file.ino, 0, 1, private=False)
    assert read(store, handle, 0, 2) == bytes(PAGE_SIZE) + b"x" * PAGE_SIZE


def test_only_a_file_with_attributes_has_any() -> None:
    store = CoreStore(abi=GMEM_6_18)
    file, _ = memfd_of(store)
    with refused("ENOTTY", match="abi=gmem-inplace"):
        convert(store, file.ino, 0, 1, private=True)


def test_another_invalidation_that_does_not_end_is_eagain_and_changes_nothing() -> None:
    store = CoreStore(abi=GMEM_INPLACE)
    file, _ = memfd_of(store)
    store.store.invalidator._deadlines = Deadlines(invalidate_lock_s=0.0)
    with guest_of(file).invalidate_lock, pytest.raises(AttributesRefused) as caught:
        convert(store, file.ino, 1, 2, private=True)
    assert (caught.value.errno, caught.value.error_offset) == (errno.EAGAIN, PAGE_SIZE)
    assert store.store.guest_memfds.shared_ranges(file.ino) == [(0, PAGES)]


def test_a_punch_keeps_what_a_page_is() -> None:
    store = CoreStore(abi=GMEM_INPLACE)
    file, _ = memfd_of(store, MMAP)
    convert(store, file.ino, 0, 2, private=False)
    store.fallocate(file, PUNCH, 0, PAGES * PAGE_SIZE)
    assert store.store.guest_memfds.shared_ranges(file.ino) == [(0, 2)]


def test_its_pages_neither_move_nor_leave() -> None:
    store = CoreStore(abi=GMEM_6_18)
    file, handle = memfd_of(store)
    read(store, handle, 0)
    assert store.store.mover.relocate(file, [Pgoff(0)], (0,)).page_count == 0
