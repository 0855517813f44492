"""What a guest kernel does to convert its memory: set_memory_encrypted() and set_memory_decrypted() of a TDX guest.

It behaves as Linux does (arch/x86/coco/tdx/tdx.c, tdx_map_gpa() and tdx_enc_status_changed()): it trusts the host as
little, and gives up where Linux gives up.
"""

import errno
from collections.abc import Callable

from kvmsim.kvm.hypercalls import MAP_GPA, RETRY, SHARED_BIT, STATUS_NAMES, SUCCESS, Registers
from kvmsim.kvm.vcpu import Program
from memfsd.uapi.errors import Refused

MAX_RETRIES = 3
"""Retries without progress."""

Tdvmcall = Callable[[Registers], Program[Registers]]


def set_memory(
    call: Tdvmcall, accept: Callable[[int, int], Program[None]], gpa: int, size: int, *, private: bool
) -> Program[None]:
    """Convert [gpa, gpa + size); what becomes private is accepted page by page. Refused as `map_gpa`."""
    yield from map_gpa(call, gpa, size, private=private)
    if private:
        yield from accept(gpa, size)


def map_gpa(call: Tdvmcall, gpa: int, size: int, *, private: bool) -> Program[None]:
    """MapGPA until all is converted. gpa without its SHARED bit.

    EINVAL: KVM refused it with a status. EIO: no progress, or a resume address that is not in what was asked for.
    What was converted before that stays converted.
    """
    at = gpa if private else gpa | SHARED_BIT
    end = at + size
    retries = 0
    while retries < MAX_RETRIES:
        answer = yield from call(Registers(r11=MAP_GPA, r12=at, r13=end - at))
        if answer.r10 == SUCCESS:
            return
        if answer.r10 != RETRY:
            name = STATUS_NAMES.get(answer.r10, "unknown")
            raise Refused(errno.EINVAL, f"MapGPA {at:#x}+{end - at:#x}: status {answer.r10:#x}, {name}")
        if not at <= answer.r11 < end:
            raise Refused(errno.EIO, f"MapGPA {at:#x}+{end - at:#x}: resume address {answer.r11:#x} is outside of it")
        retries = retries + 1 if answer.r11 == at else 0
        at = answer.r11
    raise Refused(errno.EIO, f"MapGPA {at:#x}+{end - at:#x}: {MAX_RETRIES} retries without progress")
