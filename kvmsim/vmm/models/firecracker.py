"""Firecracker, the secret-free branch."""

from .calls import Facts, Model, VmEnded


class Firecracker(Model):
    """All of guest memory is one guest_memfd that is shared from the start and mapped by the VMM, out of the kernel's
    direct map. There is no second copy to convert to. The only memory fault that it handles is a userfault."""

    name = "firecracker"
    facts = Facts(
        "branch feature/secret-hiding at c695671fa",
        (
            "src/vmm/src/vstate/vcpu.rs: Vcpu::run_emulation()",
            "src/vmm/src/vstate/vm.rs: SECRET_FREE_BOOT_GUEST_MEMFD_FLAGS",
        ),
        "none: KVM_HC_MAP_GPA_RANGE is not asked for, so that KVM answers it, and a memory fault ends the VM",
    )
    takes_hypercalls = False
    takes_devices = False

    def hypercall(self, gpa: int, page_count: int, attributes: int) -> int:
        raise VmEnded("an exit that is not handled: KVM_EXIT_HYPERCALL")

    def memory_fault(self, gpa: int, size: int, *, private: bool) -> None:
        raise VmEnded("an exit that is not handled: KVM_EXIT_MEMORY_FAULT")
