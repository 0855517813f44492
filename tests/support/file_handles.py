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
_MS_REMOUNT = 32
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


def drop_inodes(place: Path | bytes) -> None:
    """The kernel forgets the names and inodes of this mount that nobody uses: a remount does that, and changes nothing.

    /proc/sys/vm/drop_caches would have it forget those of every other process, too, for as long as that takes.
    """
    root = os.fsencode(place)
    while not os.path.ismount(root):
        root = os.path.dirname(root)
    flags = os.statvfs(root).f_flag & (os.ST_RDONLY | os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC)
    _check(_libc.mount(None, root, None, ctypes.c_ulong(_MS_REMOUNT | flags), None))


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
