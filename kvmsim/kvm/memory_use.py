"""What a VM's memory costs its host: private, shared, held twice, and punched, by file.

A page counts where the kernel has memory for it (SEEK_DATA, st_blocks), whatever page tables say: what readahead has
mapped and nobody touched costs nothing.
"""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from memfsd.common.intervals import IntervalSet
from memfsd.uapi.units import Gfn, GfnRange

from .alias import PRIVATE, SHARED
from .mmu.ept import MAX_GFN_EPT
from .slots.backing import Gmem
from .slots.memslots import Memslot
from .vm import Vm

_PAGES_AT_A_TIME = 1 << 16
"""Looked at with Mmu.lock held, so that faults get through."""


@dataclass(slots=True)
class FileUse:
    """Of one paired file, in pages. private: what its window holds. punched: of its slots, what they do not show."""

    ino: int
    path: str
    private: int
    doubled: int = 0
    punched: int = 0


@dataclass(slots=True)
class MemoryUse:
    """Of one VM. shared: pages of memory that its host reaches. doubled: GFNs that hold memory in both aliases."""

    shared: int
    doubled: list[GfnRange]
    files: list[FileUse] = field(default_factory=list)

    @property
    def doubled_pages(self) -> int:
        return sum(end - start for start, end in self.doubled)


class MemoryUser:
    """`slots_lock` is Kvm.slots_lock: while it looks, no memory comes or goes."""

    def __init__(self, vm: Vm, slots_lock: threading.Lock) -> None:
        self._vm = vm
        self._slots_lock = slots_lock

    def use(self, copied: list[GfnRange]) -> MemoryUse:
        """copied: GFNs whose memory user space holds whether a slot shows it or not."""
        with self._slots_lock:
            held = IntervalSet([*copied, *(one for slot in self._vm.slots[SHARED] for one in _held(slot))])
            shared = held.within(Gfn(0), MAX_GFN_EPT)
            files: dict[Gmem, FileUse] = {}
            for slot in self._vm.slots[PRIVATE]:
                gmem = slot.gmem
                if gmem not in files:
                    files[gmem] = FileUse(gmem.ino, slot.backing.path, gmem.memory.populated_count())
                files[gmem].punched += slot.page_count - sum(end - start for start, end in slot.segments)
            doubled = IntervalSet()
            for file, start, end in self._doubled(shared):
                doubled.add(start, end)
                if file in files:
                    files[file].doubled += end - start
        ranges = doubled.within(Gfn(0), MAX_GFN_EPT)
        return MemoryUse(sum(end - start for start, end in shared), ranges, list(files.values()))

    def _doubled(self, shared: list[GfnRange]) -> Iterator[tuple[Gmem, Gfn, Gfn]]:
        """What of these GFNs private memory holds, too."""
        by_memory = {id(slot.backing.memory): slot.gmem for slot in self._vm.slots[PRIVATE]}
        for start, end in shared:
            for at in range(start, end, _PAGES_AT_A_TIME):
                with self._vm.mmu.lock:
                    runs = [
                        (gfn, *self._vm.physmap.find(pfn), count)
                        for gfn, pfn, count in self._vm.mmu.held_private(Gfn(at), min(Gfn(at + _PAGES_AT_A_TIME), end))
                    ]
                for gfn, memory, frame, count in runs:
                    if id(memory) in by_memory:
                        for low, high in memory.populated(frame, frame + count):
                            yield by_memory[id(memory)], Gfn(gfn + low - frame), Gfn(gfn + high - frame)


def _held(slot: Memslot) -> Iterator[GfnRange]:
    """GFNs of a shared slot that hold memory. A file whose daemon is gone holds none."""
    for start, end in slot.segments:
        first = slot.pgoff_of(start)
        try:
            found = slot.backing.memory.populated(first, first + end - start)
        except OSError:
            continue
        yield from ((Gfn(start + low - first), Gfn(start + high - first)) for low, high in found)
