"""alioth."""

from memfsd.uapi.errors import Refused, errno_name

from .calls import Facts, Model, VmEnded, is_private, size_of


class Alioth(Model):
    """An error of a vCPU is State::Shutdown of the VM. Its lock is that of its regions."""

    name = "alioth"
    facts = Facts(
        "v0.12.0-50-gc78f8bd",
        (
            "alioth/src/mem/mem.rs: Memory::mark_private_memory()",
            "alioth/src/hv/kvm/vcpu/vmexit.rs: handle_hypercall(), handle_memory_fault()",
            "alioth/src/cpu/cpu.rs: VcpuThread::vcpu_loop(), run()",
            "alioth/src/vfio/container.rs and iommu.rs: ram_added()",
        ),
        "attributes of each region's part of the range, one after the other; holes and devices are passed over; no "
        "discard of either side. All RAM is mapped for VFIO when it is added",
    )
    serialized = True

    def hypercall(self, gpa: int, page_count: int, attributes: int) -> int:
        self._mark(gpa, size_of(page_count), is_private(attributes))
        return 0

    def memory_fault(self, gpa: int, size: int, *, private: bool) -> None:
        self._mark(gpa, size, private)

    def _mark(self, gpa: int, size: int, private: bool) -> None:
        for region in self.calls.regions:
            start, length = region.part(gpa, size)
            if region.is_ram and length:
                try:
                    self.calls.set_attributes(start, length, private=private)
                except Refused as refused:
                    raise VmEnded(f"the vCPU failed with {errno_name(refused.errno)}: the VM shuts down") from None
