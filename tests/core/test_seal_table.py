"""DESIGN 4.3, row by row, without FUSE."""

import os
import stat
from collections.abc import Callable

import pytest

from memfsd.core.files.inodes import ROOT_INO, Changes, Regular
from memfsd.core.service import NAMELESS
from memfsd.uapi.seals import Seal
from memfsd.uapi.units import PAGE_SIZE
from tests.support.core_store import (
    KEEP_SIZE,
    ME,
    NO_LEAKS,
    PUNCH,
    RDONLY,
    RDWR,
    WRONLY,
    CoreStore,
    refused,
)

P = PAGE_SIZE
WAYS = ["xattr", "ioctl"]


def seal(store: CoreStore, file: Regular, way: str, text: str = "guest") -> None:
    """As a shell and as a program do it."""
    if way == "xattr":
        store.setfattr(file, "seals", text)
        return
    handle = store.open(file, WRONLY)
    try:
        store.seal(file, Seal.GUEST, own_handle=handle, truncate="truncate" in text)
    finally:
        store.close(handle)


def frames(store: CoreStore) -> int:
    return store.pool.frame_count - store.pool.free_count


# -- add guest


@pytest.mark.parametrize("way", WAYS)
def test_add_guest_to_an_empty_file_that_nobody_reads_seals_it_for_ever(store: CoreStore, way: str) -> None:
    file = store.make("file")
    seal(store, file, way)
    assert file.seals == Seal.GUEST
    assert store.forgotten == [file.ino]
    seal(store, file, way)
    assert store.getfattr(file, "seals") == "guest"
    guest = file.guest
    seal(store, file, way, "guest,truncate")
    assert file.guest is guest


def test_add_guest_while_only_written_to_is_allowed(store: CoreStore) -> None:
    file = store.make("file")
    handle = store.open(file, WRONLY)
    seal(store, file, "xattr")
    with refused("EPERM"):
        store.write(handle, 0, b"x")


@pytest.mark.parametrize("way", WAYS)
def test_add_guest_with_a_size_is_ebusy(store: CoreStore, way: str) -> None:
    file = store.make("file")
    store.resize(file, P)
    with refused("EBUSY", match="not empty"):
        seal(store, file, way)
    assert (file.seals, file.guest, file.size) == (0, None, P)


@pytest.mark.parametrize("way", WAYS)
def test_add_guest_with_a_size_and_truncate_empties_first(store: CoreStore, way: str) -> None:
    file = store.make("file")
    handle = store.open(file, WRONLY)
    store.write(handle, 0, b"secret" * P)
    seal(store, file, way, "guest,truncate")
    assert (file.seals, file.size, frames(store)) == (Seal.GUEST, 0, 0)
    assert store.memory == {}


@pytest.mark.parametrize("way", WAYS)
def test_add_guest_with_a_size_on_a_mount_that_truncates(way: str) -> None:
    store = CoreStore(truncate_nonempty=True)
    file = store.make("file")
    store.resize(file, P)
    seal(store, file, way)
    assert (file.seals, file.size) == (Seal.GUEST, 0)


def test_add_guest_with_a_size_sealed_against_shrinking_is_refused_even_with_truncate(store: CoreStore) -> None:
    file = store.make("file")
    store.resize(file, P)
    store.seal(file, Seal.SHRINK)
    with refused("EPERM"):
        store.setfattr(file, "seals", "guest,truncate")
    assert (file.size, file.guest) == (P, None)


def test_add_guest_frees_what_was_allocated_past_the_end(store: CoreStore) -> None:
    file = store.make("file")
    store.fallocate(file, KEEP_SIZE, 0, 5 * P)
    seal(store, file, "xattr")
    assert frames(store) == 0


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("flags", [RDONLY, RDWR])
@pytest.mark.parametrize("text", ["guest", "guest,truncate"])
def test_add_guest_while_a_readable_handle_exists_is_ebusy(store: CoreStore, flags: int, text: str, way: str) -> None:
    file = store.make("file")
    handle = store.open(file, flags)
    with refused("EBUSY", match="open for reading"):
        seal(store, file, way, text)
    store.close(handle)
    seal(store, file, way, text)


def test_add_guest_through_a_readable_handle_is_ebusy_too(store: CoreStore) -> None:
    file = store.make("file")
    handle = store.open(file, RDWR)
    with refused("EBUSY"):
        store.seal(file, Seal.GUEST, own_handle=handle)


def test_any_seal_after_seal_is_eperm(store: CoreStore) -> None:
    file = store.make("file")
    store.setfattr(file, "seals", "guest,seal")
    for name in ("seal", "shrink", "grow", "write", "future-write", "guest", "guest,truncate"):
        with refused("EPERM"):
            store.setfattr(file, "seals", name)
    assert store.getfattr(file, "seals") == "seal,guest"


def test_removing_a_seal_is_eperm(store: CoreStore) -> None:
    file = store.guest_file("file")
    with refused("EPERM"):
        store.service.removexattr(file.ino, b"user.memfsd.seals", 1)
    assert file.seals == Seal.GUEST


# -- open


@pytest.mark.parametrize("flags", [RDONLY, RDWR, RDONLY | os.O_TRUNC, RDWR | os.O_APPEND])
def test_open_for_reading_or_read_write_is_eperm(store: CoreStore, flags: int) -> None:
    file = store.guest_file("file", 4)
    with refused("EPERM", match="open it write-only"):
        store.open(file, flags)
    assert file.opens == 0


def test_open_write_only_is_allowed(store: CoreStore) -> None:
    file = store.guest_file("file", 4)
    store.open(file, WRONLY)
    assert file.readers == 0


def test_open_with_trunc_of_a_sized_file_is_eperm_and_of_an_empty_one_does_nothing(store: CoreStore) -> None:
    sized, empty = store.guest_file("sized", 4), store.guest_file("empty")
    with refused("EPERM"):
        store.open(sized, WRONLY | os.O_TRUNC)
    assert sized.size == 4 * P
    store.open(empty, WRONLY | os.O_TRUNC)
    store.resize(empty, P)


def test_with_open_rw_it_opens_and_reads_still_fail() -> None:
    store = CoreStore(open_rw=True)
    file = store.guest_file("file", 4)
    for flags in (RDONLY, RDWR):
        handle = store.open(file, flags)
        with refused("EPERM"):
            store.read(handle, 0, 1)
    assert store.audit() == []


# -- write


@pytest.mark.parametrize("offset", [0, P, 100 * P])
def test_write_is_eperm(store: CoreStore, offset: int) -> None:
    file = store.guest_file("file", 4)
    handle = store.open(file, WRONLY)
    for data in (b"x", b""):
        with refused("EPERM"):
            store.write(handle, offset, data)
    assert (file.size, frames(store)) == (4 * P, 0)


def test_read_is_eperm_whatever_the_handle(store: CoreStore) -> None:
    handle = store.open(store.guest_file("file", 4), WRONLY)
    with refused("EPERM"):
        store.read(handle, 0, 1)


# -- size


@pytest.mark.parametrize("size", [P, 16 * P, 1 << 40, (1 << 63) - P])
def test_size_is_set_once(store: CoreStore, size: int) -> None:
    file = store.guest_file("file")
    store.resize(file, size)
    assert file.size == size
    for again in (size, size + P, size - P, 0):
        with refused("EPERM"):
            store.resize(file, again)
    assert file.size == size


@pytest.mark.parametrize("size", [1, P - 1, P + 1, 5 * P + 512])
def test_an_unaligned_size_is_einval_first_time_or_later(store: CoreStore, size: int) -> None:
    file = store.guest_file("file")
    with refused("EINVAL"):
        store.resize(file, size)
    store.resize(file, P)
    with refused("EINVAL"):
        store.resize(file, size)


def test_truncating_an_empty_file_to_nothing_does_not_use_up_its_size(store: CoreStore) -> None:
    file = store.guest_file("file")
    store.resize(file, 0)
    store.resize(file, 0)
    store.resize(file, 4 * P)


def test_with_resize_any_it_grows_and_shrinks_by_whole_pages() -> None:
    store = CoreStore(resize_any=True)
    file, guest = store.bound_file("file", 8)
    for pgoff in range(8):
        store.fault(file, pgoff)
    store.resize(file, 3 * P)
    assert (file.size, frames(store), guest.seq) == (3 * P, 3, 1)
    with refused("EFAULT"):
        store.fault(file, 3)
    store.resize(file, 16 * P)
    assert (file.size, frames(store), guest.seq) == (16 * P, 3, 1)
    store.resize(file, 0)
    assert (file.size, frames(store)) == (0, 0)
    with refused("EINVAL"):
        store.resize(file, 5)


def test_with_resize_any_the_size_seals_still_hold() -> None:
    store = CoreStore(resize_any=True)
    file = store.guest_file("file", 4)
    store.seal(file, Seal.SHRINK | Seal.GROW)
    for size in (P, 8 * P):
        with refused("EPERM"):
            store.resize(file, size)
    store.resize(file, 4 * P)


# -- fallocate


@pytest.mark.parametrize("mode", [0, KEEP_SIZE])
def test_allocate_inside_the_size(store: CoreStore, mode: int) -> None:
    file = store.guest_file("file", 8)
    store.fallocate(file, mode, 2 * P, 3 * P)
    assert (frames(store), file.size, file.block_count) == (3, 8 * P, 24)
    store.fallocate(file, mode, 0, 8 * P)
    assert frames(store) == 8
    store.fallocate(file, mode, 0, 8 * P)
    assert frames(store) == 8


def test_punch_hole_with_keep_size_frees(store: CoreStore) -> None:
    file = store.guest_file("file", 8)
    store.fallocate(file, 0, 0, 8 * P)
    store.fallocate(file, PUNCH, P, 3 * P)
    assert (frames(store), file.size) == (5, 8 * P)
    assert store.seek(file, 0, os.SEEK_HOLE) == P
    assert store.seek(file, P, os.SEEK_DATA) == 4 * P


@pytest.mark.parametrize("mode", [2, 4, 8, 9, 0x10, 0x11, 0x20, 0x40, 0x43])
def test_other_modes_are_eopnotsupp(store: CoreStore, mode: int) -> None:
    with refused("EOPNOTSUPP"):
        store.fallocate(store.guest_file("file", 8), mode, 0, P)


@pytest.mark.parametrize("mode", [0, KEEP_SIZE, PUNCH])
@pytest.mark.parametrize(("offset", "length"), [(1, P), (0, P + 1), (P, 1), (0, 0), (-P, P), (0, -P), (P // 2, P // 2)])
def test_unaligned_or_empty_is_einval(store: CoreStore, mode: int, offset: int, length: int) -> None:
    file = store.guest_file("file", 8)
    with refused("EINVAL"):
        store.fallocate(file, mode, offset, length)
    assert frames(store) == 0


@pytest.mark.parametrize("mode", [0, KEEP_SIZE])
@pytest.mark.parametrize(("page", "pages"), [(8, 1), (7, 2), (0, 9), (1000, 1)])
def test_allocate_past_the_end_is_einval(store: CoreStore, mode: int, page: int, pages: int) -> None:
    file = store.guest_file("file", 8)
    with refused("EINVAL", match="past the end"):
        store.fallocate(file, mode, page * P, pages * P)
    assert frames(store) == 0


def test_punch_past_the_end_succeeds_and_does_nothing_there(store: CoreStore) -> None:
    file = store.guest_file("file", 8)
    store.fallocate(file, 0, 0, 8 * P)
    store.fallocate(file, PUNCH, 8 * P, P)
    store.fallocate(file, PUNCH, 1 << 40, 1 << 40)
    assert frames(store) == 8
    store.fallocate(file, PUNCH, 6 * P, 100 * P)
    assert (frames(store), file.size) == (6, 8 * P)


def test_offset_and_length_that_overflow_are_efbig(store: CoreStore) -> None:
    file = store.guest_file("file", 8)
    for mode in (0, PUNCH):
        with refused("EFBIG"):
            store.fallocate(file, mode, (1 << 63) - P, P)


def test_pool_full_is_enospc_and_nothing_changed(store: CoreStore) -> None:
    file = store.guest_file("file", 100)
    store.fallocate(file, 0, 3 * P, P)
    with refused("ENOSPC"):
        store.fallocate(file, 0, 0, 100 * P)
    assert (frames(store), file.block_count) == (1, 8)
    store.fallocate(file, 0, 0, 64 * P)


# -- as on any file


def test_chmod_chown_utimens_rename_link_stat_and_xattrs_are_as_on_any_file(store: CoreStore) -> None:
    file = store.guest_file("file", 4)
    store.service.setattr(file.ino, Changes(mode=0o600, uid=7, gid=8, atime_ns=9, mtime_ns=10), store.tick())
    assert (file.mode, file.uid, file.gid, file.atime_ns, file.mtime_ns) == (stat.S_IFREG | 0o600, 7, 8, 9, 10)
    store.service.link(file.ino, ROOT_INO, b"second", store.tick())
    store.perform(store.service.rename(ROOT_INO, b"file", ROOT_INO, b"moved", 0, store.tick(), ME))
    assert store.names.lookup(ROOT_INO, b"moved") is file
    store.perform(store.service.setxattr(file.ino, b"user.note", b"kept", 0, store.tick()))
    assert store.service.getxattr(file.ino, b"user.note", lambda: b"") == b"kept"
    assert (file.size, file.nlink) == (4 * P, 2)


@pytest.mark.parametrize("last", ["name", "handle", "vm"])
def test_data_lives_until_the_last_name_handle_and_pairing_are_gone(store: CoreStore, last: str) -> None:
    file, _ = store.bound_file("file", 4)
    store.fault(file, 0)
    store.fallocate(file, 0, 0, 4 * P)
    handle = store.open(file, WRONLY)
    store.forget_all()
    ends: dict[str, Callable[[], object]] = {
        "name": lambda: store.unlink("file"),
        "handle": lambda: store.close(handle),
        "vm": lambda: store.release_guest(file),
    }
    final = ends.pop(last)
    for end in ends.values():
        end()
        assert store.service.inodes.find(file.ino) is file
    if last == "vm":
        assert frames(store) == 4
    final()
    store.forget_all()
    assert store.leaks() == NO_LEAKS


# -- the three ways


def test_on_a_guest_mount_every_new_regular_file_is_born_sealed() -> None:
    store = CoreStore(born_guest=True)
    file = store.make("file")
    assert (file.seals, file.size) == (Seal.GUEST, 0)
    opened, handle = store.service.create(ROOT_INO, b"second", 0o644, WRONLY, ME, store.tick())
    assert opened.guest is not None
    store.close(handle)
    nameless, handle = store.service.create(ROOT_INO, NAMELESS, 0o644, WRONLY, ME, store.tick())
    assert nameless.guest is not None
    store.close(handle)
    fifo = store.service.mknod(ROOT_INO, b"fifo", stat.S_IFIFO | 0o644, 0, ME, store.tick())
    assert not hasattr(fifo, "guest")
    store.resize(file, P)


@pytest.mark.parametrize("flags", [RDONLY, RDWR])
def test_on_a_guest_mount_a_new_file_is_not_opened_for_reading(flags: int) -> None:
    store = CoreStore(born_guest=True)
    with refused("EPERM", match="create them write-only"):
        store.service.create(ROOT_INO, b"file", 0o644, flags, ME, store.tick())
    with refused("ENOENT"):
        store.names.lookup(ROOT_INO, b"file")
    relaxed = CoreStore(born_guest=True, open_rw=True)
    file, _ = relaxed.service.create(ROOT_INO, b"file", 0o644, flags, ME, relaxed.tick())
    assert file.guest is not None
