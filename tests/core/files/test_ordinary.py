"""Data of files that are not sealed for a guest: what tmpfs would say."""

import os
from random import Random

import pytest

from memfsd.uapi.limits import MAX_FILE_BYTES
from memfsd.uapi.units import PAGE_SIZE
from tests.support.core_store import KEEP_SIZE, NO_LEAKS, PUNCH, RDONLY, CoreStore, refused

P = PAGE_SIZE


def frames(store: CoreStore) -> int:
    return store.pool.frame_count - store.pool.free_count


# -- read and write


def test_what_was_written_is_read_and_nothing_past_the_end(store: CoreStore) -> None:
    file = store.make("file")
    handle = store.open(file)
    assert store.write(handle, 0, b"hello") == 5
    assert store.write(handle, 3, b"p!") == 2
    assert store.read(handle, 0, 100) == b"help!"
    assert store.read(handle, 4, 100) == b"!"
    assert store.read(handle, 5, 100) == b""
    assert store.read(handle, 1 << 40, 100) == b""
    assert (file.size, file.block_count) == (5, 8)


def test_a_write_across_pages_lands_in_each(store: CoreStore) -> None:
    handle = store.open(store.make("file"))
    data = bytes(range(256)) * 48
    assert store.write(handle, P - 7, data) == len(data)
    assert store.read(handle, 0, 1 << 20) == bytes(P - 7) + data


def test_files_side_by_side_do_not_mix(store: CoreStore) -> None:
    """Their frames interleave, so one file's runs are cut where the other's begin."""
    handles = [store.open(store.make(name)) for name in "ab"]
    for page in range(8):
        for number, handle in enumerate(handles):
            store.write(handle, page * P, bytes([16 * number + page]) * P)
    for number, handle in enumerate(handles):
        assert store.read(handle, 0, 9 * P) == b"".join(bytes([16 * number + page]) * P for page in range(8))


def test_a_sparse_file_holds_only_what_was_written(store: CoreStore) -> None:
    file = store.make("file")
    handle = store.open(file)
    store.write(handle, 100 * P + 5, b"far")
    store.write(handle, 3 * P, b"near")
    assert frames(store) == 2
    assert file.block_count == 16
    assert file.size == 100 * P + 8
    content = store.read(handle, 0, file.size)
    assert content[3 * P : 3 * P + 4] == b"near"
    assert content[-3:] == b"far"
    assert content.count(0) == file.size - 7


def test_writing_nothing_changes_nothing(store: CoreStore) -> None:
    file = store.make("file")
    handle = store.open(file)
    assert store.write(handle, 10 * P, b"") == 0
    assert (file.size, frames(store)) == (0, 0)


def test_a_file_ends_where_off_t_does(store: CoreStore) -> None:
    file = store.make("file")
    handle = store.open(file)
    assert store.write(handle, MAX_FILE_BYTES - 3, b"end") == 3
    assert file.size == MAX_FILE_BYTES
    assert store.read(handle, MAX_FILE_BYTES - 4, 10) == b"\0end"
    with refused("EFBIG"):
        store.write(handle, MAX_FILE_BYTES - 2, b"end")
    with refused("EFBIG"):
        store.resize(file, MAX_FILE_BYTES + 1)
    with refused("EFBIG"):
        store.fallocate(file, 0, MAX_FILE_BYTES - 10, 11)
    store.resize(file, 0)
    assert frames(store) == 0


# -- a full pool


def test_a_full_pool_shortens_a_write_and_loses_nothing(store: CoreStore) -> None:
    """64 frames: of 70 pages, 64 find room; what was there before is still there."""
    small = store.open(store.make("small"))
    store.write(small, 0, b"s" * P)
    big = store.open(store.make("big"))
    data = Random(2).randbytes(70 * P)
    assert store.write(big, 0, data) == 63 * P
    assert store.read(big, 0, 70 * P) == data[: 63 * P]
    for handle, offset in ((big, 63 * P), (small, P)):
        with refused("ENOSPC"):
            store.write(handle, offset, b"more")
    assert store.read(small, 0, 2 * P) == b"s" * P
    assert store.read(big, 0, 70 * P) == data[: 63 * P]


def test_a_full_pool_still_takes_writes_where_frames_are(store: CoreStore) -> None:
    file = store.make("file")
    handle = store.open(file)
    assert store.write(handle, 0, bytes(64 * P)) == 64 * P
    assert store.write(handle, 5, b"over") == 4
    assert store.write(handle, 64 * P - 2, b"tail") == 2
    assert (store.read(handle, 5, 4), file.size) == (b"over", 64 * P)


def test_a_write_stops_at_the_first_hole_that_finds_no_frame(store: CoreStore) -> None:
    """Pages 0 and 2 are there, page 1 is a hole, the pool is full: one page is written, and page 2 is not touched."""
    file, other = store.make("file"), store.make("other")
    handle = store.open(file)
    store.write(handle, 0, b"a" * P)
    store.write(handle, 2 * P, b"c" * P)
    store.fallocate(other, 0, 0, 62 * P)
    assert store.write(handle, 0, b"x" * 3 * P) == P
    assert store.read(handle, 0, 3 * P) == b"x" * P + bytes(P) + b"c" * P


def test_allocate_takes_all_or_nothing(store: CoreStore) -> None:
    file = store.make("file")
    handle = store.open(file)
    store.write(handle, 2 * P, b"kept")
    with refused("ENOSPC"):
        store.fallocate(file, 0, 0, 65 * P)
    assert (frames(store), file.size) == (1, 2 * P + 4)
    store.fallocate(file, 0, 0, 64 * P)
    assert (frames(store), file.size) == (64, 64 * P)
    assert store.read(handle, 2 * P, 4) == b"kept"
    assert store.audit() == []


# -- truncate


def test_a_cut_page_holds_zeros_behind_the_cut(store: CoreStore) -> None:
    file = store.make("file")
    handle = store.open(file)
    store.write(handle, 0, b"x" * 3 * P)
    store.resize(file, P + 10)
    assert frames(store) == 2
    store.resize(file, 3 * P)
    assert store.read(handle, 0, 4 * P) == b"x" * (P + 10) + bytes(2 * P - 10)


def test_a_write_past_a_cut_finds_zeros_between(store: CoreStore) -> None:
    file = store.make("file")
    handle = store.open(file)
    store.write(handle, 0, b"x" * P)
    store.resize(file, 10)
    store.write(handle, 20, b"y")
    assert store.read(handle, 0, P) == b"x" * 10 + bytes(10) + b"y"


def test_growing_takes_no_frames(store: CoreStore) -> None:
    file = store.make("file")
    store.resize(file, 1 << 40)
    assert (file.size, file.block_count, frames(store)) == (1 << 40, 0, 0)


@pytest.mark.parametrize("new_size", [0, 1, P + 1, 2 * P])
def test_truncate_drops_what_was_allocated_past_the_end(store: CoreStore, new_size: int) -> None:
    """As on tmpfs, also when the size stays the same: shmem_setattr cuts at the new size whatever the old one."""
    file = store.make("file")
    handle = store.open(file)
    store.write(handle, 0, b"x" * 2 * P)
    store.fallocate(file, KEEP_SIZE, 0, 10 * P)
    assert (file.size, frames(store)) == (2 * P, 10)
    store.resize(file, new_size)
    assert frames(store) == -(-new_size // P)


def test_freed_frames_come_back_as_zeros(store: CoreStore) -> None:
    """R8, through a file that fills the pool, is emptied, and is allocated again."""
    file = store.make("file")
    handle = store.open(file)
    store.write(handle, 0, b"secret" * 1000)
    store.resize(file, 0)
    assert store.pool.free_count == 64
    store.fallocate(file, 0, 0, 64 * P)
    assert store.read(handle, 0, 64 * P) == bytes(64 * P)


# -- fallocate


def test_allocate_grows_the_file_unless_told_to_keep_its_size(store: CoreStore) -> None:
    file = store.make("file")
    store.fallocate(file, KEEP_SIZE, P, 2 * P)
    assert (file.size, frames(store)) == (0, 2)
    store.fallocate(file, 0, P + 5, 10)
    assert (file.size, frames(store)) == (P + 15, 2)
    store.fallocate(file, 0, 0, 5)
    assert (file.size, frames(store)) == (P + 15, 3)


@pytest.mark.parametrize(
    ("offset", "length", "freed"),
    [
        (0, 4 * P, 4),
        (P, P, 1),
        (P - 1, P + 2, 1),
        (P + 1, P, 0),
        (P + 1, 2 * P - 2, 0),
        (P + 1, 2 * P - 1, 1),
        (10, 20, 0),
        (3 * P + 5, 100 * P, 0),
        (2 * P + 5, 100 * P, 1),
        (4 * P, P, 0),
        (1, 4 * P - 2, 2),
    ],
)
def test_a_punch_zeroes_partial_pages_and_frees_whole_ones(
    store: CoreStore, offset: int, length: int, freed: int
) -> None:
    file = store.make("file")
    handle = store.open(file)
    content = bytearray(Random(1).randbytes(4 * P).replace(b"\0", b"\1"))
    store.write(handle, 0, bytes(content))
    store.fallocate(file, PUNCH, offset, length)
    end = min(offset + length, 4 * P)
    content[offset:end] = bytes(max(end - offset, 0))
    assert store.read(handle, 0, 5 * P) == bytes(content)
    assert frames(store) == 4 - freed
    assert file.size == 4 * P


def test_a_punch_in_a_hole_does_nothing(store: CoreStore) -> None:
    file = store.make("file")
    store.resize(file, 10 * P)
    store.fallocate(file, PUNCH, 5, 3 * P)
    assert (file.size, frames(store)) == (10 * P, 0)


@pytest.mark.parametrize(("offset", "length"), [(0, 0), (-1, 5), (5, -1), (0, -P)])
@pytest.mark.parametrize("mode", [0, KEEP_SIZE, PUNCH])
def test_an_empty_or_negative_range_is_einval(store: CoreStore, mode: int, offset: int, length: int) -> None:
    with refused("EINVAL"):
        store.fallocate(store.make("file"), mode, offset, length)


@pytest.mark.parametrize("mode", [2, 4, 8, 9, 0x10, 0x11, 0x20, 0x40, 1 << 30])
def test_other_modes_are_not_supported(store: CoreStore, mode: int) -> None:
    """Punch without KEEP_SIZE, collapse, zero, insert, unshare and what is to come."""
    with refused("EOPNOTSUPP"):
        store.fallocate(store.make("file"), mode, 0, P)


# -- seek


def test_seek_finds_written_pages_and_holes(store: CoreStore) -> None:
    file = store.make("file")
    handle = store.open(file)
    store.write(handle, 2 * P, b"x" * 2 * P)
    store.write(handle, 8 * P, b"y")
    store.resize(file, 10 * P + 1)
    for offset, data, hole in (
        (0, 2 * P, 0),
        (2 * P + 7, 2 * P + 7, 4 * P),
        (4 * P, 8 * P, 4 * P),
        (8 * P + 9, 8 * P + 9, 9 * P),
        (9 * P, None, 9 * P),
        (10 * P, None, 10 * P),
    ):
        assert store.seek(file, offset, os.SEEK_HOLE) == hole
        if data is None:
            with refused("ENXIO"):
                store.seek(file, offset, os.SEEK_DATA)
        else:
            assert store.seek(file, offset, os.SEEK_DATA) == data


def test_the_end_of_a_file_is_a_hole(store: CoreStore) -> None:
    file = store.make("file")
    store.write(store.open(file), 0, b"x" * (P + 5))
    assert store.seek(file, 3, os.SEEK_HOLE) == P + 5


def test_allocated_and_never_written_is_a_hole(store: CoreStore) -> None:
    file = store.make("file")
    store.fallocate(file, 0, 0, 4 * P)
    store.write(store.open(file), 2 * P, b"x")
    assert store.seek(file, 0, os.SEEK_DATA) == 2 * P
    assert store.seek(file, 0, os.SEEK_HOLE) == 0
    assert store.seek(file, 2 * P, os.SEEK_HOLE) == 3 * P


def test_the_hole_of_an_answer_is_doubtful_while_a_handle_can_be_mapped_to_write(store: CoreStore) -> None:
    file = store.make("file")
    handle = store.open(file)
    store.write(handle, 2 * P, b"x" * 2 * P)
    store.write(handle, 8 * P, b"y")
    store.resize(file, 10 * P + 1)

    def doubtful(offset: int, whence: int) -> tuple[int, int] | None:
        seek = store.service.seek(file.ino, offset, whence)
        while not seek.step(store.windows):
            pass
        return seek.doubtful_hole()

    for offset, data, hole in (
        (5, (5, 2 * P), (5, 2 * P)),
        (2 * P + 7, None, (4 * P, 8 * P)),
        (8 * P, None, (9 * P, 10 * P + 1)),
        (9 * P + 3, (9 * P + 3, 10 * P + 1), (9 * P + 3, 10 * P + 1)),
    ):
        assert (doubtful(offset, os.SEEK_DATA), doubtful(offset, os.SEEK_HOLE)) == (data, hole)
    store.close(handle)
    readers = [store.open(file, os.O_RDONLY), store.open(file, os.O_WRONLY)]
    assert doubtful(5, os.SEEK_DATA) is None
    for reader in readers:
        store.close(reader)


@pytest.mark.parametrize("offset", [-1, P, P + 1, 1 << 62])
def test_seeking_from_outside_the_file_is_enxio(store: CoreStore, offset: int) -> None:
    file = store.make("file")
    store.write(store.open(file), 0, b"x" * P)
    for whence in (os.SEEK_DATA, os.SEEK_HOLE):
        with refused("ENXIO"):
            store.seek(file, offset, whence)


def test_other_kinds_of_seeking_are_the_kernels(store: CoreStore) -> None:
    file = store.make("file")
    for whence in (os.SEEK_SET, os.SEEK_CUR, os.SEEK_END, 5, 99):
        with refused("EINVAL"):
            store.seek(file, 0, whence)


# -- times and the end


def test_writing_changing_and_reading_set_the_times(store: CoreStore) -> None:
    file = store.make("file")
    handle = store.open(file)
    for change in (
        lambda: store.write(handle, 0, b"x"),
        lambda: store.resize(file, 100),
        lambda: store.fallocate(file, 0, 0, 200),
        lambda: store.fallocate(file, PUNCH, 0, 10),
    ):
        before = file.mtime_ns
        change()
        assert file.mtime_ns == file.ctime_ns > before
    store.read(handle, 0, 1)
    assert file.atime_ns > file.mtime_ns


def test_reading_again_within_a_day_leaves_the_time(store: CoreStore) -> None:
    """relatime: only the first read after a change, or after a day, is told."""
    file = store.make("file")
    handle = store.open(file)
    store.write(handle, 0, b"x")
    store.read(handle, 0, 1)
    report = file.atime_ns
    store.read(handle, 0, 1)
    assert file.atime_ns == report
    store.now = report + 86_400 * 10**9 - 1
    store.read(handle, 0, 1)
    assert file.atime_ns == report
    store.now += 1
    store.read(handle, 0, 1)
    assert file.atime_ns > report


def test_an_unlinked_file_lives_until_its_last_handle(store: CoreStore) -> None:
    file = store.make("file")
    first, second = store.open(file), store.open(file, RDONLY)
    store.write(first, 0, b"alive")
    store.unlink("file")
    store.close(first)
    assert store.read(second, 0, 5) == b"alive"
    store.close(second)
    assert frames(store) == 0
    store.forget_all()
    assert store.leaks() == NO_LEAKS


def test_open_with_trunc_empties_whoever_opens(store: CoreStore) -> None:
    file = store.make("file")
    store.write(store.open(file), 0, b"x" * 3 * P)
    store.open(file, os.O_WRONLY | os.O_TRUNC)
    assert (file.size, frames(store)) == (0, 0)
