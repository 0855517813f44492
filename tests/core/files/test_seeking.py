"""Where data and holes begin, with the frames that hold bytes told by the test."""

import os

import pytest

from memfsd.core.files.inodes import Regular
from memfsd.core.files.seeking import Seek
from memfsd.uapi.units import PAGE_SIZE, Pfn, Pgoff
from tests.support.core_store import CoreStore, refused

P = PAGE_SIZE
DATA, HOLE = os.SEEK_DATA, os.SEEK_HOLE


class Written:
    """WrittenExtents: of a file, these pages hold bytes."""

    def __init__(self, file: Regular, *pages: int) -> None:
        self._pfns = {file.pages.lookup(Pgoff(page)) for page in pages}

    def first_written(self, pfn: Pfn, count: int) -> int | None:
        return next((number for number in range(count) if pfn + number in self._pfns), None)

    def first_unwritten(self, pfn: Pfn, count: int) -> int:
        return next((number for number in range(count) if pfn + number not in self._pfns), count)


def answer(file: Regular, offset: int, whence: int, contents: Written) -> int:
    seek = Seek(file, offset, whence)
    while not seek.step(contents):
        pass
    return seek.answer()


@pytest.fixture
def file(store: CoreStore) -> Regular:
    """Ten pages and a byte; pages 2 to 6 have frames."""
    file = store.make("file")
    store.resize(file, 10 * P + 1)
    store.fallocate(file, 0, 2 * P, 5 * P)
    return file


@pytest.mark.parametrize(
    ("whence", "offset", "found"),
    [
        (DATA, 0, 3 * P),
        (DATA, 3 * P + 5, 3 * P + 5),
        (DATA, 5 * P, 6 * P),
        (HOLE, 0, 0),
        (HOLE, 7, 7),
        (HOLE, 3 * P, 5 * P),
        (HOLE, 4 * P + 9, 5 * P),
        (HOLE, 6 * P, 7 * P),
        (HOLE, 10 * P, 10 * P),
    ],
)
def test_what_was_allocated_and_never_written_is_a_hole(file: Regular, whence: int, offset: int, found: int) -> None:
    assert answer(file, offset, whence, Written(file, 3, 4, 6)) == found


def test_there_is_no_data_after_the_last(file: Regular) -> None:
    with refused("ENXIO", match="no data after offset 20480"):
        answer(file, 5 * P, DATA, Written(file, 3, 4))


def test_the_end_of_a_file_that_is_data_throughout_is_a_hole(store: CoreStore) -> None:
    file = store.make("file")
    store.fallocate(file, 0, 0, 2 * P)
    store.resize(file, P + 100)
    assert answer(file, 0, HOLE, Written(file, 0, 1)) == P + 100


@pytest.mark.parametrize("offset", [-1, 10 * P + 1])
def test_an_offset_outside_the_file_is_enxio(file: Regular, offset: int) -> None:
    with refused("ENXIO", match="outside the file"):
        Seek(file, offset, DATA)


def test_another_whence_is_einval(file: Regular) -> None:
    with refused("EINVAL", match="whence 2 is not SEEK_DATA or SEEK_HOLE"):
        Seek(file, 0, os.SEEK_END)


def test_in_a_sealed_file_what_is_allocated_is_data(store: CoreStore) -> None:
    """Nobody but the guest may know what it wrote."""
    file = store.guest_file("file", 8)
    store.fallocate(file, 0, 2 * P, 3 * P)
    nothing = Written(file)
    assert answer(file, 0, DATA, nothing) == 2 * P
    assert answer(file, 2 * P, HOLE, nothing) == 5 * P
