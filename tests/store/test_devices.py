"""Devices, from the store's side: what becomes one, what it refuses, and what it leaves alone."""

import pytest

from memfsd.core.files.inodes import Regular
from memfsd.core.gmem import guest_of
from memfsd.uapi.limits import MAX_DEVICE_BYTES
from memfsd.uapi.messages import MemoryType
from memfsd.uapi.names import XATTR_POOL
from memfsd.uapi.units import PAGE_SIZE, Ino
from tests.support.core_store import KEEP_SIZE, PUNCH, CoreStore, refused

P = PAGE_SIZE


def device(store: CoreStore, name: str = "dev", pages: int = 8) -> Regular:
    file = store.guest_file(name, pages)
    store.store.devices.add(file.ino)
    return file


def pool_line(store: CoreStore) -> str:
    return store.store.files.getxattr(Ino(1), XATTR_POOL).decode()


def test_pages_of_a_device_are_granted_by_their_place_and_take_nothing_of_the_pool(store: CoreStore) -> None:
    file = device(store, pages=1024)
    paired = store.paired(file)
    assert (paired.window_frames, paired.memory_type) == (1024, MemoryType.UC)
    paired.bind(0, 0x100, 0, 1024)
    reply = paired.get_pfn(5, 4096)
    assert (reply.pfn, reply.page_count) == (5, 1019)
    assert store.pool.free_count == store.pool.frame_count, "larger than the pool, and not of it"
    assert file.block_count == 0
    assert store.getfattr(file, "frames") == "device=1024"
    assert " device=1024 " in pool_line(store)
    assert store.audit() == []


def test_what_is_no_memory_of_the_pool_is_neither_allocated_nor_freed(store: CoreStore) -> None:
    file = device(store)
    for mode in (0, KEEP_SIZE, PUNCH):
        with refused("EOPNOTSUPP", match="neither allocated nor freed"):
            store.fallocate(file, mode, 0, P)
    for size in (0, P, 16 * P):
        with refused("EPERM", match="for life"):
            store.resize(file, size)
    with refused("EOPNOTSUPP"):
        store.store.failures.poison(file.ino, 0)
    with refused("EBUSY"):
        store.setfattr(file, "page_size", "2M")


def test_what_cannot_become_a_device_is_refused_and_stays_what_it_was(store: CoreStore) -> None:
    used, empty, huge = store.guest_file("used", 8), store.guest_file("empty"), store.guest_file("huge")
    store.fallocate(used, KEEP_SIZE, 0, P)
    store.resize(huge, MAX_DEVICE_BYTES + P)
    paired = store.guest_file("paired", 8)
    store.pair(paired)
    for ino, name in (
        (used.ino, "EBUSY"),
        (paired.ino, "EBUSY"),
        (empty.ino, "EINVAL"),
        (huge.ino, "EFBIG"),
        (store.make("ordinary").ino, "EINVAL"),
        (device(store).ino, "EEXIST"),
        (Ino(1), "EISDIR"),
        (Ino(77), "ESTALE"),
    ):
        with refused(name):
            store.store.devices.add(ino)
    assert store.windows.device_count() == 1
    assert [guest_of(file).device for file in (used, empty, huge, paired)] == [None] * 4


def test_there_is_a_limit(store: CoreStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memfsd.store.devices.MAX_DEVICES", 2)
    one = device(store, "one")
    device(store, "two")
    with refused("ENOSPC", match="remove one first"):
        device(store, "three")
    store.store.devices.remove(one.ino)
    device(store, "four")


def test_the_limit_holds_when_two_are_added_at_once(store: CoreStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memfsd.store.devices.MAX_DEVICES", 1)
    make, first = store.windows.make_device, store.guest_file("first", 4)

    def make_device(ino: Ino, size: int) -> int:
        if ino != first.ino:
            store.store.devices.add(first.ino)
        return make(ino, size)

    monkeypatch.setattr(store.windows, "make_device", make_device)
    with refused("ENOSPC", match="remove one first"):
        device(store, "second")
    assert store.windows.device_count() == 1


def test_a_device_that_was_removed_is_dead_for_everybody(store: CoreStore) -> None:
    file, never = device(store), device(store, "never paired")
    paired = store.paired(file)
    paired.bind(0, 0x100, 0, 4)
    paired.get_pfn(1, 1)
    seq = guest_of(file).seq
    for gone in (file, never):
        store.store.devices.remove(gone.ino)
        with refused("ENODEV"):
            store.store.devices.remove(gone.ino)
    assert guest_of(file).seq == seq + 1, "the VM has acknowledged"
    with refused("ENODEV"):
        paired.get_pfn(1, 1)
    with refused("ENODEV"):
        paired.bind(1, 0x200, 4, 4)
    with refused("ENODEV"):
        store.paired(never)
    paired.unbind(0, 4)
    assert store.windows.device_count() == 0
    assert store.getfattr(file, "frames") == "device=0 removed=1"
    assert " device=0 " in pool_line(store)
    assert store.audit() == []


def test_a_file_that_is_no_device_cannot_be_removed_as_one(store: CoreStore) -> None:
    for file in (store.guest_file("sealed", 8), store.make("ordinary")):
        with refused("EINVAL"):
            store.store.devices.remove(file.ino)


def test_rm_takes_a_device_away_when_its_vm_has_ended(store: CoreStore) -> None:
    file = device(store)
    paired = store.paired(file)
    paired.bind(0, 0x100, 0, 8)
    store.unlink("dev")
    store.forget_all()
    assert paired.get_pfn(1, 1).pfn == 1
    assert store.windows.device_count() == 1
    store.release_guest(file)
    assert store.windows.device_count() == 0


def test_the_vm_of_a_device_that_is_gone_may_end(store: CoreStore) -> None:
    file = device(store)
    store.paired(file).bind(0, 0x100, 0, 8)
    store.store.devices.remove(file.ino)
    store.release_guest(file)
    store.unlink("dev")
    store.forget_all()
    assert store.service.inodes.find(file.ino) is None
    assert store.audit() == []


def test_a_file_that_is_resized_while_it_becomes_a_device_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    store = CoreStore(resize_any=True)
    file = store.guest_file("file", 2)
    make = store.windows.make_device

    def meanwhile(ino: Ino, size: int) -> int:
        store.resize(file, 8 * P)
        return make(ino, size)

    monkeypatch.setattr(store.windows, "make_device", meanwhile)
    with refused("EAGAIN", match="add the device again"):
        store.store.devices.add(file.ino)
    assert guest_of(file).device is None and file.size == 8 * P


def test_a_resize_that_was_asked_for_before_does_not_shrink_a_device() -> None:
    store = CoreStore(resize_any=True)
    file = store.guest_file("file", 8)
    work = store.store.files.truncate(file.ino, 0)
    store.store.devices.add(file.ino)
    with refused("EPERM", match="keeps its size"):
        work.run()
    assert file.size == 8 * P
    store.store.devices.remove(file.ino)
