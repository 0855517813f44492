"""struct kvm_run: offsets as a C compiler computes them from linux/kvm.h, and every exit into it and out again."""

import ctypes

import pytest

from kvmsim.kvm.exits import (
    INTR,
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
    MmioExit,
    ShutdownExit,
)
from kvmsim.kvm.kvm_run import KvmRun, KvmRunMapping, exit_of, fill, mmio_data

OFFSETS = {
    "immediate_exit": 1,
    "exit_reason": 8,
    "ready_for_interrupt_injection": 12,
    "if_flag": 13,
    "flags": 14,
    "cr8": 16,
    "apic_base": 24,
    "mmio.phys_addr": 32,
    "mmio.data": 40,
    "mmio.len": 48,
    "mmio.is_write": 52,
    "io.direction": 32,
    "io.size": 33,
    "io.port": 34,
    "io.count": 36,
    "io.data_offset": 40,
    "hypercall.nr": 32,
    "hypercall.args": 40,
    "hypercall.ret": 88,
    "hypercall.flags": 96,
    "memory_error.flags": 32,
    "memory_error.gpa": 40,
    "memory_error.size": 48,
    "internal.suberror": 32,
    "internal.ndata": 36,
    "internal.data": 40,
    "emulation_failure.flags": 40,
    "emulation_failure.insn_size": 48,
    "emulation_failure.insn_bytes": 49,
    "kvm_valid_regs": 288,
    "kvm_dirty_regs": 296,
    "s": 304,
}
"""offsetof(struct kvm_run, ...) with gcc on x86-64; memory_error is memory_fault there."""

EVERY_EXIT: list[Exit] = [
    MmioExit(0x1234, 4, is_write=False),
    MmioExit(0xFFFF_FFFF_FFF8, 8, True, b"01234567"),
    MmioExit(5, 1, True, b"\xff"),
    IoExit(IoDirection.IN, 4, 0x3FD),
    IoExit(IoDirection.IN, 2, 0xFFFF, 512),
    IoExit(IoDirection.OUT, 1, 0x3F8, 1, b"x"),
    HypercallExit(12, (0x1000, 512, 16, 0, 0, 1 << 63)),
    MemoryErrorExit(0x1000, 4096, private=True),
    MemoryErrorExit(1 << 47, 1 << 40, private=False, explicit=True),
    MemoryErrorExit(0x1000, 4096, True, illegal=True),
    MemoryErrorExit(0x1000, 4096, True, errno=28),
    MachineCheckExit(0x1000, 0x7000),
    InternalErrorExit(b"\x0f\x38\xcc\x06", 0x5000),
    HltExit(),
    IrqWindowOpenExit(),
    ShutdownExit(),
    INTR,
]


def offset_of(name: str) -> int:
    outer, _, inner = name.partition(".")
    struct: type[ctypes.Structure] = KvmRun
    at: int = getattr(struct, outer).offset
    if inner:
        at += getattr(type(getattr(KvmRun(), outer)), inner).offset
    return at


@pytest.mark.parametrize(("name", "offset"), OFFSETS.items(), ids=OFFSETS)
def test_a_field_is_where_the_kernel_has_it(name: str, offset: int) -> None:
    assert offset_of(name) == offset


def test_the_struct_is_as_long_as_the_kernels() -> None:
    assert ctypes.sizeof(KvmRun) == 2352


def test_the_numbers_of_the_exits_are_the_kernels() -> None:
    assert {reason.name: reason.value for reason in ExitReason} == {
        "UNKNOWN": 0,
        "IO": 2,
        "HYPERCALL": 3,
        "HLT": 5,
        "MMIO": 6,
        "IRQ_WINDOW_OPEN": 7,
        "SHUTDOWN": 8,
        "INTR": 10,
        "INTERNAL_ERROR": 17,
        "MEMORY_FAULT": 39,
        "MEMORY_ERROR": 0x1000,
        "MACHINE_CHECK": 0x1001,
    }


@pytest.mark.parametrize("exit_", EVERY_EXIT, ids=[f"{e.reason.name}-{number}" for number, e in enumerate(EVERY_EXIT)])
def test_user_space_reads_out_of_the_struct_what_the_vcpu_met(exit_: Exit) -> None:
    run = KvmRunMapping().run
    for before in EVERY_EXIT:
        fill(run, before)
        fill(run, exit_)
        assert exit_of(run) == exit_, "whatever was there before"
    assert run.exit_reason == exit_.reason


def test_a_vcpu_that_never_exited_has_no_exit() -> None:
    assert exit_of(KvmRunMapping().run) is None


def test_memory_error_has_the_flags_as_bits() -> None:
    run = KvmRunMapping().run
    fill(run, MemoryErrorExit(0, 4096, private=True, explicit=True, illegal=True, errno=5))
    assert (run.memory_error.flags, run.memory_error.error) == (0b111000, 5)
    fill(run, MemoryErrorExit(0, 4096, private=False))
    assert run.memory_error.flags == 0


def test_an_emulation_failure_reads_as_internal_too() -> None:
    run = KvmRunMapping().run
    fill(run, InternalErrorExit(b"\x0f\x38\xcc\x06", 0x5000))
    assert (run.internal.suberror, run.internal.ndata) == (1, 4)
    assert list(run.internal.data[:4]) == [1, int.from_bytes(b"\x04\x0f\x38\xcc\x06\0\0\0", "little"), 0, 0x5000]


def test_an_mmio_read_that_nobody_answers_reads_zeros() -> None:
    run = KvmRunMapping().run
    fill(run, MmioExit(0, 8, True, b"leftover"))
    fill(run, MmioExit(0, 8, is_write=False))
    assert mmio_data(run, 8) == bytes(8)
