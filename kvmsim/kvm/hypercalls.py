"""What a guest may ask KVM for: MapGPA as TDX defines it, and KVM's own hypercalls.

TDX: GHCI, TDG.VP.VMCALL<MapGPA>; the order of checks is that of tdx_map_gpa() in arch/x86/kvm/vmx/tdx.c.
KVM: R10 other than 0 is a hypercall of KVM with its arguments in R11 to R14, as tdx_emulate_vmcall() reads them.
"""

import errno
from collections.abc import Sequence
from dataclasses import dataclass

from memfsd.uapi.units import PAGE_SHIFT, PAGE_SIZE

SHARED_BIT = 1 << 51
"""Of a guest physical address: set, it names the shared alias (GPAW 52)."""

MAP_GPA = 0x10001
SUCCESS = 0
RETRY = 1
INVALID_OPERAND = 1 << 63
ALIGN_ERROR = (1 << 63) + 2
SUBFUNC_UNSUPPORTED = (1 << 63) + 3
STATUS_NAMES = {
    SUCCESS: "success",
    RETRY: "retry",
    INVALID_OPERAND: "invalid operand",
    ALIGN_ERROR: "alignment error",
    SUBFUNC_UNSUPPORTED: "unsupported",
}
CHUNK_BYTES = 2 << 20
"""MapGPA looks for pending events after each: TDX_MAP_GPA_MAX_LEN."""

KVM_HC_MAP_GPA_RANGE = 12
KVM_ENOSYS = 1000
MAP_GPA_RANGE_ENCRYPTED = 1 << 4
"""Of its attributes: to private, else to shared. Bits 0 to 3 are the page size, 0 for 4 KiB."""
EXIT_HYPERCALLS = 64
"""Numbers below this can be handed to user space: a bit each of KVM_CAP_EXIT_HYPERCALL."""
_U64 = (1 << 64) - 1


@dataclass(slots=True)
class Registers:
    """What TDG.VP.VMCALL passes in and out: 64 bits each."""

    r10: int = 0
    """In: 0 for a leaf of the GHCI. Out: the status."""
    r11: int = 0
    """In: the leaf. Out: where MapGPA stopped."""
    r12: int = 0
    r13: int = 0
    r14: int = 0
    r15: int = 0


def map_gpa_status(gpa: int, size: int, gpa_end: int) -> int:
    """The status a request earns before any work, gpa without its SHARED bit: first the range, then the alignment."""
    if size <= 0 or gpa < 0 or gpa + size > gpa_end:
        return INVALID_OPERAND
    if gpa % PAGE_SIZE or size % PAGE_SIZE:
        return ALIGN_ERROR
    return SUCCESS


def map_gpa_range_error(args: Sequence[int]) -> int:
    """What KVM answers at once to KVM_HC_MAP_GPA_RANGE(gpa, pages, attributes): an errno, or 0 to ask user space."""
    gpa, pages = args[0], args[1]
    if gpa % PAGE_SIZE or not pages or (gpa >> PAGE_SHIFT) + pages > _U64:
        return errno.EINVAL
    return 0


def negative(error: int) -> int:
    """-error as a register holds it."""
    return -error & _U64


def chunk_end(gpa: int, end: int) -> int:
    """Where the chunk of a request that begins at gpa ends: chunks are counted from the gpa that was asked for."""
    return min(gpa + CHUNK_BYTES, end)
