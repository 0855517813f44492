"""How it can be done: a conversion happens as a whole, or leaves everything as it was."""

import contextlib
import errno

from kvmsim.vmm.conversion.transaction import Transaction
from memfsd.uapi.errors import Refused
from memfsd.uapi.units import PAGE_SIZE

from .calls import Calls, Facts, Model, Region, is_private, pages

_U64 = 1 << 64


class Reference(Model):
    """What can be taken back comes first: attributes, and DMA in the order that never lets a device reach a page
    without a shared copy. What destroys comes last. Once something is destroyed there is no way back: what fails then
    is tried again, and is owed if it fails again: no conversion before that is done."""

    name = "reference"
    facts = Facts(
        "this project",
        ("kvmsim/vmm/models/reference.py",),
        "all checks; to private, DMA unmapped; attributes of what changes; to shared, DMA mapped; discards of one side "
        "in every region",
    )

    serialized = True

    def __init__(self, calls: Calls) -> None:
        super().__init__(calls)
        self._shared: set[int] = set()
        self._owed: list[tuple[Region, int, int, bool]] = []

    def device_added(self) -> None:
        for gpa in sorted(self._shared):
            self.calls.dma_map(gpa, PAGE_SIZE)

    def believes_shared(self, gpa: int) -> bool:
        return gpa in self._shared

    def hypercall(self, gpa: int, page_count: int, attributes: int) -> int:
        try:
            self._convert(gpa, page_count * PAGE_SIZE, is_private(attributes))
        except Refused as refused:
            return -refused.errno
        return 0

    def memory_fault(self, gpa: int, size: int, *, private: bool) -> None:
        self._convert(gpa, size, private)

    def _convert(self, gpa: int, size: int, private: bool) -> None:
        """Refused: nothing has changed."""
        parts = self._parts(gpa, size, private)
        self._pay()
        with Transaction() as transaction:
            for part in parts:
                self._switch(*part, private, transaction)
            self._destroy(parts, private)
        for _, start, length in parts:
            if private:
                self._shared.difference_update(pages(start, length))
            else:
                self._shared.update(pages(start, length))

    def _parts(self, gpa: int, size: int, private: bool) -> list[tuple[Region, int, int]]:
        """What changes, as (region, GPA, size). EINVAL where the range can be no request, or asks for private memory
        where none is. A hole, and a device, is shared already."""
        if not size or (gpa | size) % PAGE_SIZE or gpa + size > _U64:
            raise Refused(errno.EINVAL, f"{size:#x} bytes at {gpa:#x} are no range of whole pages")
        parts: list[tuple[Region, int, int]] = []
        covered = 0
        for region in self.calls.regions:
            start, length = region.part(gpa, size)
            if not region.is_ram:
                continue
            covered += length
            for page in pages(start, length):
                if (page in self._shared) != private:
                    continue
                if parts and parts[-1][0] is region and parts[-1][1] + parts[-1][2] == page:
                    parts[-1] = (region, parts[-1][1], parts[-1][2] + PAGE_SIZE)
                else:
                    parts.append((region, page, PAGE_SIZE))
        if private and covered != size:
            raise Refused(errno.EINVAL, f"not all of {size:#x} bytes at {gpa:#x} is memory")
        return parts

    def _switch(self, region: Region, gpa: int, size: int, private: bool, transaction: Transaction) -> None:
        calls = self.calls
        if private and calls.has_device:
            calls.dma_unmap(gpa, size)
            transaction.did(calls.dma_map, gpa, size)
        calls.set_attributes(gpa, size, private=private)
        transaction.did(calls.set_attributes, gpa, size, private=not private)
        if not private and calls.has_device:
            transaction.did(calls.discard, region, gpa - region.gpa, size)  # what was allocated to be pinned
            for page in pages(gpa, size):
                calls.dma_map(page, PAGE_SIZE)
                transaction.did(calls.dma_unmap, page, PAGE_SIZE)

    def _destroy(self, parts: list[tuple[Region, int, int]], private: bool) -> None:
        for index, (region, gpa, size) in enumerate(parts):
            try:
                self._discard(region, gpa, size, private)
            except Refused:
                if not index:
                    raise
                self._owed.append((region, gpa, size, private))
        with contextlib.suppress(Refused):
            self._pay()

    def _pay(self) -> None:
        while self._owed:
            self._discard(*self._owed[-1])
            self._owed.pop()

    def _discard(self, region: Region, gpa: int, size: int, private: bool) -> None:
        (self.calls.discard if private else self.calls.punch)(region, gpa - region.gpa, size)
