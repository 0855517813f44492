"""The memory of a page map: the store writes it, and nobody else can, by whatever way."""

import errno
import fcntl
import mmap
import os
from collections.abc import Iterator

import pytest

from memfsd.common.linux import PageRange, data_ranges, punch_hole
from memfsd.core.memory.published_map import PageMap
from memfsd.host.page_maps import Mapped, make_page_map
from memfsd.uapi.limits import MAX_PAGE_MAP_BYTES
from memfsd.uapi.page_map import FIRST_WORD, WORD_BYTES
from memfsd.uapi.units import ORDER_1G, PAGE_SIZE, Ino

PAGES = 1000


@pytest.fixture
def mapped() -> Iterator[Mapped]:
    made = make_page_map(Ino(7), PAGES)
    yield made
    os.close(made.fd)


def test_what_the_store_writes_is_read_through_the_descriptor(mapped: Mapped) -> None:
    mapped.words[FIRST_WORD + 3] = 12345
    reader = mmap.mmap(mapped.fd, 0, prot=mmap.PROT_READ)
    at = (FIRST_WORD + 3) * WORD_BYTES
    assert int.from_bytes(reader[at : at + 8], "little") == 12345
    assert mapped.page_count == PAGES


def test_who_has_the_descriptor_can_only_read(mapped: Mapped) -> None:
    refused = []
    for attempt in (
        lambda: mmap.mmap(mapped.fd, 0, prot=mmap.PROT_READ | mmap.PROT_WRITE),
        lambda: os.pwrite(mapped.fd, b"x", 0),
        lambda: punch_hole(mapped.fd, 0, PAGE_SIZE),
        lambda: os.ftruncate(mapped.fd, 0),
        lambda: os.ftruncate(mapped.fd, 1 << 20),
        lambda: fcntl.fcntl(mapped.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE),
    ):
        with pytest.raises(PermissionError) as error:
            attempt()
        refused.append(error.value.errno)
    assert set(refused) == {errno.EPERM}


def test_to_open_it_again_does_not_help(mapped: Mapped) -> None:
    again = os.open(f"/proc/self/fd/{mapped.fd}", os.O_RDWR)
    try:
        with pytest.raises(PermissionError):
            os.pwrite(again, b"x", 0)
        with pytest.raises(PermissionError):
            mmap.mmap(again, 0)
    finally:
        os.close(again)


def test_it_takes_memory_where_it_is_written_only(mapped: Mapped) -> None:
    large = make_page_map(Ino(8), 1 << 28)
    try:
        assert os.fstat(large.fd).st_blocks == 0
        large.words[0] = 2
        large.words[FIRST_WORD + (1 << 27)] = 1
        ranges: list[PageRange] = data_ranges(large.fd)
        assert sum(end - start for start, end in ranges) == 2
    finally:
        os.close(large.fd)


def test_it_takes_no_memory_to_hide_what_large_entries_show() -> None:
    """A punch of all but both ends of 1 TiB made an entry for each 2 MiB of the first gig, and took it away again."""
    page_count = 4 << ORDER_1G
    made = make_page_map(Ino(8), page_count)
    try:
        page_map = PageMap(Ino(8), made.words)
        page_map.show(0, 7, page_count)
        page_map.hide(1, page_count - 2)
        shown = [page_map.lookup(page) for page in (0, 1, 1 << ORDER_1G, page_count - 2, page_count - 1)]
        assert shown == [7, None, None, None, 7 + page_count - 1]
        assert os.fstat(made.fd).st_blocks * 512 <= 6 * PAGE_SIZE
    finally:
        os.close(made.fd)


def test_the_map_of_a_huge_file_is_of_its_first_pages() -> None:
    made = make_page_map(Ino(9), 1 << 50)
    os.close(made.fd)
    assert made.page_count == MAX_PAGE_MAP_BYTES // WORD_BYTES - FIRST_WORD


def test_it_goes_with_its_last_reference_and_leaves_no_descriptor() -> None:
    before = len(os.listdir("/proc/self/fd"))
    made = make_page_map(Ino(987_654), PAGES)
    os.close(made.fd)
    assert len(os.listdir("/proc/self/fd")) == before
    with open("/proc/self/maps", encoding="ascii") as maps:
        assert "memfsd-page-map-987654" in maps.read()
    del made
    with open("/proc/self/maps", encoding="ascii") as maps:
        assert "memfsd-page-map-987654" not in maps.read()
