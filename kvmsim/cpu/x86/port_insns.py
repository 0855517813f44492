"""IN, OUT, INS and OUTS: the exit, and what the instruction does when user space has answered.

A memory operand is reached before an IN exits, so that no data of a device is lost to a fault. Repeated OUTS exits for
each transfer; INS asks for several at once, within a page and 1024 bytes, as KVM does. At each exit the registers are
those of a whole number of transfers, so that the instruction can be restarted there.
"""

from kvmsim.cpu.accesses import Guest
from kvmsim.cpu.port_io import port_in, port_out
from kvmsim.kvm.vcpu import Program, Vcpu
from memfsd.uapi.units import PAGE_SIZE

from .decode import Port
from .engine import Engine
from .layout import Access
from .virtual_memory import VirtualMemory

_U64 = (1 << 64) - 1
_DF = 1 << 10
_MAX_AHEAD_BYTES = 1024
"""Of INS: what KVM's emulator reads at once."""


class NoMemory(Exception):
    """The guest's tables do not lead from `va` to memory, or a device, for this access."""

    def __init__(self, va: int, access: Access) -> None:
        super().__init__(f"{access.name} {va:#x}")
        self.va, self.access = va, access


def transfer(
    memory: VirtualMemory, guest: Guest, vcpu: Vcpu, engine: Engine, insn: Port, *, is_stepped: bool
) -> Program[None]:
    """One exit of the instruction at RIP, which then is after it, or still at it if there is more to repeat.

    NoMemory: of its operand; nothing has happened."""
    rip = engine.read("rip")
    if insn.is_string:
        is_over = yield from _string(memory, guest, vcpu, engine, insn, is_stepped=is_stepped)
    else:
        yield from _register(vcpu, engine, insn)
        is_over = True
    if is_over and engine.read("rip") == rip:  # else user space has set it meanwhile
        engine.write("rip", rip + insn.length & _U64)


def _register(vcpu: Vcpu, engine: Engine, insn: Port) -> Program[None]:
    number = insn.number if insn.number is not None else engine.read("rdx") & 0xFFFF
    mask = (1 << 8 * insn.size) - 1
    if insn.is_in:
        value = int.from_bytes((yield from port_in(vcpu, number, insn.size)), "little")
        kept = 0 if insn.size == 4 else engine.read("rax") & ~mask
        engine.write("rax", kept | value)
    else:
        yield from port_out(vcpu, number, insn.size, (engine.read("rax") & mask).to_bytes(insn.size, "little"))


def _string(
    memory: VirtualMemory, guest: Guest, vcpu: Vcpu, engine: Engine, insn: Port, *, is_stepped: bool
) -> Program[bool]:
    """True: the last repetition is done."""
    mask, size, number = insn.address_mask, insn.size, engine.read("rdx") & 0xFFFF
    left = engine.read("rcx") & mask if insn.repeats else 1
    if not left:
        return True
    index = "rdi" if insn.is_in else "rsi"
    at, step = engine.read(index) & mask, -size if engine.read("rflags") & _DF else size
    if insn.is_in:
        in_page = at % PAGE_SIZE if step < 0 else PAGE_SIZE - at % PAGE_SIZE
        count = 1 if is_stepped else max(1, min(in_page, _MAX_AHEAD_BYTES, left * size) // size)
        low = at + min(0, step * (count - 1))
        for piece, _ in memory.pages(low, count * size):
            yield from _reach(memory, vcpu, engine, piece, Access.WRITE)
        data = yield from port_in(vcpu, number, size, count)
        if step < 0:
            data = b"".join(data[item * size : (item + 1) * size] for item in reversed(range(count)))
        done = 0
        for piece, length in memory.pages(low, len(data)):
            gpa = yield from _reach(memory, vcpu, engine, piece, Access.WRITE)
            yield from guest.writing(vcpu, gpa, data[done : done + length])
            done += length
        engine.flush_code()
    else:
        count, base = 1, engine.read(f"{insn.segment}_base") if insn.segment else 0
        data = b""
        for piece, length in memory.pages(base + at & _U64, size):
            gpa = yield from _reach(memory, vcpu, engine, piece, Access.READ)
            data += yield from guest.reading(vcpu, gpa, length)
        yield from port_out(vcpu, number, size, data)
    engine.write(index, at + step * count & mask)
    if insn.repeats:
        engine.write("rcx", left - count)
    return left == count or not insn.repeats


def _reach(memory: VirtualMemory, vcpu: Vcpu, engine: Engine, va: int, access: Access) -> Program[int]:
    gpa = yield from memory.translate(vcpu, engine, va, access, devices=True)
    if gpa is None:
        raise NoMemory(va, access)
    return gpa
