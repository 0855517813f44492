"""Cloud Hypervisor."""

import contextlib

from memfsd.uapi.errors import Refused, errno_name

from .calls import Facts, Model, VmEnded, is_private, size_of


class CloudHypervisor(Model):
    """An error of a vCPU ends the VMM. No lock is held over the calls of one exit."""

    name = "cloud-hypervisor"
    facts = Facts(
        "v53.0-246-gae44c2971",
        (
            "hypervisor/src/kvm/mod.rs: KvmVcpu::run(), punch_holes_in_guest_memfd()",
            "vmm/src/cpu.rs: the vCPU thread",
            "vmm/src/device_manager.rs: add_vfio_device()",
        ),
        "with the feature sev_snp: attributes of the range, in one call; to shared by a hypercall, a punch in each "
        "slot, whose failure is logged; no discard of the shared side; none at all for a memory fault. All RAM but "
        "virtio-mem's is mapped for VFIO when a device is added",
    )

    def hypercall(self, gpa: int, page_count: int, attributes: int) -> int:
        private, size = is_private(attributes), size_of(page_count)
        self._set_attributes(gpa, size, private)
        if not private:
            for region in self.calls.regions:  # those of a HashMap, in any order
                start, length = region.part(gpa, size)
                if region.is_ram and length:
                    with contextlib.suppress(Refused):  # it is logged
                        self.calls.punch(region, start - region.gpa, length)
        return 0

    def memory_fault(self, gpa: int, size: int, *, private: bool) -> None:
        self._set_attributes(gpa, size, private)

    def _set_attributes(self, gpa: int, size: int, private: bool) -> None:
        try:
            self.calls.set_attributes(gpa, size, private=private)
        except Refused as refused:
            raise VmEnded(f"the vCPU failed with {errno_name(refused.errno)}: the VMM exits") from None
