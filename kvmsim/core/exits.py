"""Why a vCPU came back to user space. KVM_EXIT_MEMORY_ERROR is the thread's; the others are KVM's."""

from dataclasses import dataclass
from enum import IntEnum


class ExitReason(IntEnum):
    """Numbers of linux/kvm.h. MEMORY_ERROR never got one upstream (it became MEMORY_FAULT, 39)."""

    HYPERCALL = 3
    HLT = 5
    MMIO = 6
    SHUTDOWN = 8
    INTERNAL_ERROR = 17
    MEMORY_ERROR = 0x1000


Fields = dict[str, int | str | bool]


@dataclass(frozen=True, slots=True)
class MmioExit:
    """kvm_run.mmio: at most 8 bytes, as the kernel splits them."""

    phys_addr: int
    length: int
    is_write: bool
    data: bytes = b""

    reason = ExitReason.MMIO

    def fields(self) -> Fields:
        shown: Fields = {"phys_addr": self.phys_addr, "len": self.length, "is_write": self.is_write}
        return {**shown, "data": self.data.hex()} if self.is_write else shown


@dataclass(frozen=True, slots=True)
class MemoryErrorExit:
    """kvm_run.memory_error of the thread: which alias of [gpa, gpa + size) was wanted, how, and why not.

    errno: 0 when no slot covers the range; else what kept a covered page from being mapped (ENOSPC the pool is
    full, EIO the store is gone, ETIMEDOUT it is silent). The access can be run again once that is repaired.
    """

    gpa: int
    size: int
    private: bool
    explicit: bool = False
    illegal: bool = False
    errno: int = 0
    why: str = ""

    reason = ExitReason.MEMORY_ERROR

    def fields(self) -> Fields:
        shown: Fields = {
            "gpa": self.gpa,
            "size": self.size,
            "private": self.private,
            "explicit": self.explicit,
            "illegal": self.illegal,
        }
        return {**shown, "errno": self.errno} if self.errno else shown


Exit = MmioExit | MemoryErrorExit
