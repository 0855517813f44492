"""ioctls on files of a mount."""

import ctypes
import errno
import os
import struct
from collections.abc import Sequence

from memfsd.uapi.names import ANY_NODE, IOC_MOVE_PAGES, MOVE_PAGES_AT_ONCE, MOVE_PAGES_ENTRY, NO_PAGE

_libc = ctypes.CDLL(None, use_errno=True)
_ENTRY = struct.Struct(MOVE_PAGES_ENTRY)


def ioctl(fd: int, request: int, data: bytearray) -> None:
    """Others run meanwhile, the VM among them that must answer: fcntl.ioctl() keeps the GIL when data has more than
    1024 bytes."""
    number = errno.EBADF
    if 0 <= fd < 1 << 31:
        buffer = (ctypes.c_char * len(data)).from_buffer(data)
        number = ctypes.get_errno() if _libc.ioctl(fd, ctypes.c_ulong(request), buffer) else 0
    if number:
        raise OSError(number, os.strerror(number))


def move_pages(fd: int, wanted: Sequence[tuple[int, int]]) -> list[int]:
    """The status of each (page, node), as memfsd.fmove_pages()."""
    found: list[int] = []
    for start in range(0, len(wanted), MOVE_PAGES_AT_ONCE):
        part = wanted[start : start + MOVE_PAGES_AT_ONCE]
        entries = [*part, *[(NO_PAGE, ANY_NODE)] * (MOVE_PAGES_AT_ONCE - len(part))]
        answer = bytearray().join(_ENTRY.pack(page, node, 0) for page, node in entries)
        ioctl(fd, IOC_MOVE_PAGES, answer)
        found += [status for _, _, status in _ENTRY.iter_unpack(answer)][: len(part)]
    return found
