"""Why a vCPU came back to user space. KVM_EXIT_MEMORY_ERROR is the thread's; the others are KVM's."""

from dataclasses import dataclass, field
from enum import IntEnum

from memfsd.uapi.errors import EHWPOISON


class ExitReason(IntEnum):
    """Numbers of linux/kvm.h. MEMORY_ERROR never got one upstream (it became MEMORY_FAULT, 39); a machine check in a TD
    reaches user space there as SIGBUS, or as the end of the TD."""

    UNKNOWN = 0
    IO = 2
    HYPERCALL = 3
    HLT = 5
    MMIO = 6
    IRQ_WINDOW_OPEN = 7
    SHUTDOWN = 8
    INTR = 10
    INTERNAL_ERROR = 17
    MEMORY_FAULT = 39
    MEMORY_ERROR = 0x1000
    MACHINE_CHECK = 0x1001


Fields = dict[str, int | str | bool]

MEMORY_EXIT_FLAG_PRIVATE = 1 << 3
"""KVM_MEMORY_EXIT_FLAG_PRIVATE: the private alias was wanted, else the shared one."""
MMIO_BYTES = 8
"""What one MMIO exit carries at most: kvm_run.mmio.data."""
IO_DATA_BYTES = 4096
"""What one IO exit carries at most: the page after kvm_run's."""
HYPERCALL_ARGS = 6
HYPERCALL_LONG_MODE = 1
"""KVM_EXIT_HYPERCALL_LONG_MODE: the guest called from 64-bit code, as it always does here."""
INTERNAL_ERROR_EMULATION = 1
"""KVM_INTERNAL_ERROR_EMULATION: an instruction that KVM had to emulate and does not know."""
EMULATION_FLAG_INSTRUCTION_BYTES = 1
INSN_BYTES = 15
MCI_STATUS = 0xBD80_0000_0000_0134
"""IA32_MCi_STATUS of data that is consumed: VAL UC EN MISCV ADDRV S AR, MCACOD a data load."""


@dataclass(frozen=True, slots=True)
class MmioExit:
    """kvm_run.mmio: at most 8 bytes, as the kernel splits them. The answer to a read is taken by the next KVM_RUN."""

    phys_addr: int
    length: int
    is_write: bool
    data: bytes = b""

    reason = ExitReason.MMIO

    def fields(self) -> Fields:
        shown: Fields = {"phys_addr": self.phys_addr, "len": self.length, "is_write": self.is_write}
        return {**shown, "data": self.data.hex()} if self.is_write else shown


class IoDirection(IntEnum):
    """KVM_EXIT_IO_IN and KVM_EXIT_IO_OUT."""

    IN = 0
    OUT = 1


@dataclass(frozen=True, slots=True)
class IoExit:
    """kvm_run.io: `count` transfers of `size` bytes (1, 2 or 4) with a port. The answer to an IN is taken by the next
    KVM_RUN, and only that KVM_RUN completes the instruction: until then RIP is at it.

    data: what the guest writes, size * count bytes.
    """

    direction: IoDirection
    size: int
    port: int
    count: int = 1
    data: bytes = b""

    reason = ExitReason.IO

    @property
    def is_in(self) -> bool:
        return self.direction is IoDirection.IN

    def fields(self) -> Fields:
        shown: Fields = {
            "direction": int(self.direction),
            "size": self.size,
            "port": self.port,
            "count": self.count,
        }
        return shown if self.is_in else {**shown, "data": self.data.hex()}


@dataclass(frozen=True, slots=True)
class MemoryErrorExit:
    """kvm_run.memory_error of the thread: which alias of [gpa, gpa + size) was wanted, how, and why not.

    errno: 0 when no slot covers the range; else what kept a covered page from being mapped (ENOSPC the pool is
    full, EIO the store is gone, ETIMEDOUT it is silent, EHWPOISON its memory failed). The access can be run again once
    that is repaired.
    """

    gpa: int
    size: int
    private: bool
    explicit: bool = False
    illegal: bool = False
    errno: int = 0
    why: str = ""
    is_users: bool = field(default=False, compare=False)
    """It is host memory that user space has shown, and that cannot be reached."""

    reason = ExitReason.MEMORY_ERROR

    def fields(self) -> Fields:
        shown: Fields = {
            "gpa": self.gpa,
            "size": self.size,
            "private": self.private,
            "explicit": self.explicit,
            "illegal": self.illegal,
        }
        if self.errno == EHWPOISON:
            shown["hwpoison"] = True
        return {**shown, "errno": self.errno} if self.errno else shown


@dataclass(frozen=True, slots=True)
class MemoryFaultExit:
    """kvm_run.memory_fault of Linux: one page, whatever was accessed. KVM_RUN itself is -errno: EFAULT, EHWPOISON or
    ENOMEM."""

    gpa: int
    size: int
    private: bool
    errno: int
    why: str = ""

    reason = ExitReason.MEMORY_FAULT

    def fields(self) -> Fields:
        return {"flags": MEMORY_EXIT_FLAG_PRIVATE * self.private, "gpa": self.gpa, "size": self.size}


@dataclass(frozen=True, slots=True)
class FailedExit:
    """KVM_RUN is -errno, and kvm_run says nothing: user space's own memory cannot be reached."""

    errno: int
    why: str = ""

    reason = ExitReason.UNKNOWN

    def fields(self) -> Fields:
        return {}


@dataclass(frozen=True, slots=True)
class HypercallExit:
    """kvm_run.hypercall: one that user space asked for (KVM_CAP_EXIT_HYPERCALL). Its `ret` is the answer."""

    nr: int
    args: tuple[int, ...] = ()
    """Up to HYPERCALL_ARGS; those that are missing are 0."""

    reason = ExitReason.HYPERCALL

    def fields(self) -> Fields:
        args = (*self.args, *(0,) * (HYPERCALL_ARGS - len(self.args)))
        return {"nr": self.nr, **{f"a{number}": value for number, value in enumerate(args)}}


@dataclass(frozen=True, slots=True)
class InternalErrorExit:
    """kvm_run.emulation_failure: KVM had to emulate this instruction, and cannot. gpa: its operand."""

    insn: bytes
    gpa: int

    reason = ExitReason.INTERNAL_ERROR

    def fields(self) -> Fields:
        return {"suberror": INTERNAL_ERROR_EMULATION, "insn": self.insn.hex(), "gpa": self.gpa}


@dataclass(frozen=True, slots=True)
class HltExit:
    """The guest halted: the next KVM_RUN wakes it, behind its HLT."""

    reason = ExitReason.HLT

    def fields(self) -> Fields:
        return {}


@dataclass(frozen=True, slots=True)
class IrqWindowOpenExit:
    """User space asked (request_interrupt_window), and KVM_INTERRUPT would reach the guest at once now."""

    reason = ExitReason.IRQ_WINDOW_OPEN

    def fields(self) -> Fields:
        return {}


@dataclass(frozen=True, slots=True)
class ShutdownExit:
    """A triple fault. The vCPU faults again however often it is run: only a reset helps. why: for a person, what led
    to it."""

    why: str = field(default="", compare=False)

    reason = ExitReason.SHUTDOWN

    def fields(self) -> Fields:
        return {}


@dataclass(frozen=True, slots=True)
class IntrExit:
    """User space asked the vCPU to leave (immediate_exit): KVM_RUN itself answers EINTR."""

    reason = ExitReason.INTR

    def fields(self) -> Fields:
        return {}


INTR = IntrExit()


@dataclass(frozen=True, slots=True)
class MachineCheckExit:
    """The guest consumed a private page that does not verify. addr: the frame, where it lies in its window. Only a
    write of the whole page repairs it: every other access checks again."""

    gpa: int
    addr: int

    reason = ExitReason.MACHINE_CHECK

    def fields(self) -> Fields:
        return {"gpa": self.gpa, "addr": self.addr, "status": MCI_STATUS}


Exit = (
    MachineCheckExit
    | MmioExit
    | IoExit
    | MemoryErrorExit
    | MemoryFaultExit
    | FailedExit
    | HypercallExit
    | InternalErrorExit
    | HltExit
    | IrqWindowOpenExit
    | ShutdownExit
    | IntrExit
)
