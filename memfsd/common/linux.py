"""System calls that the standard library has no function for, or none as it is needed here. Errors are OSError."""

import ctypes
import errno
import mmap
import os
import weakref

from memfsd.uapi.names import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE
from memfsd.uapi.units import PAGE_SHIFT

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong]

_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_longlong]
_libc.mmap.restype = ctypes.c_void_p
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_MAP_FAILED = ctypes.c_void_p(-1).value

_CACHESTAT = 451
"""On all architectures."""
_COUNTED_LATE_BYTES = 1 << 20

PageRange = tuple[int, int]
"""[start, end) in pages."""


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2) with a mode, which posix_fallocate lacks. Bytes. A signal whose handler returns does not end it."""
    while _libc.fallocate(fd, mode, offset, length) != 0:
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Give the memory back: the range reads as zeros, the size stays. Bytes."""
    fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length)


def map_shared(fd: int, size_bytes: int, *, writable: bool) -> "ctypes.Array[ctypes.c_ubyte]":
    """mmap(MAP_SHARED) of a file from its beginning, out of processes that are forked; unmapped when nobody refers to
    it any more. Unlike mmap.mmap it keeps no descriptor."""
    address = _libc.mmap(None, size_bytes, mmap.PROT_READ | mmap.PROT_WRITE * writable, mmap.MAP_SHARED, fd, 0)
    if address == _MAP_FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    _libc.madvise(address, size_bytes, mmap.MADV_DONTFORK)
    mapped = (ctypes.c_ubyte * size_bytes).from_address(address)
    # Not when the process ends: threads may be at it then.
    weakref.finalize(mapped, _libc.munmap, address, size_bytes).atexit = False
    return mapped


def dirty_bytes() -> int:
    """What the kernel still has to write back, of all files of all file systems: none of them has more. Includes what
    its CPUs may not have counted yet."""
    with open("/proc/meminfo", encoding="ascii") as meminfo:
        values = dict(line.split(":", 1) for line in meminfo)
    known = sum(int(values[name].split()[0]) << 10 for name in ("Dirty", "Writeback"))
    return known + _COUNTED_LATE_BYTES * (os.cpu_count() or 1)


_PAGES_AT_ONCE = 512


def next_data(fd: int, offset: int) -> int | None:
    """SEEK_DATA; None where there is no data up to the end of the file. Bytes."""
    try:
        return os.lseek(fd, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return None


def data_end(memfd: int, first: int, last: int) -> int:
    """The first of pages [first, last) of a memfd that holds no memory; `last` if all do. SEEK_HOLE answers that too,
    but looks at every page up to the next hole, however far past `last`: 10 to 30 ms a gigabyte."""
    for start in range(first, last, _PAGES_AT_ONCE):
        stop = min(start + _PAGES_AT_ONCE, last)
        if _pages_in_memory(memfd, start, stop) < stop - start:
            for offset in range(start << PAGE_SHIFT, stop << PAGE_SHIFT, 1 << PAGE_SHIFT):
                if next_data(memfd, offset) != offset:
                    return offset >> PAGE_SHIFT
    return last


def _pages_in_memory(memfd: int, first: int, last: int) -> int:
    """cachestat(2): how many of these pages are cached, or on the host's swap. 0 before Linux 6.5."""
    asked = (ctypes.c_uint64 * 2)(first << PAGE_SHIFT, last - first << PAGE_SHIFT)
    found = (ctypes.c_uint64 * 5)()
    if _libc.syscall(_CACHESTAT, memfd, asked, found, 0) != 0:
        return 0
    cached, _dirty, _being_written, evicted, _recently_evicted = found
    return cached + evicted


_PUNCHED_IN_A_ROW = 1000
"""Pages that were there, and a moment later were not, before a search gives up."""


def data_ranges(fd: int, first: int = 0, last: int | None = None, *, is_memfd: bool = False) -> list[PageRange]:
    """Pages [first, last) that hold data, in order; of what others punch meanwhile some may be among them. is_memfd:
    no page past `last` is looked at. EIO when a memfd's descriptor was overwritten by one that does not lead to a
    memfd, where the search would never end."""
    ranges: list[PageRange] = []
    at, punched = first << PAGE_SHIFT, 0
    while last is None or at < last << PAGE_SHIFT:
        start = next_data(fd, at)
        if start is None or (last is not None and start >= last << PAGE_SHIFT):
            break
        if last is not None and is_memfd:
            end = data_end(fd, start >> PAGE_SHIFT, last) << PAGE_SHIFT
        else:
            end = os.lseek(fd, start, os.SEEK_HOLE)
        punched = punched + 1 if start == end else 0  # between the two: then the next data is elsewhere
        if not at <= start <= end or punched > _PUNCHED_IN_A_ROW:
            raise OSError(errno.EIO, "a memfd's descriptor leads to something else")
        at = end
        if start < end:
            ranges.append((start >> PAGE_SHIFT, end >> PAGE_SHIFT if last is None else min(end >> PAGE_SHIFT, last)))
    return ranges
