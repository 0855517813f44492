"""The swap file: made, used again, refused; and what it says when the disk does not do."""

import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from memfsd.core.options import SwapOptions
from memfsd.host.swapfile import SwapFile, open_swap
from memfsd.uapi.errors import Refused
from memfsd.uapi.limits import SWAP_BLOB_BYTES
from memfsd.uapi.units import PAGE_SIZE

SIZE = 8 * PAGE_SIZE


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "swap"


def opened(path: Path, size: int = SIZE, *, reset: bool = False, mountpoint: str = "/mnt") -> SwapFile:
    return open_swap(SwapOptions(str(path), size, reset), mountpoint)


def refused(path: Path, size: int = SIZE, *, reset: bool = False, mountpoint: str = "/mnt") -> str:
    """The errno's name, of a refusal that is one line, names the file and changes nothing."""
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(Refused) as caught:
        opened(path, size, reset=reset, mountpoint=mountpoint)
    assert str(path) in caught.value.reason
    assert "\n" not in caught.value.reason
    assert (path.read_bytes() if path.is_file() else None) == before
    return errno.errorcode[caught.value.errno]


@pytest.fixture
def swap(path: Path) -> Iterator[SwapFile]:
    made = opened(path)
    yield made
    made.close()


def blob(number: int) -> bytes:
    return bytes([number]) * SWAP_BLOB_BYTES


def test_a_new_file_is_the_owners_alone_and_its_room_is_taken(path: Path, swap: SwapFile) -> None:
    status = path.stat()
    assert (status.st_mode & 0o777, status.st_size, swap.slot_count) == (0o600, 4096 + 8 * SWAP_BLOB_BYTES, 8)
    assert status.st_blocks * 512 >= status.st_size


def test_blobs_come_back_as_they_were_written(swap: SwapFile) -> None:
    for slot in range(8):
        swap.write(slot, blob(slot))
    assert [swap.read(slot) for slot in range(8)] == [blob(slot) for slot in range(8)]


def test_a_file_that_a_daemon_closed_is_used_again(path: Path) -> None:
    opened(path).close()
    again = opened(path, 0)
    assert again.slot_count == 8
    again.close()
    smaller = opened(path, 4 * PAGE_SIZE)
    assert smaller.slot_count == 4
    smaller.close()


def test_an_empty_file_is_made(path: Path) -> None:
    path.touch(0o600)
    assert refused(path, 0) == "EINVAL", "of which size?"
    opened(path).close()


def test_a_file_that_a_daemon_left_behind_is_refused_until_it_is_reset(path: Path) -> None:
    left = opened(path)
    left.write(3, blob(3))
    os.close(left._fd)  # as a kill does
    assert refused(path) == "EUCLEAN"
    assert refused(path, 0) == "EUCLEAN"
    again = opened(path, 0, reset=True)
    assert again.slot_count == 8
    assert again.read(3) == bytes(SWAP_BLOB_BYTES), "nothing of it is left"
    again.close()


def test_a_file_in_use_is_refused(path: Path, swap: SwapFile) -> None:
    assert refused(path) == "EBUSY"
    assert refused(path, reset=True) == "EBUSY"


def test_a_foreign_file_is_refused_and_left_alone(path: Path) -> None:
    path.write_bytes(b"somebody's diary")
    assert refused(path) == "EINVAL"
    assert refused(path, reset=True) == "EINVAL", "also with swap_reset"


@pytest.mark.parametrize("at", [8, 16, 24, 40, 45])
def test_a_damaged_header_is_refused(path: Path, at: int) -> None:
    opened(path).close()
    data = bytearray(path.read_bytes())
    data[at] ^= 0x55
    path.write_bytes(data)
    assert refused(path) == "EINVAL"


def test_a_truncated_file_is_refused(path: Path) -> None:
    opened(path).close()
    os.truncate(path, 4096 + SWAP_BLOB_BYTES)
    assert refused(path) == "EINVAL"
    os.truncate(path, 20)
    assert refused(path) == "EINVAL"


def test_a_file_that_is_too_small_is_refused(path: Path) -> None:
    opened(path).close()
    assert refused(path, 2 * SIZE) == "EINVAL"
    larger = opened(path, 2 * SIZE, reset=True)
    assert larger.slot_count == 16
    larger.close()


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    fifo, missing = tmp_path / "fifo", tmp_path / "none" / "swap"
    os.mkfifo(fifo)
    assert refused(fifo) == "EINVAL"
    assert refused(tmp_path) == "EISDIR"
    assert refused(missing) == "ENOENT"
    assert refused(Path("/dev/null")) == "EINVAL"


def test_a_file_on_the_mount_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "mnt" / "swap")
    assert refused(tmp_path / "mnt" / "swap", mountpoint=str(tmp_path / "mnt")) == "EINVAL"
    assert refused(link, mountpoint=str(tmp_path / "mnt")) == "EINVAL"
    assert not (tmp_path / "mnt" / "swap").exists()


def test_a_disk_without_room_is_enospc_and_no_file_is_left(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, mode: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("memfsd.host.swapfile.fallocate", full)
    assert refused(path) == "ENOSPC"
    assert not path.exists()


def test_a_file_system_that_cannot_allocate_gets_a_sparse_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(fd: int, mode: int, offset: int, length: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr("memfsd.host.swapfile.fallocate", cannot)
    made = opened(path)
    made.write(7, blob(7))
    assert made.read(7) == blob(7)
    made.close()


def test_errors_of_the_disk_name_the_file(path: Path, swap: SwapFile, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pwrite", fails)
    monkeypatch.setattr(os, "pread", fails)
    for call in (lambda: swap.write(1, blob(1)), lambda: swap.read(1)):
        with pytest.raises(Refused, match=str(path)) as caught:
            call()
        assert caught.value.errno == errno.EIO
    monkeypatch.undo()


def test_a_file_that_shrinks_meanwhile_is_eio(path: Path, swap: SwapFile) -> None:
    os.truncate(path, 4096 + 2 * SWAP_BLOB_BYTES)
    with pytest.raises(Refused, match="truncated") as caught:
        swap.read(2)
    assert caught.value.errno == errno.EIO


def test_a_file_that_others_may_open_is_warned_about(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.touch()
    path.chmod(0o644)
    with caplog.at_level(logging.WARNING):
        opened(path).close()
    assert "chmod 600" in caplog.text


def test_the_lock_ends_with_the_daemon(path: Path) -> None:
    made = opened(path)
    made.close()
    with path.open("rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
