"""Conversion in place: the kernel's guest_memfd_conversions_test.c by its numbers; KVM_SET_MEMORY_ATTRIBUTES2."""

import ctypes
import errno
import faulthandler
import mmap
import os
import signal
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import memfsd
from memfsd.uapi.abi import GmemFlag
from memfsd.uapi.gmem_ioctls import ATTRIBUTE_PRIVATE, MemoryAttributes2
from tests.support.host_memory import SIGBUS, byte, convert, madvise, reading, set_attributes, shared, syscall, writing
from tests.support.real_mount import (
    DEADLINE_S,
    KEEP_SIZE,
    PAGE,
    PUNCH_HOLE,
    DirectoryFactory,
    fallocate,
    refused,
    run,
)
from tests.support.threads import until

MMAP, BOTH = GmemFlag.MMAP, GmemFlag.MMAP | GmemFlag.INIT_SHARED
PUNCH = PUNCH_HOLE | KEEP_SIZE


@pytest.fixture
def place(own_directory: DirectoryFactory) -> Path:
    return own_directory("size=64M,abi=gmem-inplace")


@contextmanager
def mapped(place: Path, flags: int, pages: int) -> Iterator[tuple[int, mmap.mmap]]:
    fd = memfsd.create_guest_memfd(pages * PAGE, flags, mount=str(place))
    try:
        with shared(fd, pages * PAGE) as mapping:
            yield fd, mapping
    finally:
        os.close(fd)


def test_f1_private_from_birth(place: Path) -> None:
    with mapped(place, MMAP, 1) as (fd, mapping):
        assert (reading(mapping, 0), writing(mapping, 0)) == (SIGBUS, SIGBUS)

        convert(fd, 0, private=False)
        assert byte(mapping, 0) == 0
        assert writing(mapping, 0, 0x41) is None

        convert(fd, 0, private=True)
        assert (reading(mapping, 0), writing(mapping, 0)) == (SIGBUS, SIGBUS)
        convert(fd, 0, private=False)
        assert byte(mapping, 0) == 0x41, "the contents are preserved"


def test_f2_shared_from_birth(place: Path) -> None:
    with mapped(place, BOTH, 1) as (fd, mapping):
        mapping[0] = 0x42
        convert(fd, 0, private=True)
        assert reading(mapping, 0) == SIGBUS
        convert(fd, 0, private=False)
        assert byte(mapping, 0) == 0x42


@pytest.mark.parametrize("page", range(4))
def test_f3_only_the_page_that_is_converted_changes(place: Path, page: int) -> None:
    with mapped(place, BOTH, 4) as (fd, mapping):
        for each in range(4):
            mapping[each * PAGE] = 0x10 + each

        convert(fd, page, private=True)
        assert [byte(mapping, each) for each in range(4)] == [
            SIGBUS if each == page else 0x10 + each for each in range(4)
        ]

        convert(fd, page, private=False)
        assert [byte(mapping, each) for each in range(4)] == [0x10, 0x11, 0x12, 0x13]


@pytest.mark.parametrize("flags", [MMAP, BOTH], ids=["private", "shared"])
def test_f4_a_conversion_before_anything_is_allocated_is_remembered(place: Path, flags: GmemFlag) -> None:
    is_shared = GmemFlag.INIT_SHARED in flags
    with mapped(place, flags, 2) as (fd, mapping):
        convert(fd, 0, private=is_shared)
        assert os.fstat(fd).st_blocks == 0
        assert reading(mapping, 0) == (SIGBUS if is_shared else None)
        assert reading(mapping, 1) == (None if is_shared else SIGBUS)


def test_f5_a_range_that_is_allocated_here_and_there(place: Path) -> None:
    with mapped(place, BOTH, 8) as (fd, mapping):
        for page in (0, 3, 4, 7):
            mapping[page * PAGE] = 0x20 + page
        convert(fd, 0, 8, private=True)
        assert [reading(mapping, page) for page in range(8)] == [SIGBUS] * 8
        convert(fd, 0, 8, private=False)
        assert [byte(mapping, page) for page in range(8)] == [0x20, 0, 0, 0x23, 0x24, 0, 0, 0x27]


def test_f6_a_punch_keeps_the_attribute_and_zeroes_the_data(place: Path) -> None:
    with mapped(place, BOTH, 2) as (fd, mapping):
        mapping[0] = mapping[PAGE] = 0x66
        convert(fd, 1, private=True)
        fallocate(fd, PUNCH, 0, 2 * PAGE)
        assert [reading(mapping, page) for page in (0, 1)] == [None, SIGBUS]
        convert(fd, 1, private=False)
        assert [byte(mapping, page) for page in (0, 1)] == [0, 0]


def test_f7_forked_accesses(place: Path) -> None:
    """The child has the mapping since before the conversion, and touched it."""
    with mapped(place, BOTH, 1) as (fd, mapping):
        mapping[0] = 0x77
        ready, go = os.pipe(), os.pipe()
        pid = os.fork()
        if pid == 0:
            faulthandler.disable()
            signal.signal(signal.SIGBUS, signal.SIG_DFL)
            os.write(ready[1], bytes([mapping[0]]))
            os.read(go[0], 1)
            mapping[0]
            os._exit(0)
        try:
            assert os.read(ready[0], 1) == b"\x77"
            convert(fd, 0, private=True)
        finally:
            os.write(go[1], b".")
            _, status = os.waitpid(pid, 0)
            for end in (*ready, *go):
                os.close(end)
        assert status & 0x7F == 7, "SIGBUS"


@pytest.mark.parametrize("page", range(4))
def test_f8_what_is_known_of_elevated_refcounts(place: Path, page: int) -> None:
    """A deviation: Linux answers EAGAIN for a pinned page, and the pin of a FUSE file's page cannot be known. It is
    converted; the pin keeps the old bytes, and what becomes of the page is not seen through it."""
    with mapped(place, BOTH, 4) as (fd, mapping):
        mapping[page * PAGE : (page + 1) * PAGE] = b"\x88" * PAGE
        with pinned(mapping, page) as pin:
            convert(fd, 0, 4, private=True)
            assert cached(fd, 4) == 0, "nor does the cache say that it is pinned"
            assert [reading(mapping, each) for each in range(4)] == [SIGBUS] * 4
            convert(fd, page, private=False)
            mapping[page * PAGE] = 0x99
            assert os.read(pin, 1) == b"\x88"
        assert byte(mapping, page) == 0x99


def cached(fd: int, pages: int) -> int:
    """cachestat(2): how many pages the kernel's cache has."""
    range_ = ctypes.create_string_buffer(struct.pack("=QQ", 0, pages * PAGE), 16)
    found = ctypes.create_string_buffer(40)
    syscall(451, fd, ctypes.addressof(range_), ctypes.addressof(found), 0)
    return int.from_bytes(found.raw[:8], "little")


@contextmanager
def pinned(mapping: mmap.mmap, page: int) -> Iterator[int]:
    """A pipe that vmsplice(2) gave the page."""
    read_end, write_end = os.pipe()
    address = ctypes.addressof(ctypes.c_char.from_buffer(mapping)) + page * PAGE
    vec = ctypes.create_string_buffer(struct.pack("=QQ", address, PAGE), 16)
    try:
        assert syscall(278, write_end, ctypes.addressof(vec), 1, 0) == PAGE
        yield read_end
    finally:
        os.close(read_end)
        os.close(write_end)


@pytest.mark.parametrize("attributes", [ATTRIBUTE_PRIVATE, 0], ids=["private", "shared"])
@pytest.mark.parametrize("flag", [1, 2, 1 << 31, 1 << 63])
def test_f9_there_is_no_flag_that_zeroes(place: Path, attributes: int, flag: int) -> None:
    """A flag ZERO was proposed, EOPNOTSUPP to private, and dropped: no flag exists, and nothing changes."""
    with mapped(place, BOTH, 2) as (fd, mapping):
        convert(fd, 1, private=True)
        mapping[0] = 0x66
        with refused(errno.EINVAL):
            set_attributes(fd, MemoryAttributes2(0, 2 * PAGE, attributes, flag))
        assert [byte(mapping, 0), byte(mapping, 1)] == [0x66, SIGBUS]


def test_f10_the_host_touches_while_pages_are_converted(place: Path) -> None:
    pages = 64
    with mapped(place, BOTH, pages) as (fd, mapping):
        mapping[:] = b"\x01" * (pages * PAGE)
        ended = threading.Event()
        asked = [0]

        def flip() -> None:
            while not ended.is_set():
                convert(fd, 0, pages, private=True)
                convert(fd, 0, pages, private=False)
                asked[0] += 1

        flipping = threading.Thread(target=flip)
        flipping.start()
        try:
            # Each in a separate child: SIGBUS or a store that counts, and nothing between.
            outcomes = {writing(mapping, page % pages, 2) for page in range(100)}
        finally:
            ended.set()
            flipping.join(DEADLINE_S)
        assert outcomes <= {None, SIGBUS}
        assert asked[0] > 0
        assert all(value in (1, 2) for value in mapping[::PAGE])
        assert all(mapping[page * PAGE + 1 : (page + 1) * PAGE] == b"\x01" * (PAGE - 1) for page in range(pages))


GOOD = MemoryAttributes2(0, PAGE, ATTRIBUTE_PRIVATE)


@pytest.mark.parametrize(
    "asked",
    [
        GOOD._replace(flags=1),
        GOOD._replace(reserved=(0,) * 10 + (1,)),
        GOOD._replace(attributes=1),
        GOOD._replace(attributes=ATTRIBUTE_PRIVATE | 1 << 4),
        GOOD._replace(size=0),
        GOOD._replace(offset=(1 << 64) - PAGE, size=2 * PAGE),
        GOOD._replace(offset=1),
        GOOD._replace(size=PAGE + 1),
        GOOD._replace(offset=4 * PAGE),
        GOOD._replace(offset=3 * PAGE, size=2 * PAGE),
    ],
)
def test_a_call_that_makes_no_sense_changes_nothing(place: Path, asked: MemoryAttributes2) -> None:
    with mapped(place, BOTH, 4) as (fd, mapping):
        mapping[0] = 1
        with refused(errno.EINVAL):
            set_attributes(fd, asked)
        assert [byte(mapping, page) for page in range(4)] == [1, 0, 0, 0]


def test_what_is_so_already_is_done(place: Path) -> None:
    with mapped(place, MMAP, 2) as (fd, _):
        assert set_attributes(fd, GOOD) == 0
        assert set_attributes(fd, GOOD._replace(attributes=0)) == 0
        assert set_attributes(fd, GOOD._replace(attributes=0)) == 0


def test_only_files_with_attributes_have_the_call(own_directory: DirectoryFactory) -> None:
    for options in ("size=64M,abi=gmem-6.18", "size=64M"):
        place = own_directory(options)
        (place / "file").touch()
        with (place / "file").open("r+b") as file, refused(errno.EINVAL):
            set_attributes(file.fileno(), GOOD)
    place = own_directory("size=64M,abi=gmem-6.18")
    with mapped(place, BOTH, 1) as (fd, _), refused(errno.ENOTTY):
        set_attributes(fd, GOOD)


def test_a_handle_that_only_reads_converts_nothing(place: Path) -> None:
    with mapped(place, BOTH, 1) as (fd, _):
        reader = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
        try:
            with refused(errno.EPERM):
                set_attributes(reader, GOOD)
        finally:
            os.close(reader)


def test_the_map_and_the_check_know_both_kinds_of_pages(place: Path) -> None:
    run("memfs create vm.mem --size 16K --flags mmap,init-shared", place)
    fd = os.open(place / "vm.mem", os.O_RDWR)
    with shared(fd, 4 * PAGE) as mapping:
        mapping[:] = b"x" * (4 * PAGE)
        convert(fd, 1, 2, private=True)
        lines = run("memfs map vm.mem", place).stdout.splitlines()[1:]
        assert [(line.split()[0], line.split()[-1]) for line in lines] == [
            ("0x0", "shared"),
            ("0x1000", "private"),
            ("0x3000", "shared"),
        ]
        assert run("memfs check .", place).stdout.startswith("R1-R8 hold")
    os.close(fd)


def test_mlock_of_a_private_page_ends_with_a_signal_and_there_is_a_way_out(place: Path) -> None:
    """A deviation: the kernel in front of a FUSE server tries the read again and again. It must not be for good."""
    mlock, mlock2, onfault, populate_write = 149, 325, 1, 23
    with mapped(place, MMAP, 1) as (_, mapping):
        address = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
        assert syscall(mlock2, address, PAGE, onfault) == 0
        assert madvise(mapping, populate_write) == errno.EFAULT
        child = os.fork()
        if child == 0:
            syscall(mlock, address, PAGE)
            os._exit(0)
        until(lambda: Path(f"/proc/{child}/syscall").read_text().startswith(f"{mlock} "), "it is in mlock(2)")
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGTERM
