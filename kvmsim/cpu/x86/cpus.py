"""Machine code on the vCPUs of a VM: from one exit to the next, as the program of a vCPU.

running -> turn -> stay in guest mode -> why it ended:
    EPT violation    the fault path of every access; mapped: again; MMIO: the operand is bounced; else the exit
    VMCALL, TDCALL   the hypercall, then on behind it
    HLT, #vector     an exit; the guest's handler, or a triple fault
    IN, OUT          found before they run: the exit, and what they do with its answer
"""

import errno
from collections.abc import Callable
from typing import TypeVar

from kvmsim.cpu.accesses import Guest
from kvmsim.kvm.exits import (
    Exit,
    HltExit,
    InternalErrorExit,
    IrqWindowOpenExit,
    MachineCheckExit,
    MmioExit,
    ShutdownExit,
)
from kvmsim.kvm.hypercalls import SHARED_BIT
from kvmsim.kvm.kvm import Kvm
from kvmsim.kvm.vcpu import Program, Vcpu
from memfsd.uapi.errors import Refused
from memfsd.uapi.units import PAGE_SHIFT, PAGE_SIZE, Gfn

from . import decode, interrupts, port_insns
from .calls import call
from .cpuid import cpuid
from .debugger import Debugger
from .engine import Engine, Stop, Why
from .layout import Access, Refusal
from .machine import Machine
from .operands import Bounced
from .program import Image
from .stay import stay
from .virtual_memory import VirtualMemory, fault

R = TypeVar("R")

_HLT = b"\xf4"


class Cpus:
    """Of one VM; a vCPU gets its engine when it first needs one."""

    def __init__(self, kvm: Kvm, guest: Guest, make_engine: Callable[[Machine, Vcpu], Engine] = Engine) -> None:
        self._make_engine = make_engine
        self._kvm = kvm
        self._guest = guest
        self._machine = Machine(kvm)
        self._engines: dict[int, Engine] = {}
        self.memory = VirtualMemory(kvm, guest, self._machine)
        self.debugger: Debugger | None = None
        """Whom each vCPU asks before it runs."""

    def engine(self, vcpu: Vcpu) -> Engine:
        with self._machine.turns:
            engine = self._engines.get(vcpu.id)
            if engine is None:
                engine = self._make_engine(self._machine, vcpu)
                engine.cpuid_hook(cpuid)
                self._machine.add(engine.state)
                self._engines[vcpu.id] = engine
            return engine

    def boot(self, vcpu: Vcpu, image: Image) -> Exit | None:
        """The image into memory by the vCPU, whose registers are reset: RIP its entry, RDI the vCPU's number.

        EFAULT: no slot holds it."""
        for segment in image.segments:
            gpa, private = segment.gpa & ~SHARED_BIT, not segment.gpa & SHARED_BIT
            low, high = Gfn(gpa >> PAGE_SHIFT), Gfn(-(-(gpa + segment.size) // PAGE_SIZE))
            with self._kvm.vm.mmu.lock:
                covered = self._kvm.vm.rules.covers(low, high, private=private)
            if not covered:
                alias = "private" if private else "shared"
                raise Refused(
                    errno.EFAULT,
                    f"no {alias} slot holds gpa {gpa:#x}+{segment.size:#x}: set one that does, or "
                    "choose another address (at= of a flat binary)",
                )
        return vcpu.start(self._booting(vcpu, image))

    def _booting(self, vcpu: Vcpu, image: Image) -> Program[None]:
        engine = self.engine(vcpu)
        for segment in image.segments:
            data = segment.data + bytes(segment.size - len(segment.data))
            yield from self._guest.writing(vcpu, segment.gpa, data)
        engine.reset()
        engine.block_nmis(on=False)
        engine.write("rip", image.entry)
        engine.write("rdi", vcpu.id)

    def registers(self, vcpu: Vcpu) -> dict[str, int]:
        """EBUSY (Refused) while it runs."""
        with vcpu.held():
            return self.engine(vcpu).registers()

    def disassemble(self, vcpu: Vcpu, va: int | None, count: int) -> list[tuple[int, bytes, str]]:
        """(address, bytes, text) of instructions from va, or RIP, as far as there is memory. EBUSY while it runs."""
        with vcpu.held():
            engine = self.engine(vcpu)
            at = engine.read("rip") if va is None else va
            code = self.peek(vcpu, at, count * decode.MAX_INSN_BYTES)
            return list(decode.lines(code, at, count))

    def peek(self, vcpu: Vcpu, va: int, length: int) -> bytes:
        """What a debugger reads: fewer bytes where memory ends. The vCPU is not in guest mode."""
        engine, data = self.engine(vcpu), b""
        while length:
            size = min(length, PAGE_SIZE - va % PAGE_SIZE)
            part = _aside(vcpu, self.memory.read(vcpu, engine, va, size))
            data += part or b""
            if part is None or len(part) < size:
                break
            va, length = va + size, length - size
        return data

    def poke(self, vcpu: Vcpu, va: int, data: bytes) -> bool:
        """What a debugger writes; False where it cannot."""
        return bool(_aside(vcpu, self.memory.write(vcpu, self.engine(vcpu), va, data)))

    def run(self, vcpu: Vcpu, count: int = 0) -> Exit | None:
        """KVM_RUN: to the next exit, or (count) until so many instructions have retired."""
        return vcpu.start(self._reporting(vcpu, self._running(vcpu, count)))

    def _reporting(self, vcpu: Vcpu, running: Program[None]) -> Program[None]:
        """What kvm_run says of interrupts at each exit."""
        engine = self.engine(vcpu)
        for exit_ in running:
            flags = engine.read("rflags")
            vcpu.run.if_flag = bool(flags & interrupts.INTERRUPTS)
            vcpu.run.ready_for_interrupt_injection = vcpu.run.if_flag and vcpu.interrupt is None
            yield exit_

    def _running(self, vcpu: Vcpu, count: int) -> Program[None]:
        engine = self.engine(vcpu)
        engine.flush_code()
        left = count
        while True:
            yield from vcpu.entry()
            debugger, steps = self.debugger, 1 if count else 0
            if debugger is not None:
                steps = debugger.before(vcpu, engine.read("rip")) or steps
                if vcpu.run.immediate_exit:
                    continue
                steps = steps or len(debugger.breakpoints)  # each instruction is looked at
            is_asked = vcpu.interrupt is not None or vcpu.run.request_interrupt_window
            if is_asked or vcpu.nmi_count or engine.state.wants_window:
                steps = (yield from self._interrupting(vcpu, engine)) or steps
            code = (yield from self._code(vcpu, engine)) if steps else b""
            is_hlt, done = code.startswith(_HLT), 1
            is_iret = vcpu.is_in_nmi and decode.is_iret(code)
            if steps and (is_iret or decode.port(code) or decode.is_invalid(code)):
                stop = Stop(Why.STOP, code=code)
            else:
                stop = self._stretch(vcpu, engine, 1 if steps else 0)
            if stop.why is Why.COUNTED and is_hlt:
                yield from self._halting(vcpu, engine)
            elif stop.why is not Why.COUNTED:
                done = yield from self._handle(vcpu, engine, stop, is_stepped=bool(steps))
            rip = engine.read("rip") if debugger else 0
            if debugger and done and (rip in debugger.breakpoints or debugger.is_stepping(vcpu)):
                debugger.reached(vcpu, rip)
            left -= done
            if count and left <= 0:
                return

    def _interrupting(self, vcpu: Vcpu, engine: Engine) -> Program[int]:
        """Before a stretch: what is queued, if the guest takes it. 1: it does after one instruction."""
        while True:
            takes_nmi = vcpu.nmi_count and not vcpu.is_in_nmi
            is_set = bool(engine.read("rflags") & interrupts.INTERRUPTS)
            wants = vcpu.interrupt is not None or bool(vcpu.run.request_interrupt_window)
            waits = takes_nmi or (is_set and wants)
            if not waits or (yield from interrupts.is_in_shadow(self.memory, vcpu, engine)):
                engine.state.wants_window = wants and not waits
                return int(waits)
            if takes_nmi:
                vcpu.nmi_count -= 1
                engine.block_nmis(on=True)
                yield from self._external(vcpu, engine, interrupts.NMI)
            elif vcpu.interrupt is not None:
                vector, vcpu.interrupt = vcpu.interrupt, None
                yield from self._external(vcpu, engine, vector)
            else:
                yield IrqWindowOpenExit()
                yield from vcpu.entry()

    def _external(self, vcpu: Vcpu, engine: Engine, vector: int) -> Program[None]:
        """No instruction does it again: a triple fault lasts."""
        while not (yield from self._delivered(vcpu, engine, vector)):
            yield from vcpu.entry()

    def _halting(self, vcpu: Vcpu, engine: Engine) -> Program[None]:
        """An interrupt that can come wakes it at once."""
        takes_irq = vcpu.interrupt is not None and engine.read("rflags") & interrupts.INTERRUPTS
        if not takes_irq and (not vcpu.nmi_count or vcpu.is_in_nmi):
            yield HltExit()

    def _stretch(self, vcpu: Vcpu, engine: Engine, count: int) -> Stop:
        with self._machine.turns:
            return stay(self._machine, vcpu, engine, lambda: engine.run(count))

    def _handle(self, vcpu: Vcpu, engine: Engine, stop: Stop, *, is_stepped: bool = True) -> Program[int]:
        """What ended a stretch; how many instructions it has done by itself."""
        match stop.why:
            case Why.HALTED:
                yield from self._halting(vcpu, engine)
                return 1
            case Why.STOP:
                return (yield from self._stopped(vcpu, engine, stop.code, is_stepped=is_stepped))
            case Why.INVALID:
                code = yield from self._code(vcpu, engine)
                if (yield from call(self._kvm, self._guest, vcpu, engine, code)):
                    return 1
                yield from self._exception(vcpu, engine, interrupts.INVALID_OPCODE)
            case Why.EXCEPTION:
                yield from self._exception(vcpu, engine, stop.vector)
            case Why.MACHINE_CHECK:
                yield MachineCheckExit(stop.gpa & -PAGE_SIZE, stop.va)
            case Why.REFUSED:
                return (yield from self._refused(vcpu, engine, stop))
        return 0

    def _stopped(self, vcpu: Vcpu, engine: Engine, code: bytes, *, is_stepped: bool) -> Program[int]:
        """Before an instruction that unicorn must not come to."""
        insn = decode.port(code)
        if insn is None:
            code = yield from self._code(vcpu, engine)  # it may be on two pages
            insn = decode.port(code)
        if insn is None:
            if vcpu.is_in_nmi and decode.is_iret(code):
                return (yield from self._iret(vcpu, engine))
            if decode.is_invalid(code):
                return (yield from self._handle(vcpu, engine, Stop(Why.INVALID)))
            engine.forget_stops()  # the code has changed
            return 0
        try:
            yield from port_insns.transfer(self.memory, self._guest, vcpu, engine, insn, is_stepped=is_stepped)
        except port_insns.NoMemory as missing:
            yield from self._no_memory(vcpu, engine, missing.va, missing.access)
            return 0
        return 1

    def _iret(self, vcpu: Vcpu, engine: Engine) -> Program[int]:
        """It ends the blocking of NMIs, also if it faults."""
        stop = self._stretch(vcpu, engine, 1)
        if stop.why is not Why.KICKED and stop.refusal in (Refusal.NONE, Refusal.PAGE_FAULT, Refusal.NOT_CANONICAL):
            engine.block_nmis(on=False)
        return 1 if stop.why is Why.COUNTED else (yield from self._handle(vcpu, engine, stop))

    def _no_memory(self, vcpu: Vcpu, engine: Engine, va: int, access: Access) -> Program[None]:
        """An operand that is reached by hand."""
        engine.write("cr2", va)
        yield from self._exception(vcpu, engine, interrupts.PAGE_FAULT, (access is Access.WRITE) << 1, va)

    def _refused(self, vcpu: Vcpu, engine: Engine, stop: Stop) -> Program[int]:
        match stop.refusal:
            case Refusal.GATE_CLOSED:
                self._kvm.walking.wait()
            case Refusal.PAGE_FAULT:
                engine.write("cr2", stop.va)
                yield from self._exception(vcpu, engine, interrupts.PAGE_FAULT, stop.error_code, stop.va)
            case Refusal.NOT_CANONICAL | Refusal.BEYOND:
                yield from self._exception(vcpu, engine, interrupts.GENERAL_PROTECTION, va=stop.va)
            case Refusal.VIOLATION:
                exit_ = fault(self._kvm, vcpu, stop)
                if isinstance(exit_, MmioExit):
                    return (yield from self._bounce(vcpu, engine, stop))
                if exit_ is not None:
                    yield exit_
            case Refusal.UNREACHABLE:
                return (yield from self._bounce(vcpu, engine, stop))
        return 0

    def _exception(
        self, vcpu: Vcpu, engine: Engine, vector: int, error_code: int = 0, va: int | None = None
    ) -> Program[None]:
        yield from self._delivered(vcpu, engine, vector, error_code, va)

    def _delivered(
        self, vcpu: Vcpu, engine: Engine, vector: int, error_code: int = 0, va: int | None = None
    ) -> Program[bool]:
        if (yield from interrupts.deliver(self.memory, vcpu, engine, vector, error_code)):
            return True
        name = interrupts.NAMES.get(vector, f"vector {vector:#x}")
        at = "" if va is None else f", address {va:#x}"
        yield ShutdownExit(f"triple fault: {name} at rip {engine.read('rip'):#x}{at}, and the guest has no handler")
        return False

    def _code(self, vcpu: Vcpu, engine: Engine) -> Program[bytes]:
        """The bytes at RIP, as many as there are."""
        rip = engine.read("rip")
        within = min(decode.MAX_INSN_BYTES, PAGE_SIZE - rip % PAGE_SIZE)
        code = yield from self.memory.read(vcpu, engine, rip, within)
        if within < decode.MAX_INSN_BYTES and decode.is_cut(code):
            code += yield from self.memory.read(vcpu, engine, rip + within, decode.MAX_INSN_BYTES - within)
        return code

    # -- operands that the CPU does not reach

    def _bounce(self, vcpu: Vcpu, engine: Engine, stop: Stop) -> Program[int]:
        """In the vCPU's turn from the reads to the writes, but for exits: LOCK is atomic in a file, too."""
        body = self._bouncing(vcpu, engine, stop)
        while True:
            with self._machine.turns:
                try:
                    exit_ = next(body)
                except StopIteration as end:
                    done: int = end.value
                    return done
            yield exit_

    def _bouncing(self, vcpu: Vcpu, engine: Engine, stop: Stop) -> Program[int]:
        code = yield from self._code(vcpu, engine)
        bounced = Bounced(engine, decode.operands(code, engine.read("rip"), engine.read) or [])
        while True:
            if stop.access is Access.FETCH or stop.of_table or not bounced.add(stop.va, stop.gpa):
                yield InternalErrorExit(code, stop.gpa & ~SHARED_BIT)
                return 0
            while (page := bounced.next_page()) is not None:
                gpa = yield from self.memory.translate(vcpu, engine, page, stop.access, devices=True)
                if gpa is None:
                    yield from self._no_memory(vcpu, engine, page, stop.access)
                    return 0
                bounced.add(page, gpa)
            stop = yield from self._step(vcpu, engine, bounced)
            if stop.why is Why.COUNTED:
                yield from bounced.drain(self._guest, vcpu)
                return 1
            if stop.refusal not in (Refusal.VIOLATION, Refusal.UNREACHABLE):
                return (yield from self._handle(vcpu, engine, stop))

    def _step(self, vcpu: Vcpu, engine: Engine, bounced: Bounced) -> Program[Stop]:
        """The instruction on its scratch pages; the stop says which other page it does not reach."""
        while True:
            yield from bounced.fill(self._guest, vcpu)
            yield from vcpu.entry()
            bounced.show()
            try:
                stop = self._stretch(vcpu, engine, 1)
            finally:
                bounced.hide()
            if stop.refusal is Refusal.VIOLATION:
                exit_ = fault(self._kvm, vcpu, stop)
                if isinstance(exit_, MmioExit):
                    return stop
                if exit_ is not None:
                    yield exit_
            elif stop.refusal is Refusal.GATE_CLOSED:
                self._kvm.walking.wait()
            elif stop.why is not Why.KICKED and stop.refusal not in (Refusal.NOT_COPIED, Refusal.NOT_MAPPED):
                return stop


def _aside(vcpu: Vcpu, program: Program[R]) -> R | None:
    """Its result, if it comes to one without an exit. That user space wants the vCPU back is no reason to stop."""
    wanted_back = vcpu.run.immediate_exit
    vcpu.run.immediate_exit = 0
    try:
        next(program)
    except StopIteration as end:
        result: R = end.value
        return result
    finally:
        if wanted_back:
            vcpu.request_exit()
    program.close()
    return None
