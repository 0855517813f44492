"""name_to_handle_at(2) and open_by_handle_at(2), which Python does not have; root's."""

import contextlib
import ctypes
import os
import struct
from collections.abc import Iterator
from pathlib import Path

Handle = ctypes.Array[ctypes.c_char]

_AT_FDCWD = -100
_MAX_BYTES = 128
_libc = ctypes.CDLL(None, use_errno=True)


def handle_of(path: Path | bytes) -> Handle:
    """struct file_handle: bytes, type, and what the file system made of the inode."""
    handle = ctypes.create_string_buffer(struct.pack("Ii", _MAX_BYTES, 0) + bytes(_MAX_BYTES))
    mount_id = ctypes.c_int()
    _check(_libc.name_to_handle_at(_AT_FDCWD, os.fsencode(path), handle, ctypes.byref(mount_id), 0))
    return handle


@contextlib.contextmanager
def opened_by_handle(mounted: Path | bytes, handle: Handle, flags: int) -> Iterator[int]:
    """mounted: anything on the mount."""
    anchor = os.open(mounted, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fd = _check(_libc.open_by_handle_at(anchor, handle, flags | os.O_CLOEXEC))
    finally:
        os.close(anchor)
    try:
        yield fd
    finally:
        os.close(fd)


def drop_inodes() -> None:
    """The kernel forgets names and inodes that nobody uses, of every file system: it costs them time, and no more."""
    Path("/proc/sys/vm/drop_caches").write_text("2\n")


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
