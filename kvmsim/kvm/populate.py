"""The initial image: what private memory holds before the guest runs, and its measurement.

As KVM_TDX_INIT_MEM_REGION does it: kvm_gmem_populate() finds slot and frames, and a callback adds each page to the VM.
"""

import errno
import threading
from collections.abc import Callable

from kvmsim.memory.memory import DeviceMemory, Memory, WindowMemory
from memfsd.uapi.errors import Refused
from memfsd.uapi.units import PAGE_SHIFT, PAGE_SIZE, Gfn

from .alias import PRIVATE
from .faults import Faults, refused
from .hypercalls import SHARED_BIT
from .measurement import Measurement
from .unmapper import Unmapper
from .vcpu import Vcpu
from .vm import Vm

Read = Callable[[int, int], bytes]
"""(offset, length) to as many bytes of the image. OSError or Refused when it cannot be read."""
PostPopulate = Callable[[Gfn, Memory, int, bytes], None]
"""(gfn, memory, byte offset in it, page): the page's contents go into the frame."""
_BATCH_PAGES = 256
"""Copied in guest mode at a time: an invalidation waits for no more."""


class InitialImage:
    """`lock` is Kvm.slots_lock, which is held while pages are added."""

    def __init__(self, vm: Vm, lock: threading.Lock, unmapper: Unmapper, faults: Faults) -> None:
        self._vm = vm
        self._lock = lock
        self._unmapper = unmapper
        self._faults = faults
        self._measured = Measurement()
        self.is_final = False

    def populate(self, vcpu: Vcpu, gpa: int, page_count: int, read: Read) -> None:
        """Pages of an image into private memory from gpa on, measured. All of them, or none: when it is refused, memory
        and measurement are as before.

        EINVAL: after `finalize`, unaligned, no page, no private slot at gpa, or a device's, or a page is shared. EFBIG:
        the slot does not show so many pages. EEXIST: a page holds memory already. EINTR: the vCPU was kicked. EBUSY:
        another thread has it. Else what the store answers (ENOSPC), or `read`.
        """
        start = Gfn(gpa >> PAGE_SHIFT)
        end = start + page_count
        if gpa % PAGE_SIZE or gpa & SHARED_BIT or page_count <= 0:
            raise Refused(errno.EINVAL, f"{page_count} pages at gpa {gpa:#x}: give pages, and a private gpa at a page")
        with vcpu.held(), self._lock:
            self._check(start, end)
            measured = self._measured.copy()

            def add(gfn: Gfn, memory: Memory, offset: int, page: bytes) -> None:
                memory.write(offset, page)
                measured.add(gfn << PAGE_SHIFT, page)

            self._check_empty(vcpu, start, end)
            try:
                self._populate(vcpu, start, end, read, add)
            except BaseException:
                with self._unmapper.deleting([]):  # else a frame might be another page's when it is destroyed
                    self._unmapper.retire([(start, end)])
                raise
            self._measured = measured

    def finalize(self) -> None:
        """KVM_TDX_FINALIZE_VM: no page is added any more. EINVAL the second time."""
        with self._lock:
            self._check_not_final()
            self.is_final = True

    def measurement(self) -> bytes:
        """48 bytes: of all pages up to now, in the order in which they were added."""
        with self._lock:
            return self._measured.digest()

    def _check_not_final(self) -> None:
        if self.is_final:
            raise Refused(errno.EINVAL, f"VM {self._vm.name} is finalized: its image and measurement are what they are")

    def _check(self, start: Gfn, end: Gfn) -> None:
        self._check_not_final()
        vm, shown = self._vm, f"{end - start} pages at gpa {start << PAGE_SHIFT:#x}"
        with vm.mmu.lock:
            slot = vm.slots[PRIVATE].lookup(start)
            if slot is None:
                raise Refused(errno.EINVAL, f"{shown}: no private slot is there: set one")
            if isinstance(slot.backing.memory, DeviceMemory):
                raise Refused(errno.EINVAL, f"{shown}: {slot} shows a device, which is no part of an image")
            if vm.slots[PRIVATE].covers(start, end) is None:
                raise Refused(errno.EFBIG, f"{shown}: {slot} does not show them all: set a larger one, or give less")
            if not vm.rules.covers(start, end, private=True):
                raise Refused(errno.EINVAL, f"{shown}: not all of them are private: convert them first")

    def _check_empty(self, vcpu: Vcpu, start: Gfn, end: Gfn) -> None:
        """Every page gets a frame, which is marked accessed and so not reclaimed, and which nobody has written to."""

        def look(gfn: Gfn, memory: Memory, offset: int, page_count: int) -> None:
            assert isinstance(memory, WindowMemory)
            if memory.holds_data(offset, page_count << PAGE_SHIFT):
                used = gfn + _first_used(memory, offset, page_count) << PAGE_SHIFT
                raise Refused(errno.EEXIST, f"gpa {used:#x} is in use: populate a page before the guest, and once")

        self._visit(vcpu, start, end, look)

    def _populate(self, vcpu: Vcpu, start: Gfn, end: Gfn, read: Read, post_populate: PostPopulate) -> None:
        """kvm_gmem_populate(). The image is read out of guest mode."""
        for batch in map(Gfn, range(start, end, _BATCH_PAGES)):
            batch_end = min(batch + _BATCH_PAGES, end)
            data = read(batch - start << PAGE_SHIFT, batch_end - batch << PAGE_SHIFT)

            def copy(
                gfn: Gfn, memory: Memory, offset: int, page_count: int, data: bytes = data, at: int = batch
            ) -> None:
                for page in range(page_count):
                    source = gfn + page - at << PAGE_SHIFT
                    post_populate(gfn + page, memory, offset + (page << PAGE_SHIFT), data[source : source + PAGE_SIZE])

            self._visit(vcpu, batch, batch_end, copy)

    def _visit(self, vcpu: Vcpu, gfn: Gfn, end: Gfn, act: Callable[[Gfn, Memory, int, int], None]) -> None:
        """act(gfn, memory, byte offset in it, pages) for each run of frames, in order and in guest mode."""
        while gfn < end:
            if vcpu.run.immediate_exit:
                raise Refused(errno.EINTR, f"vCPU {vcpu.id} was kicked: populate again")
            stop = min(gfn + _BATCH_PAGES, end)
            vcpu.enter()
            try:
                for memory, offset, size in self._faults.walk(gfn, stop, shared=False, write=True):
                    act(gfn, memory, offset, size >> PAGE_SHIFT)
                    gfn += size >> PAGE_SHIFT
            finally:
                vcpu.leave()
            if gfn < stop:
                exit_ = self._faults.fault(vcpu, gfn, shared=False, write=True, want=end - gfn)
                if exit_ is not None:
                    raise refused(exit_)


def _first_used(memory: WindowMemory, offset: int, page_count: int) -> int:
    """The first of these pages that holds data, as one of them does."""
    first = 0
    while page_count > 1:
        half = page_count // 2
        if memory.holds_data(offset + (first << PAGE_SHIFT), half << PAGE_SHIFT):
            page_count = half
        else:
            first, page_count = first + half, page_count - half
    return first
