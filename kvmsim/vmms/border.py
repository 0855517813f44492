"""What the models call: KVM, the store and VFIO, on the thread's ABI; each call is recorded, and can be made to fail.

The thread has no memory attributes. What the attribute of a page says there, is whether an ordinary slot lies over the
private one (policy `overlay`): it is added, or removed, for all of a range or for none of it, and contents of both
sides stay until somebody discards them. KVM_SET_MEMORY_ATTRIBUTES also takes ranges without memory; of those only the
attribute is remembered.
"""

import errno
from collections.abc import Callable, Sequence
from typing import NamedTuple

from kvmsim.machine import VirtualMachine
from kvmsim.vmm.conversion.shared_copy import SharedCopy
from kvmsim.vmm.conversion.transaction import Transaction
from kvmsim.vmm.models.calls import Region, pages
from memfsd.uapi.errors import PeerLost, Refused
from memfsd.uapi.units import PAGE_SHIFT, PAGE_SIZE, Gfn, Ino

from .iommu import Iommu
from .store import LocalStore

_U64 = 1 << 64


class ZapBusy(Exception):
    """TDX_OPERAND_BUSY of a SEAMCALL that unmaps: a vCPU is in the tree."""


class File(NamedTuple):
    """What backs a region of RAM: its private slot, and the file's number in the store."""

    slot: int
    ino: Ino


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
        self, machine: VirtualMachine, store: LocalStore, regions: Sequence[Region], files: dict[Region, File]
    ) -> None:
        self._kvm = machine.kvm
        self._memory = machine.vmm.memory
        self._store = store
        self.regions = regions
        self.has_device = False
        self._files = files
        self._copy = SharedCopy(self._memory)
        self._iommu = Iommu(self._pinned_page)
        self._private_elsewhere: set[Gfn] = set()
        """Where no memory is, and the attribute says private."""
        self._counts: dict[str, int] = {}
        self.hooks: dict[tuple[str, int], Callable[[], None]] = {}
        """What happens before the nth call of a kind; Refused is what the call is refused with then."""
        self.recorded_shared: Callable[[], frozenset[Gfn] | None] = lambda: None
        self.history: list[Snapshot] = []
        self.busy_zaps = 0
        self._kvm.blocking.set_overlay(True)

    def close(self) -> None:
        self._copy.close()

    # -- what models call

    def set_attributes(self, gpa: int, size: int, *, private: bool) -> None:
        self._call(
            "set_attributes",
            f"{gpa:#x}+{size:#x} {'private' if private else 'shared'}",
            lambda: self._set_attributes(gpa, size, private),
        )

    def _set_attributes(self, gpa: int, size: int, private: bool) -> None:
        if not size or (gpa | size) % PAGE_SIZE or gpa + size > _U64:
            raise Refused(errno.EINVAL, f"no range of whole pages: {size:#x} bytes at {gpa:#x}")
        try:
            self._count("zap")
        except ZapBusy:
            self.busy_zaps += 1
            self._kvm.unmapper.kick_all()
        ram = [region for region in self.regions if region.is_ram and region.overlaps(gpa, gpa + size)]
        covered: set[Gfn] = set()
        with self._memory.lock, Transaction() as transaction:
            for region in ram:
                start, end = _gfns(max(gpa, region.gpa), min(gpa + size, region.end))
                covered.update(map(Gfn, range(start, end)))
                if private:
                    taken = self._copy.remove(start, end)
                    transaction.did(self._copy.restore, taken)
                else:
                    missing = self._memory.ram.shared.missing(start, end)
                    self._copy.restore(missing)
                    transaction.did(self._copy.remove, start, end)
        elsewhere = {Gfn(page >> PAGE_SHIFT) for page in pages(gpa, size)} - covered
        if private:
            self._private_elsewhere |= elsewhere
        else:
            self._private_elsewhere -= elsewhere

    def punch(self, region: Region, offset: int, size: int) -> None:
        self._call("punch", f"{region.gpa + offset:#x}+{size:#x}", lambda: self._punch(region, offset, size))

    def _punch(self, region: Region, offset: int, size: int) -> None:
        if size <= 0 or (offset | size) % PAGE_SIZE:
            raise Refused(errno.EINVAL, f"no range of whole pages: {size:#x} bytes at {offset:#x}")
        start, end = _gfns(region.gpa + offset, min(region.gpa + offset + size, region.end))
        slot = self._memory.ram.private.get(self._files[region].slot)
        assert slot is not None
        if start < end:
            with self._memory.lock:
                self._memory.give_back(slot, start, end)

    def discard(self, region: Region, offset: int, size: int) -> None:
        self._call("discard", f"{region.gpa + offset:#x}+{size:#x}", lambda: self._discard(region, offset, size))

    def _discard(self, region: Region, offset: int, size: int) -> None:
        if offset % PAGE_SIZE:
            raise Refused(errno.EINVAL, f"{offset:#x} is not the address of a page")
        start, end = _gfns(region.gpa + offset, min(region.gpa + offset + size, region.end))
        for gfn in map(Gfn, range(start, end)):
            self._iommu.discarding(gfn)
        self._copy.discard([(start, end)] if start < end else [])
        if offset + size > region.size:
            raise Refused(errno.ENOMEM, f"nothing is mapped past the region that ends at {region.end:#x}")

    def dma_map(self, gpa: int, size: int) -> None:
        self._call("dma_map", f"{gpa:#x}+{size:#x}", lambda: self._each(self._iommu.map, gpa, size))

    def dma_unmap(self, gpa: int, size: int) -> None:
        self._call("dma_unmap", f"{gpa:#x}+{size:#x}", lambda: self._each(self._iommu.unmap, gpa, size))

    @staticmethod
    def _each(call: Callable[[Gfn], None], gpa: int, size: int) -> None:
        for page in pages(gpa, size):
            call(Gfn(page >> PAGE_SHIFT))

    def _pinned_page(self, gfn: Gfn) -> bytes:
        self._copy.memory.touch(gfn << PAGE_SHIFT, 1)
        return self._copy.memory.read(gfn << PAGE_SHIFT, PAGE_SIZE)

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
                frozenset(self._shared_attribute()),
                frozenset(self._held_private()),
                frozenset(self._held_shared()),
                self._iommu.mapped,
                self._iommu.stale,
                self.recorded_shared(),
            )
        )

    def _shared_attribute(self) -> set[Gfn]:
        found: set[Gfn] = set()
        for region in self.regions:
            start, end = _gfns(region.gpa, region.end)
            if region.is_ram:
                for _, low, high in self._memory.ram.shared.visible(start, end):
                    found.update(map(Gfn, range(low, high)))
        return found

    def private_elsewhere(self) -> frozenset[Gfn]:
        return frozenset(self._private_elsewhere)

    def _held_private(self) -> set[Gfn]:
        return {
            Gfn((region.gpa >> PAGE_SHIFT) + pgoff)
            for region, file in self._files.items()
            for pgoff in self._store.held(file.ino, region.size >> PAGE_SHIFT)
        }

    def _held_shared(self) -> set[Gfn]:
        return {gfn for start, end in self._copy.populated() for gfn in map(Gfn, range(start, end))}


def _gfns(gpa: int, end: int) -> tuple[Gfn, Gfn]:
    return Gfn(gpa >> PAGE_SHIFT), Gfn(end >> PAGE_SHIFT)
