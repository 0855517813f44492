"""QEMU."""

import contextlib
import errno

from memfsd.uapi.errors import Refused, errno_name
from memfsd.uapi.units import PAGE_SIZE

from .calls import Calls, Facts, Model, Region, VmEnded, is_private, pages, size_of


class Qemu(Model):
    """An error in handling the exit is RUN_STATE_INTERNAL_ERROR: the VM stops, and the guest gets no status. Both exits
    are handled without the big lock, and the bitmap has no lock."""

    name = "qemu"
    facts = Facts(
        "10.1.3",
        (
            "accel/kvm/kvm-all.c: kvm_convert_memory(), kvm_cpu_exec()",
            "system/ram-block-attributes.c: ram_block_attributes_state_change()",
            "system/physmem.c: ram_block_discard_range(), ram_block_discard_guest_memfd_range()",
            "hw/vfio/listener.c: vfio_ram_discard_notify_populate(), vfio_ram_discard_notify_discard()",
            "target/i386/kvm/kvm.c: kvm_handle_hc_map_gpa_range()",
        ),
        "first region that overlaps the range; attributes of the range; bitmap, then VFIO, whose failure to unmap is "
        "logged; one discard of one side (none of shared memory on huge pages); after a hypercall, the range is "
        "faulted in, and a failure ignored; no lock held across them. Each region here is a separate RAMBlock; a "
        "PC's RAM below and above 4 GiB is one",
    )

    def __init__(self, calls: Calls) -> None:
        super().__init__(calls)
        self._bitmap: set[int] = set()
        """Shared ("populated") pages. Nothing of VFIO's is mapped until one is."""

    def device_added(self) -> None:
        for gpa in sorted(self._bitmap):
            self.calls.dma_map(gpa, PAGE_SIZE)

    def believes_shared(self, gpa: int) -> bool:
        return gpa in self._bitmap

    def hypercall(self, gpa: int, page_count: int, attributes: int) -> int:
        size, private = size_of(page_count), is_private(attributes)
        self._run(gpa, size, private)
        with contextlib.suppress(Refused):
            end = gpa + size
            while size:
                size = self.calls.pre_fault(end - size, size, private=private)
        return 0

    def memory_fault(self, gpa: int, size: int, *, private: bool) -> None:
        self._run(gpa, size, private)

    def _run(self, gpa: int, size: int, private: bool) -> None:
        if error := self._convert(gpa, size, private):
            raise VmEnded(f"internal error: the conversion failed with {errno_name(error)}")

    def _convert(self, start: int, size: int, private: bool) -> int:
        if start % PAGE_SIZE or size % PAGE_SIZE or not size:
            return errno.EINVAL
        region = next((region for region in self.calls.regions if region.overlaps(start, start + size)), None)
        if region is None or not region.is_ram:
            return errno.EINVAL if private else 0
        offset = max(start, region.gpa) - region.gpa
        try:
            self.calls.set_attributes(start, size, private=private)
            if (error := self._state_change(region, offset, size, private)) != 0:
                return error
            if private:
                self.calls.discard(region, offset, size)
            else:
                self.calls.punch(region, offset, size)
        except Refused as refused:
            return refused.errno
        return 0

    def _state_change(self, region: Region, offset: int, size: int, private: bool) -> int:
        """The bitmap first, then the listeners; what a listener fails with is not taken back here."""
        if offset + size > region.size:
            return errno.EINVAL
        gpa = region.gpa + offset
        changing = [page for page in pages(gpa, size) if (page in self._bitmap) == private]
        steps = [(gpa, size)] if len(changing) == size // PAGE_SIZE else [(page, PAGE_SIZE) for page in changing]
        for at, length in steps:
            if private:
                self._bitmap.difference_update(pages(at, length))
                self._discard_notified(at, length)
            else:
                self._bitmap.update(pages(at, length))
                if error := self._populate_notified(at, length):
                    return error
        return 0

    def _populate_notified(self, gpa: int, size: int) -> int:
        """VFIO's listener: a mapping for each page, so that each can go alone; what was mapped goes again if one
        fails."""
        if not self.calls.has_device:
            return 0
        try:
            for page in pages(gpa, size):
                self.calls.dma_map(page, PAGE_SIZE)
        except Refused as refused:
            self._discard_notified(gpa, size)
            return refused.errno
        return 0

    def _discard_notified(self, gpa: int, size: int) -> None:
        """VFIO's listener, which can only log a failure."""
        if self.calls.has_device:
            with contextlib.suppress(Refused):
                self.calls.dma_unmap(gpa, size)
