"""The statistics of a VM and its vCPUs, by the kernel's names where it has them (arch/x86/kvm/x86.c), then ours.

The kernel's count as there, with these differences: pf_taken and pf_fixed include pre-faulting; exits are those that
something asked for (a fault, a call, HLT, a request to leave), since a guest here takes no interrupts.
"""

from .alias import PRIVATE, SHARED
from .exits import ExitReason
from .kvm import Kvm
from .vcpu import Vcpu

LEAF_SIZES = ("4k", "2m", "1g")

_COUNTED_AS_EXITS = (
    ExitReason.HLT,
    ExitReason.IO,
    ExitReason.SHUTDOWN,
    ExitReason.INTR,
    ExitReason.MACHINE_CHECK,
    ExitReason.INTERNAL_ERROR,
)
"""What takes a vCPU out of the guest without a fault or a call."""


def vm_statistics(kvm: Kvm) -> dict[str, int]:
    """Of the VM as a whole. pages_*: leaves that are mapped now; zapped: pages; zapped_*: leaves of that size."""
    mmu = kvm.vm.mmu
    with mmu.lock:
        epts = mmu.epts[SHARED], mmu.epts[PRIVATE]
        leaves = [sum(counts) for counts in zip(*(ept.leaf_counts for ept in epts), strict=True)]
        zapped = [sum(counts) for counts in zip(*(ept.zapped_leaves for ept in epts), strict=True)]
        return {
            "pf_fixed": mmu.fault_count,
            "remote_tlb_flush": mmu.remote_tlb_flush_count,
            "remote_tlb_flush_requests": mmu.remote_tlb_flush_request_count,
            **{f"pages_{size}": count for size, count in zip(LEAF_SIZES, leaves, strict=True)},
            "retries": mmu.retry_count,
            "zapped": mmu.zapped_count,
            **{f"zapped_{size}": count for size, count in zip(LEAF_SIZES, zapped, strict=True)},
            "splits": sum(ept.split_count for ept in epts),
            "merges": sum(ept.merge_count for ept in epts),
            "store_messages": kvm.pairings.past_message_count
            + sum(link.message_count for link in list(kvm.pairings.links.values())),
        }


def vcpu_statistics(vcpu: Vcpu) -> dict[str, int]:
    """Of one vCPU. userspace_exits: KVM_RUN came back with an exit, not EINTR."""
    exits = vcpu.exit_counts
    return {
        "pf_taken": vcpu.pf_taken,
        "tlb_flush": vcpu.tlb.flush_count,
        "exits": vcpu.pf_taken + vcpu.hypercall_count + sum(exits.get(reason, 0) for reason in _COUNTED_AS_EXITS),
        "io_exits": exits.get(ExitReason.IO, 0),
        "mmio_exits": exits.get(ExitReason.MMIO, 0),
        "signal_exits": exits.get(ExitReason.INTR, 0),
        "halt_exits": exits.get(ExitReason.HLT, 0),
        "hypercalls": vcpu.hypercall_count,
        "memory_fault_exits": exits.get(ExitReason.MEMORY_FAULT, 0),
        "memory_error_exits": exits.get(ExitReason.MEMORY_ERROR, 0),
        "userspace_exits": sum(exits.values()) - exits.get(ExitReason.INTR, 0),
        "tlb_ranged_flush": vcpu.tlb.ranged_flush_count,
        "kicks": vcpu.kick_count,
    }


def statistics(kvm: Kvm) -> dict[str, int]:
    """Everything in one call: those of the VM, and the sums over its vCPUs."""
    of_vcpus = [vcpu_statistics(vcpu) for vcpu in list(kvm.vm.vcpus.values())]
    return {name: sum(each[name] for each in of_vcpus) for name in of_vcpus[0]} | vm_statistics(kvm)
