"""Instructions: their memory operands, for those that a device or a file answers, port instructions, and their text."""

import functools
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
_IN_MNEMONICS = {iced.Mnemonic.IN, iced.Mnemonic.INSB, iced.Mnemonic.INSW, iced.Mnemonic.INSD}
_OUT_MNEMONICS = {iced.Mnemonic.OUT, iced.Mnemonic.OUTSB, iced.Mnemonic.OUTSW, iced.Mnemonic.OUTSD}
_PORT_MNEMONICS = _IN_MNEMONICS | _OUT_MNEMONICS
_SEGMENT_BASES = {iced.Register.FS: "fs_base", iced.Register.GS: "gs_base"}
_IRET_MNEMONICS = {iced.Mnemonic.IRET, iced.Mnemonic.IRETD, iced.Mnemonic.IRETQ}
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
        if used.segment in _SEGMENT_BASES:
            va = va + register(_SEGMENT_BASES[used.segment]) & _U64
        found.append(Operand(va, length, used.access in _READS, used.access in _WRITES))
    return found


_SEGMENTS = {iced.Register.FS: "fs", iced.Register.GS: "gs"}
_ADDRESSES_OF_32_BITS = {iced.OpKind.MEMORY_ESEDI, iced.OpKind.MEMORY_SEG_ESI}


@dataclass(frozen=True, slots=True)
class Port:
    """IN, OUT, INS or OUTS."""

    is_in: bool
    size: int
    """Bytes of one transfer."""
    length: int
    """Of the instruction."""
    number: int | None = None
    """Of the port; None: DX has it."""
    is_string: bool = False
    repeats: bool = False
    address_mask: int = _U64
    """Of RCX, RSI and RDI."""
    segment: str | None = None
    """Whose base is added to RSI."""


@functools.lru_cache(1024)
def port(code: bytes) -> Port | None:
    """The port instruction that the code begins with; None: another one."""
    insn = iced.Decoder(64, code).decode()
    if insn.mnemonic not in _PORT_MNEMONICS:
        return None
    is_in, is_string = insn.mnemonic in _IN_MNEMONICS, insn.is_string_instruction
    kinds = {insn.op_kind(operand) for operand in range(insn.op_count)}
    accumulator = insn.op_register(0 if is_in else 1)
    return Port(
        is_in=is_in,
        size=iced.MemorySizeInfo(insn.memory_size).size if is_string else iced.RegisterInfo(accumulator).size,
        length=insn.len,
        number=insn.immediate8 if iced.OpKind.IMMEDIATE8 in kinds else None,
        is_string=is_string,
        repeats=is_string and (insn.has_rep_prefix or insn.has_repne_prefix),
        address_mask=0xFFFFFFFF if kinds & _ADDRESSES_OF_32_BITS else _U64,
        segment=_SEGMENTS.get(insn.segment_prefix),
    )


def is_invalid(code: bytes) -> bool:
    """No instruction begins here, though the bytes of one are there."""
    decoder = iced.Decoder(64, code)
    return bool(decoder.decode().is_invalid and decoder.last_error != iced.DecoderError.NO_MORE_BYTES)


def is_iret(code: bytes) -> bool:
    return iced.Decoder(64, code).decode().mnemonic in _IRET_MNEMONICS


def is_in_shadow(before: bytes) -> bool:
    """An instruction after which interrupts wait for another one, STI or MOV SS, may end these bytes."""
    return before.endswith(b"\xfb") or any(_is_mov_ss(before[at:]) for at in range(len(before)))


def _is_mov_ss(code: bytes) -> bool:
    if 0x8E not in code:
        return False
    instruction = iced.Decoder(64, code).decode()
    loads_ss = instruction.mnemonic == iced.Mnemonic.MOV and instruction.op0_register == iced.Register.SS
    return bool(loads_ss and instruction.len == len(code))


def first_stop(code: bytes, va: int, *, irets: bool) -> int | None:
    """The address of the first instruction that uses a port, is none, or is IRET (if asked for)."""
    wanted = _PORT_MNEMONICS | _IRET_MNEMONICS if irets else _PORT_MNEMONICS
    for instruction in iced.Decoder(64, code, ip=va):
        if instruction.is_invalid or instruction.mnemonic in wanted:
            return int(instruction.ip)
    return None


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
