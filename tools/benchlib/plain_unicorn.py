"""C1's to C3's peer: the same loop in unicorn with its own memory and no hook."""

import ctypes
import mmap
import os
from collections.abc import Callable
from time import thread_time

CODE, DATA = 0x1000, 2 << 20
"""Addresses of the guest."""


class PlainUnicorn:
    """Code and data are mapped apart, and the data is of the kind that a window is: a memfd, in small pages."""

    def __init__(self, loop: bytes, size_bytes: int, prepare: Callable[[mmap.mmap], None]) -> None:
        import unicorn
        from unicorn import unicorn_const as const
        from unicorn import x86_const

        fd = os.memfd_create("plain")
        os.truncate(fd, size_bytes)
        self._memory = mmap.mmap(fd, size_bytes)
        os.close(fd)
        prepare(self._memory)
        self._uc = unicorn.Uc(const.UC_ARCH_X86, const.UC_MODE_64)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._uc.mem_map(CODE, 4096, const.UC_PROT_READ | const.UC_PROT_EXEC)
        self._uc.mem_map_ptr(DATA, size_bytes, const.UC_PROT_READ | const.UC_PROT_WRITE, address)
        self._uc.mem_write(CODE, loop + b"\xf4")
        self._ids = (x86_const.UC_X86_REG_RDI, x86_const.UC_X86_REG_RCX, x86_const.UC_X86_REG_RBX)

    def run(self, count: int, start: int) -> float:
        """Seconds of CPU time."""
        for id_, value in zip(self._ids, (DATA, count, start), strict=True):
            self._uc.reg_write(id_, value)
        began = thread_time()
        self._uc.emu_start(CODE, CODE + 4096)
        return thread_time() - began
