"""Memory by virtual address, as the program of a vCPU reads and writes it: for decoding, interrupts, and debuggers."""

from kvmsim.cpu.accesses import Guest
from kvmsim.kvm.exits import Exit, MachineCheckExit, MmioExit
from kvmsim.kvm.hypercalls import SHARED_BIT
from kvmsim.kvm.kvm import Kvm
from kvmsim.kvm.vcpu import Program, Vcpu
from memfsd.uapi.units import PAGE_SHIFT, PAGE_SIZE, Gfn

from .engine import Engine, Stop, Why
from .layout import Access, Refusal
from .machine import Machine
from .stay import stay


class VirtualMemory:
    """Of one VM. The bytes go the way of every access of a guest; only the address is found by the CPU's own walk."""

    def __init__(self, kvm: Kvm, guest: Guest, machine: Machine) -> None:
        self._kvm = kvm
        self._guest = guest
        self._machine = machine

    def read(self, vcpu: Vcpu, engine: Engine, va: int, length: int) -> Program[bytes]:
        """Fewer bytes where the guest's own tables end, or its memory."""
        data = b""
        for at, size in self.pages(va, length):
            gpa = yield from self.translate(vcpu, engine, at, Access.READ)
            if gpa is None:
                break
            data += yield from self._guest.reading(vcpu, gpa, size)
        return data

    def write(self, vcpu: Vcpu, engine: Engine, va: int, data: bytes) -> Program[bool]:
        """False: the guest's own tables do not let it."""
        for at, size in self.pages(va, len(data)):
            gpa = yield from self.translate(vcpu, engine, at, Access.WRITE)
            if gpa is None:
                return False
            yield from self._guest.writing(vcpu, gpa, data[at - va : at - va + size])
        engine.flush()
        return True

    def translate(
        self, vcpu: Vcpu, engine: Engine, va: int, access: Access, *, devices: bool = False
    ) -> Program[int | None]:
        """The guest physical address; None where the guest's tables have none or, unless `devices`, no memory is."""
        while True:
            with self._machine.turns:
                found = stay(self._machine, vcpu, engine, lambda: engine.look(va, access))
            if not isinstance(found, Stop):
                return found[0]
            if found.refusal is Refusal.UNREACHABLE and not found.of_table:
                return found.gpa
            if found.why is Why.MACHINE_CHECK:
                yield MachineCheckExit(found.gpa & -PAGE_SIZE, found.va)
            elif found.refusal is Refusal.VIOLATION:
                exit_ = fault(self._kvm, vcpu, found)
                if isinstance(exit_, MmioExit):
                    return found.gpa if devices and not found.of_table else None
                if exit_ is not None:
                    yield exit_
            elif found.refusal is Refusal.GATE_CLOSED:
                self._kvm.walking.wait()
            elif found.refusal not in (Refusal.NOT_COPIED, Refusal.NOT_MAPPED):
                return None
            yield from vcpu.entry()

    @staticmethod
    def pages(va: int, length: int) -> list[tuple[int, int]]:
        """(address, bytes) of each part that lies in one page."""
        parts = []
        while length:
            size = min(length, PAGE_SIZE - va % PAGE_SIZE)
            parts.append((va, size))
            va, length = (va + size) % (1 << 64), length - size
        return parts


def fault(kvm: Kvm, vcpu: Vcpu, stop: Stop, length: int = 1) -> Exit | None:
    """The EPT violation, handled as that of any access: None when the page is mapped, else the exit."""
    gpa, shared = stop.gpa & ~SHARED_BIT, bool(stop.gpa & SHARED_BIT)
    return kvm.faults.fault(
        vcpu,
        Gfn(gpa >> PAGE_SHIFT),
        shared=shared,
        write=stop.access is Access.WRITE,
        offset=gpa % PAGE_SIZE,
        length=length,
    )
