"""struct kvm_run, laid out as in linux/kvm.h for x86-64: what a vCPU reports, and what user space answers.

    offset  0  in   request_interrupt_window, immediate_exit
            8  out  exit_reason
           32       the union: what its exit reason says is valid
          288       the rest of the kernel's struct, unused here

User space answers in mmio.data (a read), at io.data_offset (an IN: in the page after this one), hypercall.ret, and
memory_error.answered (it has seen to the range of an explicit request, which no one slot covers); the next KVM_RUN
takes it. `memory_error` is laid out as
memory_fault, which the thread's KVM_EXIT_MEMORY_ERROR became upstream: its PRIVATE bit is upstream's, EXPLICIT and
ILLEGAL are ours, and so are `error` and `answered` behind it. KVM_EXIT_MEMORY_FAULT itself lies there, too.
"""

import ctypes
from ctypes import c_char, c_uint8, c_uint16, c_uint32, c_uint64

from memfsd.uapi.units import PAGE_SIZE

from .exits import (
    EMULATION_FLAG_INSTRUCTION_BYTES,
    HYPERCALL_ARGS,
    HYPERCALL_LONG_MODE,
    INSN_BYTES,
    INTERNAL_ERROR_EMULATION,
    INTR,
    IO_DATA_BYTES,
    MCI_STATUS,
    MEMORY_EXIT_FLAG_PRIVATE,
    MMIO_BYTES,
    Exit,
    ExitReason,
    HltExit,
    HypercallExit,
    InternalErrorExit,
    IoDirection,
    IoExit,
    IrqWindowOpenExit,
    MachineCheckExit,
    MemoryErrorExit,
    MemoryFaultExit,
    MmioExit,
    ShutdownExit,
)

MEMORY_ERROR_PRIVATE = MEMORY_EXIT_FLAG_PRIVATE
MEMORY_ERROR_EXPLICIT = 1 << 4
"""By the map hypercall, else by an access."""
MEMORY_ERROR_ILLEGAL = 1 << 5
"""By KVM's own access for emulation, which never reaches private memory."""

_EMULATION_WORDS = 4
"""Of internal.data: flags, two that hold the instruction, and the operand's GPA."""


class Mmio(ctypes.Structure):
    """KVM_EXIT_MMIO."""

    _fields_ = (
        ("phys_addr", c_uint64),
        ("data", c_uint8 * MMIO_BYTES),
        ("len", c_uint32),
        ("is_write", c_uint8),
    )


class Io(ctypes.Structure):
    """KVM_EXIT_IO. The data is in the page after that of struct kvm_run."""

    _fields_ = (
        ("direction", c_uint8),
        ("size", c_uint8),
        ("port", c_uint16),
        ("count", c_uint32),
        ("data_offset", c_uint64),
    )


class Hypercall(ctypes.Structure):
    """KVM_EXIT_HYPERCALL."""

    _fields_ = (
        ("nr", c_uint64),
        ("args", c_uint64 * HYPERCALL_ARGS),
        ("ret", c_uint64),
        ("flags", c_uint64),
    )


class MemoryFault(ctypes.Structure):
    """KVM_EXIT_MEMORY_ERROR, which Linux does not have; it begins as KVM_EXIT_MEMORY_FAULT."""

    _fields_ = (
        ("flags", c_uint64),
        ("gpa", c_uint64),
        ("size", c_uint64),
        ("error", c_uint32),
        ("answered", c_uint32),
    )


class MachineCheck(ctypes.Structure):
    """KVM_EXIT_MACHINE_CHECK, which Linux does not have; it begins as struct kvm_x86_mce."""

    _fields_ = (
        ("status", c_uint64),
        ("addr", c_uint64),
        ("misc", c_uint64),
        ("mcg_status", c_uint64),
        ("gpa", c_uint64),
    )


class Internal(ctypes.Structure):
    """KVM_EXIT_INTERNAL_ERROR."""

    _fields_ = (("suberror", c_uint32), ("ndata", c_uint32), ("data", c_uint64 * 16))


class EmulationFailure(ctypes.Structure):
    """An overlay of `internal`, as the kernel has it; behind it debug data, which is the operand's GPA."""

    _fields_ = (
        ("suberror", c_uint32),
        ("ndata", c_uint32),
        ("flags", c_uint64),
        ("insn_size", c_uint8),
        ("insn_bytes", c_uint8 * INSN_BYTES),
        ("gpa", c_uint64),
    )


class _Union(ctypes.Union):
    _fields_ = (
        ("mmio", Mmio),
        ("io", Io),
        ("hypercall", Hypercall),
        ("memory_error", MemoryFault),
        ("machine_check", MachineCheck),
        ("internal", Internal),
        ("emulation_failure", EmulationFailure),
        ("padding", c_char * 256),
    )


_EMPTY = _Union()
"""Assigned; ctypes.memset would let go of the GIL at each exit. Who waits for it is woken in vain by each release,
so never waits the undisturbed 5 ms after which CPython makes the holder give way: a vCPU exiting in a loop kept it."""


class KvmRun(ctypes.Structure):
    """One per vCPU. Written by the thread in KVM_RUN, read by it after; immediate_exit may be set by any."""

    _anonymous_ = ("exit",)
    _fields_ = (
        ("request_interrupt_window", c_uint8),
        ("immediate_exit", c_uint8),
        ("padding1", c_uint8 * 6),
        ("exit_reason", c_uint32),
        ("ready_for_interrupt_injection", c_uint8),
        ("if_flag", c_uint8),
        ("flags", c_uint16),
        ("cr8", c_uint64),
        ("apic_base", c_uint64),
        ("exit", _Union),
        ("kvm_valid_regs", c_uint64),
        ("kvm_dirty_regs", c_uint64),
        ("s", c_char * 2048),
    )


class KvmRunMapping(ctypes.Structure):
    """What mmap(2) of a vCPU's fd shows: struct kvm_run, and the data of port I/O from the next page on."""

    _fields_ = (
        ("run", KvmRun),
        ("padding", c_char * (PAGE_SIZE - ctypes.sizeof(KvmRun))),
        ("io_data", c_uint8 * IO_DATA_BYTES),
    )


def fill(run: KvmRun, exit_: Exit) -> None:
    """The exit into the struct, over what the last one left there."""
    run.exit_reason = exit_.reason
    run.exit = _EMPTY
    match exit_:
        case MmioExit():
            mmio = run.mmio
            mmio.phys_addr, mmio.len, mmio.is_write = exit_.phys_addr, exit_.length, exit_.is_write
            mmio.data[: len(exit_.data)] = list(exit_.data)
        case IoExit():
            io = run.io
            io.direction, io.size, io.port, io.count = exit_.direction, exit_.size, exit_.port, exit_.count
            io.data_offset = KvmRunMapping.io_data.offset
            set_io_data(run, exit_.data or bytes(exit_.size * exit_.count))
        case HypercallExit():
            run.hypercall.nr, run.hypercall.flags = exit_.nr, HYPERCALL_LONG_MODE
            run.hypercall.args[: len(exit_.args)] = exit_.args
        case MemoryErrorExit():
            error = run.memory_error
            error.gpa, error.size, error.error = exit_.gpa, exit_.size, exit_.errno
            error.flags = (
                MEMORY_ERROR_PRIVATE * exit_.private
                | MEMORY_ERROR_EXPLICIT * exit_.explicit
                | MEMORY_ERROR_ILLEGAL * exit_.illegal
            )
        case MemoryFaultExit():
            fault = run.memory_error
            fault.flags, fault.gpa, fault.size = MEMORY_EXIT_FLAG_PRIVATE * exit_.private, exit_.gpa, exit_.size
            fault.error = exit_.errno
        case MachineCheckExit():
            check = run.machine_check
            check.gpa, check.addr, check.status = exit_.gpa, exit_.addr, MCI_STATUS
        case InternalErrorExit():
            failure = run.emulation_failure
            failure.suberror, failure.ndata = INTERNAL_ERROR_EMULATION, _EMULATION_WORDS
            failure.flags, failure.gpa = EMULATION_FLAG_INSTRUCTION_BYTES, exit_.gpa
            failure.insn_size = len(exit_.insn)
            failure.insn_bytes[: len(exit_.insn)] = list(exit_.insn)


def exit_of(run: KvmRun) -> Exit | None:
    """What the struct says, to user space that has nothing else; None before the first exit."""
    match run.exit_reason:
        case ExitReason.MMIO:
            data = mmio_data(run, run.mmio.len) if run.mmio.is_write else b""
            return MmioExit(run.mmio.phys_addr, run.mmio.len, bool(run.mmio.is_write), data)
        case ExitReason.IO:
            io, direction = run.io, IoDirection(run.io.direction)
            data = b"" if direction is IoDirection.IN else io_data(run, io.size * io.count)
            return IoExit(direction, io.size, io.port, io.count, data)
        case ExitReason.HYPERCALL:
            return HypercallExit(run.hypercall.nr, tuple(run.hypercall.args))
        case ExitReason.MEMORY_ERROR:
            error, flags = run.memory_error, run.memory_error.flags
            return MemoryErrorExit(
                error.gpa,
                error.size,
                bool(flags & MEMORY_ERROR_PRIVATE),
                bool(flags & MEMORY_ERROR_EXPLICIT),
                bool(flags & MEMORY_ERROR_ILLEGAL),
                error.error,
            )
        case ExitReason.MEMORY_FAULT:
            fault = run.memory_error
            return MemoryFaultExit(fault.gpa, fault.size, bool(fault.flags & MEMORY_EXIT_FLAG_PRIVATE), fault.error)
        case ExitReason.MACHINE_CHECK:
            return MachineCheckExit(run.machine_check.gpa, run.machine_check.addr)
        case ExitReason.INTERNAL_ERROR:
            failure = run.emulation_failure
            return InternalErrorExit(bytes(failure.insn_bytes[: failure.insn_size]), failure.gpa)
        case ExitReason.HLT:
            return HltExit()
        case ExitReason.IRQ_WINDOW_OPEN:
            return IrqWindowOpenExit()
        case ExitReason.SHUTDOWN:
            return ShutdownExit()
        case ExitReason.INTR:
            return INTR
    return None


def mmio_data(run: KvmRun, length: int) -> bytes:
    """The bytes of mmio.data: what the guest wrote to a device, or what user space answers."""
    return bytes(run.mmio.data[:length])


def io_data(run: KvmRun, length: int) -> bytes:
    """What the guest wrote to a port, or what user space answers. The struct is that of a KvmRunMapping."""
    return bytes(_mapping(run).io_data[:length])


def set_io_data(run: KvmRun, data: bytes) -> None:
    _mapping(run).io_data[: len(data)] = list(data)


def _mapping(run: KvmRun) -> KvmRunMapping:
    mapping = run._b_base_
    assert isinstance(mapping, KvmRunMapping), "a struct kvm_run without the page after it"
    return mapping
