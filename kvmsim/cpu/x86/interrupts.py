"""Exceptions and interrupts at CPL 0, delivered by hand: the emulator has none. Through a 64-bit gate of the IDT, onto
the stack in use or one of the TSS (IST), as the CPU does without a change of privilege; IRET returns by itself.
"""

import struct

from kvmsim.kvm.vcpu import Program, Vcpu
from memfsd.uapi.units import PAGE_SIZE

from . import decode
from .engine import Engine
from .virtual_memory import VirtualMemory

DIVIDE, NMI, INVALID_OPCODE, GENERAL_PROTECTION, PAGE_FAULT = 0, 2, 6, 13, 14
NAMES = {
    0: "#DE",
    1: "#DB",
    2: "NMI",
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
_U64 = (1 << 64) - 1
_FIRST_IST = 0x24
"""Of a 64-bit TSS."""


def is_in_shadow(memory: VirtualMemory, vcpu: Vcpu, engine: Engine) -> Program[bool]:
    """The last instruction was STI or MOV SS, or the bytes before RIP look like it, which costs a step, no more."""
    rip = engine.read("rip")
    within = min(decode.MAX_INSN_BYTES, rip)
    before = yield from memory.read(vcpu, engine, rip - within, within)
    if len(before) < within and rip % PAGE_SIZE < within:  # the page before is not there
        before = yield from memory.read(vcpu, engine, rip & -PAGE_SIZE, rip % PAGE_SIZE)
    return decode.is_in_shadow(before)


def deliver(memory: VirtualMemory, vcpu: Vcpu, engine: Engine, vector: int, error_code: int = 0) -> Program[bool]:
    """False: the guest has no handler that can be reached, which ends in a triple fault."""
    _, base, limit, _ = engine.table("idtr")
    if limit < vector * 16 + 15:
        return False
    gate = yield from memory.read(vcpu, engine, base + vector * 16, 16)
    if len(gate) < 16:
        return False
    low, selector, ist, kind, middle, high, _ = _GATE.unpack(gate)
    if not kind & _PRESENT or kind & 0xF not in (_INTERRUPT_GATE, _TRAP_GATE):
        return False
    flags, stack = engine.read("rflags"), engine.read("rsp")
    to = stack if not ist & 7 else (yield from _ist(memory, vcpu, engine, ist & 7))
    if to is None:
        return False
    pushed = [engine.read("ss"), stack, flags, engine.read("cs"), engine.read("rip")]
    if vector in _WITH_ERROR:
        pushed.append(error_code)
    frame = struct.pack(f"<{len(pushed)}Q", *reversed(pushed))
    to = (to & -16) - len(frame)
    if not (yield from memory.write(vcpu, engine, to & (1 << 64) - 1, frame)):
        return False
    engine.write("rsp", to & _U64)
    engine.write("rip", low | middle << 16 | high << 32)
    engine.write("rflags", flags & ~(_TF | (INTERRUPTS if kind & 0xF == _INTERRUPT_GATE else 0)))
    if selector != engine.read("cs"):
        engine.write("cs", selector)
    return True


def _ist(memory: VirtualMemory, vcpu: Vcpu, engine: Engine, number: int) -> Program[int | None]:
    """A stack of the task state segment; None: it has none."""
    _, base, limit, _ = engine.table("tr")
    at = _FIRST_IST + 8 * (number - 1)
    entry = b"" if limit < at + 7 else (yield from memory.read(vcpu, engine, base + at & _U64, 8))
    return int.from_bytes(entry, "little") if len(entry) == 8 else None
