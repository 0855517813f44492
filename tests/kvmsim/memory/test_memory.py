"""What slots are backed by. A file that is too short is an errno, never a signal."""

import fcntl
import os
from pathlib import Path

import pytest

from kvmsim.memory.memory import AnonymousMemory, FileMemory, SparseMemory, WindowMemory, punch_file
from memfsd.uapi.errors import PeerLost
from memfsd.uapi.units import PAGE_SIZE
from tests.support.both_sides import errno_of, page


@pytest.fixture
def file_memory(tmp_path: Path) -> FileMemory:
    (tmp_path / "file").write_bytes(b"a" * PAGE_SIZE + b"b" * 100)
    return FileMemory(os.open(tmp_path / "file", os.O_RDWR))


SEALED = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


def window_fd(pages: int, seals: int) -> int:
    fd = os.memfd_create("window", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, page(pages))
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def test_anonymous_memory_holds_what_is_written_and_costs_what_is_touched() -> None:
    memory = AnonymousMemory(1 << 40)
    memory.write(1 << 39, b"far away")
    assert memory.read(1 << 39, 8) == b"far away"
    assert memory.populated_count() == 1
    memory.touch(0, 4)
    assert memory.populated_count() == 5
    assert memory.read(0, 4) == bytes(4)
    memory.close()


def test_anonymous_memory_that_can_not_be_made_is_enomem() -> None:
    assert errno_of(AnonymousMemory, 1 << 62) == "ENOMEM"
    assert errno_of(AnonymousMemory, 0) == "ENOMEM"


def test_touch_leaves_the_bytes_as_they_were() -> None:
    memory = AnonymousMemory(page(2))
    memory.write(0, b"\xff")
    memory.touch(0, 2)
    assert memory.read(0, 2) == b"\xff\0"
    memory.close()


def test_a_file_is_read_and_written_in_place(file_memory: FileMemory) -> None:
    file_memory.write(PAGE_SIZE - 2, b"1234")
    assert file_memory.read(PAGE_SIZE - 3, 6) == b"a1234b"
    assert os.pread(file_memory.fd, 6, PAGE_SIZE - 3) == b"a1234b", "others see it"
    file_memory.close()


def test_past_the_end_of_a_file_is_efault_and_the_file_does_not_grow(file_memory: FileMemory) -> None:
    for call in (
        lambda: file_memory.read(PAGE_SIZE + 90, 20),
        lambda: file_memory.write(PAGE_SIZE + 90, bytes(20)),
        lambda: file_memory.touch(0, 3),
    ):
        with pytest.raises(OSError, match="past the end"):
            call()
    assert os.fstat(file_memory.fd).st_size == PAGE_SIZE + 100
    os.ftruncate(file_memory.fd, 0)
    with pytest.raises(OSError, match="past the end"):
        file_memory.read(0, 1)
    file_memory.close()


def test_sparse_memory_knows_what_it_holds() -> None:
    memory = SparseMemory(1 << 40)
    memory.write(page(3), b"x")
    memory.write(page(7) - 1, b"xy")
    assert memory.all_populated() == [(3, 4), (6, 8)]
    assert memory.populated_count() == 3
    memory.discard(page(6), page(1))
    assert memory.all_populated() == [(3, 4), (7, 8)]
    assert memory.read(page(6), PAGE_SIZE) == bytes(PAGE_SIZE)
    memory.close()


def test_a_window_must_have_the_right_size_and_must_not_shrink() -> None:
    with pytest.raises(PeerLost, match="wrong size"):
        WindowMemory(window_fd(4, SEALED), 8)
    for seals in (0, fcntl.F_SEAL_GROW, fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_SEAL):
        with pytest.raises(PeerLost, match="could shrink"):
            WindowMemory(window_fd(8, seals), 8)
    for seals in (fcntl.F_SEAL_WRITE, 0x10):  # F_SEAL_FUTURE_WRITE, which Python 3.11 does not name
        with pytest.raises(PeerLost, match="cannot be mapped"):
            WindowMemory(window_fd(8, SEALED | seals), 8)
    read, write = os.pipe()
    os.close(write)
    with pytest.raises(PeerLost):
        WindowMemory(read, 8)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(read)


def test_a_scrubbed_frame_is_zero_and_holds_no_memory() -> None:
    memory = WindowMemory(window_fd(8, SEALED), 8)
    memory.write(0, b"x" * page(8))
    memory.scrub(2, 3)
    assert memory.populated_count() == 5
    assert memory.read(page(1), page(5)) == b"x" * page(1) + bytes(page(3)) + b"x" * page(1)
    memory.close()


def test_a_closed_memory_closes_its_fd() -> None:
    for memory in (AnonymousMemory(page(1)), SparseMemory(page(1)), WindowMemory(window_fd(1, SEALED), 1)):
        memory.close()
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(memory.fd)


def test_punch_file_refuses_with_the_errno_of_fallocate(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * page(2))
    with open(path, "r+b") as file:
        punch_file(file.fileno(), 0, page(1))
        assert path.read_bytes() == bytes(page(1)) + b"x" * page(1)
        assert errno_of(punch_file, file.fileno(), 0, 0) == "EINVAL"
    with open(path, "rb") as file:
        assert errno_of(punch_file, file.fileno(), 0, page(1)) == "EBADF"
