"""What user space writes into kvm_run before it runs a vCPU on: the answer to an exit."""

import errno

from kvmsim.kvm.exits import ExitReason
from kvmsim.kvm.kvm_run import MEMORY_ERROR_EXPLICIT
from kvmsim.kvm.vcpu import Vcpu
from memfsd.uapi.errors import Refused


def answer_mmio(vcpu: Vcpu, data: bytes) -> None:
    """What the device returns. EINVAL: the vCPU is at no MMIO read, or at one of another length."""
    run = vcpu.run
    if run.exit_reason != ExitReason.MMIO or run.mmio.is_write:
        raise Refused(errno.EINVAL, f"data= answers an MMIO read, and vCPU {vcpu.id} is at none: see info run")
    if len(data) != run.mmio.len:
        raise Refused(errno.EINVAL, f"the MMIO read is of {run.mmio.len} bytes: give as many in data=, not {len(data)}")
    run.mmio.data[: len(data)] = list(data)


def answer_hypercall(vcpu: Vcpu, ret: int) -> None:
    """What the guest gets in RAX; or 0 to a map request where there is no memory. EINVAL: the vCPU is at neither."""
    run, reason = vcpu.run, vcpu.run.exit_reason
    if reason == ExitReason.HYPERCALL:
        run.hypercall.ret = ret
    elif reason == ExitReason.MEMORY_ERROR and run.memory_error.flags & MEMORY_ERROR_EXPLICIT:
        if ret or run.memory_error.error:
            raise Refused(
                errno.EINVAL, "a map request takes only ret=0, and only where there is no memory: see info run"
            )
        run.memory_error.answered = 1
    else:
        raise Refused(errno.EINVAL, f"ret= answers a hypercall, and vCPU {vcpu.id} is at none: see info run")
