"""Memory at addresses of this process: what userspace_addr names, and what a guest_memfd shows the host.

It is reached by process_vm_readv(2) and process_vm_writev(2) of the process itself, as KVM reaches it with
get_user_pages(): where a touch would be SIGSEGV or SIGBUS (nothing mapped, a private page), they are EFAULT.
"""

import contextlib
import ctypes
import errno
import mmap
import os
from collections.abc import Callable, Iterator

from memfsd.common import sync
from memfsd.common.linux import PageRange
from memfsd.uapi.units import ORDER_4K, PAGE_SHIFT

from .memory import Closed, Mapping, Memory

_libc = ctypes.CDLL(None, use_errno=True)


class _IoVec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class UserMemory:
    """From an address on. Byte 0 is there."""

    leaf_order = ORDER_4K
    uncached = False
    waits = True
    frame_count: int | None = None

    def __init__(self, address: int) -> None:
        self._address = address
        self._using = sync.lock("FileMemory.using")
        self._closed = False

    def read(self, offset: int, length: int) -> bytes:
        into = ctypes.create_string_buffer(length)
        with self._open():
            _transfer(_libc.process_vm_readv, into, self._address + offset, length)
        return into.raw

    def write(self, offset: int, data: bytes) -> None:
        with self._open():
            out = ctypes.create_string_buffer(data, len(data))
            _transfer(_libc.process_vm_writev, out, self._address + offset, len(data))

    def touch(self, offset: int, page_count: int) -> None:
        for page in range(page_count):
            at = offset + (page << PAGE_SHIFT)
            self.write(at, self.read(at, 1))

    def populated(self, first: int, end: int) -> list[PageRange]:
        """The kernel does not say it of addresses."""
        return []

    def mapping(self, frame: int) -> Mapping | None:
        return None

    @contextlib.contextmanager
    def _open(self) -> Iterator[None]:
        with self._using:
            if self._closed:
                raise Closed
            yield

    def close(self) -> None:
        with self._using:
            self._closed = True


class MappedFile(UserMemory):
    """mmap(MAP_SHARED) of a whole file: a guest_memfd's shared pages."""

    def __init__(self, fd: int, size: int) -> None:
        """Takes the fd. OSError: it cannot be mapped."""
        try:
            self._map = mmap.mmap(fd, size)
        finally:
            os.close(fd)
        held = ctypes.c_char.from_buffer(self._map)
        super().__init__(ctypes.addressof(held))
        del held
        self.frame_count = size >> PAGE_SHIFT

    def close(self) -> None:
        super().close()
        self._map.close()


MapFile = Callable[[int, int], Memory]
"""(fd, size) to the shared pages of a guest_memfd: MappedFile, or what stands in for it."""


def _transfer(call: "ctypes._NamedFuncPointer", here: ctypes.Array[ctypes.c_char], there: int, length: int) -> None:
    """EFAULT also for a part."""
    ours, theirs = _IoVec(ctypes.addressof(here), length), _IoVec(there, length)
    done = call(os.getpid(), ctypes.byref(ours), 1, ctypes.byref(theirs), 1, 0)
    if done != length:
        number = ctypes.get_errno() if done < 0 else errno.EFAULT
        raise OSError(number, f"userspace_addr {there:#x}: {os.strerror(number)}")
