"""What the models call: KVM, the store and VFIO. Each call is recorded, and can be made to fail."""

import errno
from collections.abc import Callable, Sequence
from typing import NamedTuple

from kvmsim.machine import VirtualMachine
from kvmsim.vmm.models.calls import Region, pages
from memfsd.uapi.errors import PeerLost, Refused
from memfsd.uapi.units import PAGE_SHIFT, PAGE_SIZE, Gfn

from .iommu import Iommu
from .memory import ConvertibleMemory, File
from .store import LocalStore


class ZapBusy(Exception):
    """TDX_OPERAND_BUSY of a SEAMCALL that unmaps: a vCPU is in the tree."""


class Snapshot(NamedTuple):
    """Pages, by GFN. call: after which it is, "" at the start."""

    call: str
    shared_attribute: frozenset[Gfn]
    held_private: frozenset[Gfn]
    held_shared: frozenset[Gfn]
    mapped: frozenset[Gfn]
    stale: frozenset[Gfn]
    recorded_shared: frozenset[Gfn] | None


class Border:
    """models.Calls of one VM."""

    def __init__(
        self,
        machine: VirtualMachine,
        store: LocalStore,
        memory: ConvertibleMemory,
        regions: Sequence[Region],
        files: dict[Region, File],
    ) -> None:
        self._kvm = machine.kvm
        self._vcpu = machine.vm.vcpu(0)
        self._store = store
        self.memory = memory
        self.regions = regions
        self.has_device = False
        self._files = files
        self._iommu = Iommu(memory.pin)
        self._counts: dict[str, int] = {}
        self.hooks: dict[tuple[str, int], Callable[[], None]] = {}
        """What happens before the nth call of a kind; Refused is what the call is refused with then."""
        self.recorded_shared: Callable[[], frozenset[Gfn] | None] = lambda: None
        self.history: list[Snapshot] = []
        self.busy_zaps = 0

    # -- what models call

    def set_attributes(self, gpa: int, size: int, *, private: bool) -> None:
        self._call(
            "set_attributes",
            f"{gpa:#x}+{size:#x} {'private' if private else 'shared'}",
            lambda: self._set_attributes(gpa, size, private),
        )

    def _set_attributes(self, gpa: int, size: int, private: bool) -> None:
        try:
            self._count("zap")
        except ZapBusy:
            self.busy_zaps += 1
            self._kvm.unmapper.kick_all()
        self.memory.set_attributes(gpa, size, private=private)

    def punch(self, region: Region, offset: int, size: int) -> None:
        self._call("punch", f"{region.gpa + offset:#x}+{size:#x}", lambda: self._punch(region, offset, size))

    def _punch(self, region: Region, offset: int, size: int) -> None:
        if size <= 0 or (offset | size) % PAGE_SIZE:
            raise Refused(errno.EINVAL, f"no range of whole pages: {size:#x} bytes at {offset:#x}")
        start, end = _gfns(region.gpa + offset, min(region.gpa + offset + size, region.end))
        if start < end:
            self.memory.punch(self._files[region], start, end)

    def discard(self, region: Region, offset: int, size: int) -> None:
        self._call("discard", f"{region.gpa + offset:#x}+{size:#x}", lambda: self._discard(region, offset, size))

    def _discard(self, region: Region, offset: int, size: int) -> None:
        if offset % PAGE_SIZE:
            raise Refused(errno.EINVAL, f"{offset:#x} is not the address of a page")
        start, end = _gfns(region.gpa + offset, min(region.gpa + offset + size, region.end))
        for gfn in map(Gfn, range(start, end)):
            self._iommu.discarding(gfn)
        if start < end:
            self.memory.discard(start, end)
        if offset + size > region.size:
            raise Refused(errno.ENOMEM, f"nothing is mapped past the region that ends at {region.end:#x}")

    def pre_fault(self, gpa: int, size: int, *, private: bool) -> int:
        left = [size]

        def fault_in() -> None:
            left[0] = self._kvm.pre_fault(self._vcpu, gpa, size, shared=not private)

        self._call("pre_fault", f"{gpa:#x}+{size:#x}", fault_in)
        return left[0]

    def dma_map(self, gpa: int, size: int) -> None:
        self._call("dma_map", f"{gpa:#x}+{size:#x}", lambda: self._each(self._iommu.map, gpa, size))

    def dma_unmap(self, gpa: int, size: int) -> None:
        self._call("dma_unmap", f"{gpa:#x}+{size:#x}", lambda: self._each(self._iommu.unmap, gpa, size))

    @staticmethod
    def _each(call: Callable[[Gfn], None], gpa: int, size: int) -> None:
        for page in pages(gpa, size):
            call(Gfn(page >> PAGE_SHIFT))

    # -- faults, and what is seen

    def _call(self, kind: str, arguments: str, call: Callable[[], None]) -> None:
        try:
            self._count(kind)
            call()
        except PeerLost as lost:
            raise Refused(errno.EHOSTDOWN, str(lost)) from None
        finally:
            self.look(f"{kind} {arguments}")

    def _count(self, kind: str) -> None:
        nth = self._counts[kind] = self._counts.get(kind, 0) + 1
        hook = self.hooks.pop((kind, nth), None)
        if hook is not None:
            hook()

    def watch(self) -> None:
        """Calls are counted, and recorded, from here on."""
        self._counts.clear()
        self.history.clear()
        self.look("")

    def look(self, call: str) -> None:
        self.history.append(
            Snapshot(
                call,
                frozenset(self.memory.shared()),
                frozenset(self._held_private()),
                frozenset(self.memory.held_shared()),
                self._iommu.mapped,
                self._iommu.stale,
                self.recorded_shared(),
            )
        )

    def _held_private(self) -> set[Gfn]:
        return {
            Gfn((region.gpa >> PAGE_SHIFT) + pgoff)
            for region, file in self._files.items()
            for pgoff in self._store.held(file.ino, region.size >> PAGE_SHIFT)
        }


def _gfns(gpa: int, end: int) -> tuple[Gfn, Gfn]:
    return Gfn(gpa >> PAGE_SHIFT), Gfn(end >> PAGE_SHIFT)
