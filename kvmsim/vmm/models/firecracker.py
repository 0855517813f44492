"""Firecracker, the secret-free branch."""

from .calls import Facts, Model, VmEnded


class Firecracker(Model):
    """All of guest memory is one guest_memfd that is shared from the start and mapped by the VMM, out of the kernel's
    direct map. There is no second copy to convert to, and no memory attribute is ever set."""

    name = "firecracker"
    facts = Facts(
        "branch feature/secret-hiding at c695671fa",
        (
            "src/vmm/src/vstate/vcpu.rs: Vcpu::run_emulation()",
            "src/vmm/src/vstate/vm.rs: SECRET_FREE_BOOT_GUEST_MEMFD_FLAGS, create_guest_memfd()",
            "src/vmm/src/arch/x86_64/vcpu.rs: run_arch_emulation()",
        ),
        "none: KVM_HC_MAP_GPA_RANGE is not asked for, so that KVM refuses it, and the only memory fault that is "
        "handled is a userfault",
    )
    converts = False
    takes_devices = False

    def hypercall(self, gpa: int, page_count: int, attributes: int) -> int:
        raise VmEnded("the vCPU failed: unexpected exit KVM_EXIT_HYPERCALL")

    def memory_fault(self, gpa: int, size: int, *, private: bool) -> None:
        raise VmEnded("the vCPU failed: KVM_EXIT_MEMORY_FAULT without KVM_MEMORY_EXIT_FLAG_USERFAULT")
