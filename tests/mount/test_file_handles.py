"""name_to_handle_at(2), and open_by_handle_at(2) of what the kernel has forgotten meanwhile."""

import ctypes
import errno
import os
import struct
from pathlib import Path

import pytest

from tests.support.file_handles import drop_inodes, handle_of, opened_by_handle
from tests.support.real_mount import DirectoryFactory, refused, sh


@pytest.fixture
def place(own_directory: DirectoryFactory) -> Path:
    return own_directory("size=16M")


def test_a_handle_opens_what_the_kernel_forgot(place: Path) -> None:
    sh("mkdir -p d/e; echo hello > d/e/f", place)
    file, directory = handle_of(place / "d/e/f"), handle_of(place / "d/e")
    drop_inodes(place)
    with opened_by_handle(place, file, os.O_RDONLY) as fd:
        assert os.read(fd, 10) == b"hello\n"
    drop_inodes(place)
    # Also the way up from there, by "..", to the root.
    with opened_by_handle(place, directory, os.O_RDONLY) as fd:
        assert os.readlink(f"/proc/self/fd/{fd}") == str(place / "d/e")
        assert os.listdir(fd) == ["f"]


def test_a_handle_survives_a_rename_and_not_the_last_unlink(place: Path) -> None:
    sh("echo hello > f", place)
    handle = handle_of(place / "f")
    sh("mkdir d; mv f d/g", place)
    drop_inodes(place)
    with opened_by_handle(place, handle, os.O_RDWR) as fd:
        os.write(fd, b"HELLO")
    assert (place / "d/g").read_bytes() == b"HELLO\n"
    sh("rm d/g", place)
    drop_inodes(place)
    with refused(errno.ESTALE), opened_by_handle(place, handle, os.O_RDONLY):
        pass


def test_a_sealed_file_opens_by_handle_as_by_name(place: Path) -> None:
    sh("memfs create f --guest --size 8K", place)
    handle = handle_of(place / "f")
    drop_inodes(place)
    with refused(errno.EPERM), opened_by_handle(place, handle, os.O_RDONLY):
        pass
    with opened_by_handle(place, handle, os.O_WRONLY) as fd:
        assert os.fstat(fd).st_size == 8192


@pytest.mark.parametrize("number", [12345, 1 << 40, (1 << 64) - 1])
def test_a_handle_of_nothing_is_estale(place: Path, number: int) -> None:
    (place / "f").touch()
    header, ino_and_more = handle_of(place / "f").raw[:8], handle_of(place / "f").raw[8:]
    # FILEID_INO64_GEN of fs/fuse/inode.c: the number, high half first, and a generation.
    forged = header + struct.pack("II", number >> 32, number & 0xFFFFFFFF) + ino_and_more[8:]
    with refused(errno.ESTALE), opened_by_handle(place, ctypes.create_string_buffer(forged, len(forged)), os.O_RDONLY):
        pass
