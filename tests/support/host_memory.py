"""A process of the host that touches a mapping, and what becomes of it: each access in a child, which may die of it."""

import contextlib
import ctypes
import errno
import faulthandler
import fcntl
import mmap
import os
import signal
from collections.abc import Iterator

from memfsd.uapi import names
from memfsd.uapi.gmem_ioctls import ATTRIBUTE_PRIVATE, MemoryAttributes2
from tests.support.real_mount import PAGE

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64)

SIGBUS = "SIGBUS"
"""What an access to a private page gets."""


def shared(fd: int, size: int, protection: int = mmap.PROT_READ | mmap.PROT_WRITE) -> mmap.mmap:
    """MAP_SHARED. OSError."""
    return mmap.mmap(fd, size, flags=mmap.MAP_SHARED, prot=protection)


Bytes = mmap.mmap | ctypes.Array[ctypes.c_ubyte]


@contextlib.contextmanager
def shared_beyond(fd: int, size: int) -> Iterator[ctypes.Array[ctypes.c_ubyte]]:
    """MAP_SHARED of more than the file has, which mmap.mmap refuses by itself."""
    address = _libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, fd, 0)
    assert address != ctypes.c_void_p(-1).value, os.strerror(ctypes.get_errno())
    try:
        yield (ctypes.c_ubyte * size).from_address(address)
    finally:
        _libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(size))


def _in_child(mapping: Bytes, offset: int, value: int | None) -> str | None:
    pid = os.fork()
    if pid == 0:
        faulthandler.disable()
        signal.signal(signal.SIGBUS, signal.SIG_DFL)
        try:
            if value is None:
                mapping[offset]
            else:
                mapping[offset] = value
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    return signal.Signals(status & 0x7F).name if status & 0x7F else None


def reading(mapping: Bytes, page: int) -> str | None:
    """The signal that a read of this page is answered with, if any."""
    return _in_child(mapping, page * PAGE, None)


def writing(mapping: Bytes, page: int, value: int = 0x5A) -> str | None:
    """As `reading`, of a write."""
    return _in_child(mapping, page * PAGE, value)


def byte(mapping: mmap.mmap, page: int) -> int | str:
    """The page's first byte, or the signal."""
    return reading(mapping, page) or mapping[page * PAGE]


def convert(fd: int, page: int, count: int = 1, *, private: bool) -> None:
    """KVM_SET_MEMORY_ATTRIBUTES2. OSError."""
    set_attributes(fd, MemoryAttributes2(page * PAGE, count * PAGE, ATTRIBUTE_PRIVATE if private else 0))


def set_attributes(fd: int, asked: MemoryAttributes2) -> int:
    """error_offset. OSError."""
    data = bytearray(asked.pack())
    fcntl.ioctl(fd, names.IOC_SET_MEMORY_ATTRIBUTES2, data)
    return MemoryAttributes2.unpack(bytes(data)).error_offset


def error_of(number: int) -> str:
    return errno.errorcode[number]


def madvise(mapping: mmap.mmap, advice: int) -> int:
    """The errno, 0 for success."""
    address = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
    done = _libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(len(mapping)), advice)
    return 0 if done == 0 else ctypes.get_errno()


def syscall(number: int, *arguments: int) -> int:
    """OSError."""
    done = _libc.syscall(ctypes.c_long(number), *(ctypes.c_long(each) for each in arguments))
    if done == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(done)
