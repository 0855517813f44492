"""What Linux's file calls do beyond Python's, on tmpfs."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from memfsd.common import linux
from memfsd.common.linux import data_end, data_ranges, dirty_bytes, fallocate, punch_hole
from memfsd.uapi.names import FALLOC_FL_KEEP_SIZE
from memfsd.uapi.units import PAGE_SIZE


@pytest.fixture
def memfd() -> Iterator[int]:
    fd = os.memfd_create("test")
    os.ftruncate(fd, 8 * PAGE_SIZE)
    yield fd
    os.close(fd)


def test_data_ranges_are_the_pages_that_hold_memory(memfd: int) -> None:
    assert data_ranges(memfd) == []
    os.pwrite(memfd, b"x" * 2 * PAGE_SIZE, PAGE_SIZE)
    os.pwrite(memfd, b"x", 7 * PAGE_SIZE)
    assert data_ranges(memfd) == [(1, 3), (7, 8)]


@pytest.mark.parametrize("system_call", [451, 99_999], ids=["cachestat", "before Linux 6.5"])
def test_where_data_ends_is_found_without_a_look_behind_the_range(
    memfd: int, system_call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page moved alone in a window of 1 GiB took 11 ms: SEEK_HOLE looks at all pages up to the next hole."""
    os.ftruncate(memfd, 2000 * PAGE_SIZE)
    os.pwrite(memfd, b"x" * 1500 * PAGE_SIZE, 2 * PAGE_SIZE)
    search = os.lseek

    def lseek(fd: int, at: int, whence: int) -> int:
        assert whence == os.SEEK_DATA
        return search(fd, at, whence)

    monkeypatch.setattr(os, "lseek", lseek)
    monkeypatch.setattr(linux, "_CACHESTAT", system_call)
    assert data_end(memfd, 2, 2000) == 1502
    assert data_end(memfd, 2, 1502) == 1502
    assert data_end(memfd, 700, 703) == 703
    assert data_end(memfd, 1502, 1600) == 1502
    assert data_end(memfd, 5, 5) == 5
    punch_hole(memfd, 600 * PAGE_SIZE, PAGE_SIZE)
    assert data_end(memfd, 2, 2000) == 600
    assert data_ranges(memfd, 0, 1, is_memfd=True) == []
    assert data_ranges(memfd, 3, 5, is_memfd=True) == [(3, 5)]
    assert data_ranges(memfd, 1, 1900, is_memfd=True) == [(2, 600), (601, 1502)]


def test_a_page_that_is_punched_in_the_middle_of_the_search_is_left_out(
    memfd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`memfs check` took it for a descriptor that had been overwritten: EIO, once in some runs of the tests."""
    for page in (1, 4, 7):
        os.pwrite(memfd, b"x", page * PAGE_SIZE)
    search, punched = os.lseek, list[int]()

    def lseek(fd: int, at: int, whence: int) -> int:
        if whence == os.SEEK_HOLE and at in (PAGE_SIZE, 7 * PAGE_SIZE):
            punch_hole(fd, at, PAGE_SIZE)
            punched.append(at)
        return search(fd, at, whence)

    monkeypatch.setattr(os, "lseek", lseek)
    assert data_ranges(memfd) == [(4, 5)]
    assert len(punched) == 2


def test_a_hole_reads_as_zeros_and_the_size_stays(memfd: int) -> None:
    os.pwrite(memfd, b"x" * 8 * PAGE_SIZE, 0)
    punch_hole(memfd, PAGE_SIZE, PAGE_SIZE)
    assert data_ranges(memfd) == [(0, 1), (2, 8)]
    assert os.pread(memfd, PAGE_SIZE, PAGE_SIZE) == bytes(PAGE_SIZE)
    assert os.fstat(memfd).st_size == 8 * PAGE_SIZE


def test_fallocate_past_the_end_grows_or_keeps_the_size(memfd: int) -> None:
    fallocate(memfd, FALLOC_FL_KEEP_SIZE, 8 * PAGE_SIZE, PAGE_SIZE)
    assert os.fstat(memfd).st_size == 8 * PAGE_SIZE
    fallocate(memfd, 0, 8 * PAGE_SIZE, PAGE_SIZE)
    assert os.fstat(memfd).st_size == 9 * PAGE_SIZE


def test_errors_are_the_kernels(memfd: int) -> None:
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        punch_hole(memfd, 0, 0)
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        fallocate(-1, 0, 0, PAGE_SIZE)


def test_what_is_dirty_includes_what_was_just_written(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        file.write(bytes(1 << 20))
        file.flush()
        assert dirty_bytes() >= 1 << 20
