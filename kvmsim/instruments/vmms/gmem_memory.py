"""Guest memory as Linux has it: one slot with both memories, a guest_memfd and what is mapped at userspace_addr, and
memory attributes of the VM. A VMM sets all of its RAM private before the guest runs."""

import os

from kvmsim.kvm.region import ATTRIBUTE_PRIVATE, GPA_END, AttributesRange, GmemFd, Region2, SlotFlag, Userspace
from kvmsim.machine import VirtualMachine
from kvmsim.memory.memory import SparseMemory
from kvmsim.vmm.models.calls import Region
from memfsd.uapi.units import PAGE_SHIFT, PAGE_SIZE, Gfn

from .memory import File, range_of


class GmemMemory:
    """ConvertibleMemory of KVM_SET_USER_MEMORY_REGION2 and KVM_SET_MEMORY_ATTRIBUTES."""

    def __init__(self, machine: VirtualMachine, files: dict[Region, File]) -> None:
        self._kvm = machine.kvm
        self._memory = machine.vmm.memory
        self._ram = {gfn for region in files for gfn in map(Gfn, range(*range_of(region)))}
        self._mapped = SparseMemory(GPA_END)
        """What is mapped for the regions, by GPA."""
        self._fds: list[int] = []
        for region, file in files.items():
            fd = os.open(file.path, os.O_WRONLY | os.O_CLOEXEC)
            self._fds.append(fd)
            gmem = GmemFd(fd, file.path)
            self._kvm.guest_memfds.own(gmem)
            asked = Region2(file.slot, SlotFlag.GUEST_MEMFD, region.gpa, region.size, userspace_addr=region.gpa)
            with self._memory.lock:
                self._memory.set_region2(asked, Userspace(self._mapped, region.gpa, "(mapped)"), gmem)
            self.set_attributes(region.gpa, region.size, private=True)

    def set_attributes(self, gpa: int, size: int, *, private: bool) -> None:
        self._kvm.attributes.set(AttributesRange(gpa, size, ATTRIBUTE_PRIVATE if private else 0))

    def punch(self, file: File, start: Gfn, end: Gfn) -> None:
        slot = self._memory.ram.private.get(file.slot)
        assert slot is not None
        self._kvm.pairings.punch(slot.source, slot.pgoff_of(start), end - start)

    def discard(self, start: Gfn, end: Gfn) -> None:
        self._mapped.discard(start << PAGE_SHIFT, end - start << PAGE_SHIFT)

    def pin(self, gfn: Gfn) -> bytes:
        self._mapped.touch(gfn << PAGE_SHIFT, 1)
        return self._mapped.read(gfn << PAGE_SHIFT, PAGE_SIZE)

    def shared(self) -> set[Gfn]:
        return self._ram - self._private()

    def private_elsewhere(self) -> set[Gfn]:
        return self._private() - self._ram

    def held_shared(self) -> set[Gfn]:
        return {gfn for start, end in self._mapped.all_populated() for gfn in map(Gfn, range(start, end))}

    def close(self) -> None:
        self._mapped.close()
        for fd in self._fds:
            os.close(fd)

    def _private(self) -> set[Gfn]:
        return {gfn for start, end in self._kvm.attributes.ranges() for gfn in map(Gfn, range(start, end))}
