"""What a vCPU that runs machine code is given: page tables to walk by itself, and the memory behind their frames."""

from kvmsim.memory.memory import Memory
from memfsd.uapi.units import HostPfn

from .mmu.gate import Gate, watch
from .vm import Vm

MemoryRange = tuple[int, int, int, Memory]
"""(first, end, base, memory): frames [first, end) of the host are of this memory, whose frame 0 is `base`."""


class Walking:
    """Of one VM; takes Mmu.lock itself."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm

    def begin(self, gate: Gate) -> tuple[int, int]:
        """Addresses of the tables, shared and private; from now on what changes an entry closes the gate."""
        mmu = self._vm.mmu
        with mmu.lock:
            for ept in mmu.epts:
                watch(ept, gate)
            shared, private = mmu.epts
            return shared.address, private.address

    @property
    def memory_changes(self) -> int:
        """How often a range of frames has come or gone."""
        return self._vm.physmap.change_count

    def range_of(self, pfn: int) -> MemoryRange | None:
        """The memory behind a frame; None when there is none (any more)."""
        with self._vm.mmu.lock:
            return self._vm.physmap.range_of(HostPfn(pfn))

    def wait(self) -> None:
        """Until nobody changes the tables."""
        with self._vm.mmu.lock:
            pass
