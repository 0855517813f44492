"""What user space writes into kvm_run before it runs a vCPU on: the answer to an exit."""

import errno

from kvmsim.kvm.exits import ExitReason, IoDirection
from kvmsim.kvm.kvm_run import MEMORY_ERROR_EXPLICIT, set_io_data
from kvmsim.kvm.vcpu import Vcpu
from memfsd.uapi.errors import Refused


def answer_read(vcpu: Vcpu, data: bytes) -> None:
    """What the device returns. EINVAL: the vCPU is at no MMIO read and no IN, or at one of another length."""
    run = vcpu.run
    is_in = run.exit_reason == ExitReason.IO and run.io.direction == IoDirection.IN
    if not is_in and (run.exit_reason != ExitReason.MMIO or run.mmio.is_write):
        raise Refused(
            errno.EINVAL, f"data= answers an MMIO read or an IN, and vCPU {vcpu.id} is at neither: see info run"
        )
    what, length = ("IN", run.io.size * run.io.count) if is_in else ("MMIO read", run.mmio.len)
    if len(data) != length:
        raise Refused(errno.EINVAL, f"the {what} is of {length} bytes: give as many in data=, not {len(data)}")
    if is_in:
        set_io_data(run, data)
    else:
        run.mmio.data[:length] = list(data)


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
