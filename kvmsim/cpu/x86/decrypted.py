"""Pages of encrypted memory that machine code runs on: decrypted copies inside this process, a few at a time.

They exist while the vCPU is in guest mode: what was written is encrypted again before it leaves, so before any
invalidation is acknowledged, and a full set makes it leave.
"""

import ctypes
import mmap

from kvmsim.memory.memory import Memory
from memfsd.uapi.units import PAGE_SIZE

from .layout import MAX_COPIES, MAX_SCRATCH, VcpuState

_PADDR = (1 << 52) - (1 << 30)
"""Of the copies, for unicorn: near the end of the host's physical addresses."""


class Copies:
    """The last pages are scratch, for operands that are in no memory that code can reach."""

    def __init__(self, state: VcpuState) -> None:
        self._state = state
        self.size_bytes = (MAX_COPIES + MAX_SCRATCH) * PAGE_SIZE
        self._map = mmap.mmap(-1, self.size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._view = memoryview(self._map)
        self.host = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self.paddr = _PADDR
        state.copies_paddr, state.copies_host = self.paddr, self.host
        self._homes: list[tuple[Memory, int]] = []
        """(memory, offset) of each copy."""

    @property
    def is_full(self) -> bool:
        return len(self._homes) == MAX_COPIES

    def load(self, pfn: int, memory: Memory, offset: int) -> None:
        """OSError: MachineCheck when the page does not verify. There is room."""
        page = memory.read(offset, PAGE_SIZE)
        at = len(self._homes)
        self._view[at * PAGE_SIZE : (at + 1) * PAGE_SIZE] = page
        self._homes.append((memory, offset))
        self._state.copies[at].pfn, self._state.copies[at].dirty = pfn, 0
        self._state.copy_count = at + 1

    def write_back(self) -> None:
        """What was written, encrypted; there are no copies any more. The plaintext is erased."""
        if not self._homes:
            return
        for at, (memory, offset) in enumerate(self._homes):
            page = self._view[at * PAGE_SIZE : (at + 1) * PAGE_SIZE]
            if self._state.copies[at].dirty:
                memory.write(offset, bytes(page))
            page[:] = bytes(PAGE_SIZE)
        self._homes.clear()
        self._state.copy_count = 0
        self._state.flush_tlb = 1
        if self._state.ran_copies:
            self._state.ran_copies, self._state.flush_code = 0, 1

    # -- scratch

    def scratch_paddr(self, at: int) -> int:
        return self.paddr + (MAX_COPIES + at) * PAGE_SIZE

    def scratch(self, at: int) -> memoryview:
        return self._view[(MAX_COPIES + at) * PAGE_SIZE : (MAX_COPIES + at + 1) * PAGE_SIZE]
