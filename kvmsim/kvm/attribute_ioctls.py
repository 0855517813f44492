"""KVM_SET_MEMORY_ATTRIBUTES: GFNs become private or shared, whatever slots there are.

An invalidation of KVM's own: begin and zap, every vCPU out of the guest, store and end. So nobody uses the old alias
once the new one can be mapped.
"""

import errno
import threading
from collections.abc import Iterator

from memfsd.common import trace
from memfsd.uapi.abi import Attributes
from memfsd.uapi.errors import PeerLost, Refused
from memfsd.uapi.units import Gfn, GfnRange, Pgoff, PgoffRange

from .abi.attributes import check_attributes
from .mmu.eptentry import MAX_GFN_EPT
from .mmu.runs import Run
from .region import ATTRIBUTE_PRIVATE, AttributesRange
from .slots.backing import Gmem
from .unmapper import Unmapper
from .vm import Vm


class AttributeIoctls:
    """`lock` is Kvm.slots_lock."""

    def __init__(self, vm: Vm, lock: threading.Lock, unmapper: Unmapper) -> None:
        self._vm = vm
        self._lock = lock
        self._unmapper = unmapper

    def set(self, asked: AttributesRange) -> None:
        """All of the range, or Refused: ENOTTY where the VM keeps none, EINVAL in KVM's order, ENOMEM."""
        vm = self._vm
        if vm.abi.attributes is not Attributes.VM:
            raise Refused(
                errno.ENOTTY, f"a VM of abi {vm.abi.name} keeps no memory attributes: kvmsim --abi gmem-6.18 does"
            )
        start, end = check_attributes(asked)
        private = bool(asked.attributes & ATTRIBUTE_PRIVATE)
        with self._lock, self._unmapper.deleting([]):  # as for Unmapper.zap()
            if private:
                vm.be_of_type(private_memory=True)
            with vm.mmu.lock:
                if vm.attributes.has(start, end, private=private):
                    return
                vm.attributes.reserve()
                vm.mmu.invalidate_begin(start, end)
                removed = self._zap(start, min(end, MAX_GFN_EPT), private=not private)
            self._unmapper.kick_all()
            with vm.mmu.lock:
                if not private:
                    self._unmapper.unmapped(removed)
                if trace.vm is not None:
                    trace.vm.attributes_stored(vm.name, start, end, private)
                vm.attributes.store(start, end, private=private)
                vm.mmu.invalidate_end()

    def ranges(self) -> list[GfnRange]:
        """What is private, in order."""
        with self._vm.mmu.lock:
            return self._vm.attributes.ranges()

    def within(self, start: Gfn, end: Gfn, *, private: bool) -> list[GfnRange]:
        """Which GFNs of [start, end) are so."""
        with self._vm.mmu.lock:
            return self._vm.attributes.within(start, end, private=private)

    def of_file(self, gmem: Gmem, page_count: int) -> Iterator[PgoffRange]:
        """Pages of a guest_memfd that are private, in order, where the file has the attributes. Those of a file whose
        store is gone are not known."""
        pgoff = Pgoff(0)
        while self._vm.rules.asks_file and pgoff < page_count:
            try:
                is_private, count = gmem.attributes(pgoff)
            except (PeerLost, Refused):
                return
            if is_private:
                yield pgoff, pgoff + count
            pgoff += count

    def _zap(self, start: Gfn, end: Gfn, *, private: bool) -> list[Run]:
        """The alias that the range loses. Contents stay: they are the file's, or user space's."""
        return self._vm.mmu.zap(start, end, private=private) if start < end else []
