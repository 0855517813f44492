"""Memslots for tests that touch no memory."""

from kvmsim.kvm.mmu.tlb import Translation
from kvmsim.kvm.slots.backing import SlotBacking
from kvmsim.memory.memory import Memory
from memfsd.uapi.units import HostPfn


class _NoMemory:
    """A Memory that must not be touched."""

    leaf_order = 0
    waits = False
    uncached = False
    frame_count = None

    def read(self, offset: int, length: int) -> bytes:
        raise AssertionError("nobody reads this memory")

    def write(self, offset: int, data: bytes) -> None:
        raise AssertionError("nobody writes this memory")

    def touch(self, offset: int, page_count: int) -> None:
        raise AssertionError("nobody touches this memory")

    def populated(self, first: int, end: int) -> list[tuple[int, int]]:
        raise AssertionError("nobody looks at this memory")

    def mapping(self, frame: int) -> None:
        raise AssertionError("nobody maps this memory")

    def close(self) -> None:
        pass


NO_MEMORY: Memory = _NoMemory()
NO_BACKING = SlotBacking(NO_MEMORY, HostPfn(0))
TRANSLATION: Translation = (NO_MEMORY, 0, True)
