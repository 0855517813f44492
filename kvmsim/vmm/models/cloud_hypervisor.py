"""Cloud Hypervisor."""

import contextlib

from kvmsim.kvm.hypercalls import MAP_GPA_RANGE_ENCRYPTED
from memfsd.uapi.errors import Refused, errno_name

from .calls import Facts, Model, VmEnded, size_of


class CloudHypervisor(Model):
    """An error of a vCPU ends the VMM. No lock is held over the calls of one exit."""

    name = "cloud-hypervisor"
    facts = Facts(
        "v53.0-246-gae44c2971",
        (
            "hypervisor/src/kvm/mod.rs: KvmVcpu::run(), punch_holes_in_guest_memfd()",
            "vmm/src/cpu.rs: the vCPU thread",
            "vmm/src/device_manager.rs: all RAM is mapped for VFIO when a device is added",
        ),
        "attributes of the range; to shared by a hypercall, a punch for each slot, whose failure is logged; no discard "
        "of the shared side; none at all for a memory fault",
    )

    def hypercall(self, gpa: int, page_count: int, attributes: int) -> int:
        private, size = bool(attributes & MAP_GPA_RANGE_ENCRYPTED), size_of(page_count)
        self._set_attributes(gpa, size, private)
        if not private:
            for region in self.calls.regions:
                if region.is_ram and region.overlaps(gpa, gpa + size):
                    start, end = max(gpa, region.gpa), min(gpa + size, region.end)
                    with contextlib.suppress(Refused):  # it is logged
                        self.calls.punch(region, start - region.gpa, end - start)
        return 0

    def memory_fault(self, gpa: int, size: int, *, private: bool) -> None:
        self._set_attributes(gpa, size, private)

    def _set_attributes(self, gpa: int, size: int, private: bool) -> None:
        try:
            self.calls.set_attributes(gpa, size, private=private)
        except Refused as refused:
            raise VmEnded(f"the vCPU failed with {errno_name(refused.errno)}: the VMM exits") from None
