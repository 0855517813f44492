"""Exceptions and interrupts at CPL 0, delivered by hand: the emulator has none. Through a 64-bit gate of the IDT, onto
the stack that is in use, as the CPU does without a change of privilege; IRET returns by itself."""

import struct

from kvmsim.kvm.vcpu import Program, Vcpu

from .engine import Engine
from .virtual_memory import VirtualMemory

DIVIDE, INVALID_OPCODE, GENERAL_PROTECTION, PAGE_FAULT = 0, 6, 13, 14
NAMES = {
    0: "#DE",
    1: "#DB",
    3: "#BP",
    4: "#OF",
    5: "#BR",
    6: "#UD",
    8: "#DF",
    12: "#SS",
    13: "#GP",
    14: "#PF",
    16: "#MF",
}
_WITH_ERROR = frozenset({8, 10, 11, 12, 13, 14, 17, 21})
_GATE = struct.Struct("<HHBBHII")
_PRESENT = 0x80
_INTERRUPT_GATE, _TRAP_GATE = 0xE, 0xF
INTERRUPTS = 1 << 9
"""RFLAGS.IF."""
_TF = 1 << 8
_STI = b"\xfb"


def is_window_open(memory: VirtualMemory, vcpu: Vcpu, engine: Engine) -> Program[bool]:
    """IF is set, and the last instruction was not the STI that set it (nor looks like it, which costs one more)."""
    if not engine.read("rflags") & INTERRUPTS:
        return False
    last = yield from memory.read(vcpu, engine, engine.read("rip") - 1 & (1 << 64) - 1, 1)
    return last != _STI


def deliver(memory: VirtualMemory, vcpu: Vcpu, engine: Engine, vector: int, error_code: int = 0) -> Program[bool]:
    """False: the guest has no handler that can be reached, which ends in a triple fault."""
    _, base, limit, _ = engine.table("idtr")
    if limit < vector * 16 + 15:
        return False
    gate = yield from memory.read(vcpu, engine, base + vector * 16, 16)
    if len(gate) < 16:
        return False
    low, selector, _, kind, middle, high, _ = _GATE.unpack(gate)
    if not kind & _PRESENT or kind & 0xF not in (_INTERRUPT_GATE, _TRAP_GATE):
        return False
    flags, stack = engine.read("rflags"), engine.read("rsp")
    pushed = [engine.read("ss"), stack, flags, engine.read("cs"), engine.read("rip")]
    if vector in _WITH_ERROR:
        pushed.append(error_code)
    frame = struct.pack(f"<{len(pushed)}Q", *reversed(pushed))
    to = (stack & -16) - len(frame)
    if not (yield from memory.write(vcpu, engine, to & (1 << 64) - 1, frame)):
        return False
    engine.write("rsp", to & (1 << 64) - 1)
    engine.write("rip", low | middle << 16 | high << 32)
    engine.write("rflags", flags & ~(_TF | (INTERRUPTS if kind & 0xF == _INTERRUPT_GATE else 0)))
    if selector != engine.read("cs"):
        engine.write("cs", selector)
    return True
