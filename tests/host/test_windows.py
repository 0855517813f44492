"""The memfds of the store, where the system calls on them do not do what they do on a memfd."""

import errno
import mmap
import os
from collections.abc import Callable

import pytest

from kvmsim.memory.memory import SparseMemory
from memfsd.host.windows import Windows
from memfsd.uapi.units import Ino, Pfn


def overwrite_with_null(fd: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, fd)
    os.close(null)


def test_a_search_for_data_ends_where_the_descriptor_was_overwritten() -> None:
    """lseek(2) on /dev/null returns 0 for everything: `memfs check` never ended, and held Service.lock meanwhile."""
    windows, shared = Windows(1 << 20), SparseMemory(1 << 20)
    searches: list[tuple[int, Callable[[], object]]] = [
        (windows.pool_fd, lambda: windows.populated(None)),
        (shared.fd, shared.all_populated),
    ]
    for fd, populated in searches:
        overwrite_with_null(fd)
        with pytest.raises(OSError, match="leads to something else"):
            populated()
    windows.close()
    shared.close()


def test_the_pool_is_lent_for_reading_only() -> None:
    windows = Windows(1 << 20)
    os.pwrite(windows.pool_fd, b"ordinary", 4096)
    lent = windows.open_pool_read_only()
    assert os.pread(lent, 8, 4096) == b"ordinary"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.pwrite(lent, b"x", 0)
    with pytest.raises(PermissionError):
        mmap.mmap(lent, 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    os.close(lent)
    windows.close()


def test_a_punch_stays_in_its_window_when_that_is_dropped_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of it would hit whatever got the number next."""
    windows, ino = Windows(1 << 20), Ino(7)
    window = windows.make_window(ino)
    windows.adopt_window(ino, window)
    same, others, hit = os.fstat(window).st_ino, list[int](), list[int]()

    def punch(fd: int, offset: int, length: int) -> None:
        windows.drop_window(ino)
        others.append(os.open(os.devnull, os.O_RDONLY))
        hit.append(os.fstat(fd).st_ino)

    monkeypatch.setattr("memfsd.host.windows.punch_hole", punch)
    windows.punch(ino, [(Pfn(0), 1), (Pfn(4), 1)])
    assert window in others and hit == [same, same]
    for fd in others:
        os.close(fd)
    windows.close()


def test_a_punch_needs_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has no more could not give its frames back."""

    def none_left(fd: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    windows, ino = Windows(1 << 20), Ino(7)
    window = windows.make_window(ino)
    windows.adopt_window(ino, window)
    os.pwrite(window, b"guest", 4096)
    monkeypatch.setattr(os, "dup", none_left)
    windows.punch(ino, [(Pfn(1), 1)])
    assert os.pread(window, 5, 4096) == bytes(5)
    windows.close()


def test_memory_of_a_device_is_there_as_long_as_the_device() -> None:
    windows, ino = Windows(1 << 20), Ino(7)
    windows.adopt_device(ino, windows.make_device(ino, 8 << 20))
    for _ in range(2):
        window = windows.device_window(ino)
        assert os.fstat(window).st_size == 8 << 20, "of its own size"
        windows.adopt_window(ino, window)
        os.pwrite(window, b"device", 4096)
        windows.drop_window(ino)
    window = windows.device_window(ino)
    assert os.pread(window, 6, 4096) == b"device"
    with pytest.raises(PermissionError):
        os.ftruncate(window, 4096)
    windows.drop_device(ino)
    windows.drop_device(ino)
    with pytest.raises(OSError, match="No such device"):
        windows.device_window(ino)
    os.close(window)
    windows.close()
