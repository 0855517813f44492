"""Instructions: their memory operands, for those that a device or a file answers, and their text."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import iced_x86 as iced

MAX_INSN_BYTES = 15
VMCALL = b"\x0f\x01\xc1"
TDCALL = b"\x66\x0f\x01\xcc"
_READS = {iced.OpAccess.READ, iced.OpAccess.COND_READ, iced.OpAccess.READ_WRITE, iced.OpAccess.READ_COND_WRITE}
_WRITES = {iced.OpAccess.WRITE, iced.OpAccess.COND_WRITE, iced.OpAccess.READ_WRITE, iced.OpAccess.READ_COND_WRITE}
_REGISTER_NAMES = {
    getattr(iced.Register, name): name.lower() for name in vars(iced.Register) if name.isupper() and name != "NONE"
}
_U64 = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Operand:
    """Bytes of memory that an instruction reads, writes, or both. One iteration's, where it is repeated."""

    va: int
    length: int
    reads: bool
    writes: bool

    def pages(self) -> range:
        """Virtual addresses of the pages that it touches."""
        return range(self.va & -4096, self.va + self.length, 4096)


def operands(code: bytes, rip: int, register: Callable[[str], int]) -> list[Operand] | None:
    """Those of the instruction at rip, with the registers as they are before it. None: not an instruction."""
    instruction = iced.Decoder(64, code, ip=rip).decode()
    if instruction.is_invalid:
        return None
    found: list[Operand] = []
    for used in iced.InstructionInfoFactory().info(instruction).used_memory():
        # How much all iterations touch is not known; one is stopped after each.
        length = iced.MemorySizeInfo(used.memory_size).size or iced.MemorySizeInfo(instruction.memory_size).size
        if not length or used.access == iced.OpAccess.NO_MEM_ACCESS:
            continue
        va = used.displacement + _value(used.base, register) + _value(used.index, register) * used.scale
        va &= 0xFFFFFFFF if used.address_size == iced.CodeSize.CODE32 else _U64
        found.append(Operand(va, length, used.access in _READS, used.access in _WRITES))
    return found


def _value(number: int, register: Callable[[str], int]) -> int:
    if number == iced.Register.NONE:
        return 0
    info = iced.RegisterInfo(number)
    if number in (iced.Register.RIP, iced.Register.EIP):
        return 0  # an operand relative to it has its target in the displacement
    if iced.Register.ES <= number <= iced.Register.GS:
        return 0
    mask: int = (1 << info.size * 8) - 1
    return register(_REGISTER_NAMES[info.full_register]) & mask


def is_cut(code: bytes) -> bool:
    """The instruction goes on after these bytes."""
    decoder = iced.Decoder(64, code)
    decoder.decode()
    return bool(decoder.last_error == iced.DecoderError.NO_MORE_BYTES)


def lines(code: bytes, va: int, count: int) -> Iterator[tuple[int, bytes, str]]:
    """(address, bytes, text) of up to so many instructions."""
    formatter = iced.Formatter(iced.FormatterSyntax.NASM)
    decoder = iced.Decoder(64, code, ip=va)
    for instruction in decoder:
        if not count:
            return
        at, size = instruction.ip - va, instruction.len
        raw = code[at : at + size]
        yield instruction.ip, raw, "(bad)" if instruction.is_invalid else formatter.format(instruction)
        count -= 1
