"""alioth."""

from kvmsim.kvm.hypercalls import MAP_GPA_RANGE_ENCRYPTED
from memfsd.common import sync
from memfsd.uapi.errors import Refused, errno_name

from .calls import Calls, Facts, Model, VmEnded, size_of


class Alioth(Model):
    """An error of a vCPU is State::Shutdown of the VM. Its lock is that of its regions."""

    name = "alioth"
    facts = Facts(
        "v0.12.0-50-gc78f8bd",
        (
            "alioth/src/mem/mem.rs: Memory::mark_private_memory()",
            "alioth/src/mem/addressable.rs: search_next()",
            "alioth/src/hv/kvm/vcpu/vmexit.rs: handle_hypercall(), handle_memory_fault()",
            "alioth/src/cpu/cpu.rs: vcpu_loop()",
            "alioth/src/vfio/container.rs: all RAM is mapped for VFIO",
        ),
        "attributes of each region's part of the range, one after the other; holes and devices are passed over; no "
        "discard of either side",
    )

    def __init__(self, calls: Calls) -> None:
        super().__init__(calls)
        self.lock = sync.lock("Model.lock")

    def hypercall(self, gpa: int, page_count: int, attributes: int) -> int:
        self._mark(gpa, size_of(page_count), bool(attributes & MAP_GPA_RANGE_ENCRYPTED))
        return 0

    def memory_fault(self, gpa: int, size: int, *, private: bool) -> None:
        self._mark(gpa, size, private)

    def _mark(self, gpa: int, size: int, private: bool) -> None:
        assert self.lock is not None
        with self.lock:
            regions = self.calls.regions
            if gpa < regions[0].gpa:  # the search finds nothing below the first one
                return
            for region in regions:
                start, end = max(gpa, region.gpa), min(gpa + size, region.end)
                if not region.is_ram or start >= end:
                    continue
                try:
                    self.calls.set_attributes(start, end - start, private=private)
                except Refused as refused:
                    raise VmEnded(f"the vCPU failed with {errno_name(refused.errno)}: the VM shuts down") from None
