"""VMCALL and TDCALL: the registers of a call of the guest, and what KVM and the TDX module answer."""

from kvmsim.cpu.accesses import Guest
from kvmsim.kvm.hypercalls import Registers
from kvmsim.kvm.kvm import Kvm
from kvmsim.kvm.region import GPA_END
from kvmsim.kvm.vcpu import Program, Vcpu
from kvmsim.kvm.vmcall import tdvmcall, vmcall
from memfsd.uapi.units import PAGE_SIZE

from .cpuid import GPA_BITS
from .decode import TDCALL, VMCALL
from .engine import Engine

_VP_VMCALL, _VP_INFO, _PAGE_ACCEPT = 0, 1, 6
_OPERAND_INVALID = 0xC000_0100_0000_0000
_MAX_LEVEL = 2


def call(kvm: Kvm, guest: Guest, vcpu: Vcpu, engine: Engine, code: bytes) -> Program[bool]:
    """The call that these bytes at RIP are; RIP is behind it when it has returned. False: they are none."""
    if code.startswith(VMCALL):
        args = [engine.read(name) for name in ("rbx", "rcx", "rdx", "rsi")]
        engine.write("rax", (yield from vmcall(kvm, vcpu, engine.read("rax"), args)))
        engine.write("rip", engine.read("rip") + len(VMCALL))
        return True
    if code.startswith(TDCALL):
        engine.write("rax", (yield from _tdcall(kvm, guest, vcpu, engine)))
        engine.write("rip", engine.read("rip") + len(TDCALL))
        return True
    return False


def _tdcall(kvm: Kvm, guest: Guest, vcpu: Vcpu, engine: Engine) -> Program[int]:
    """RAX."""
    leaf = engine.read("rax")
    if leaf == _VP_VMCALL:
        asked = Registers(*(engine.read(f"r{number}") for number in range(10, 16)))
        answer = yield from tdvmcall(kvm, vcpu, asked)
        engine.write("r10", answer.r10)
        engine.write("r11", answer.r11)
        return 0
    if leaf == _VP_INFO:
        for name in ("rdx", "r9", "r10", "r11"):
            engine.write(name, 0)
        engine.write("rcx", GPA_BITS)
        engine.write("r8", len(kvm.vm.vcpus))
        return 0
    if leaf == _PAGE_ACCEPT:
        gpa, level = engine.read("rcx") & -PAGE_SIZE, engine.read("rcx") & 7
        size = PAGE_SIZE << 9 * level
        if level > _MAX_LEVEL or gpa % size or gpa + size > GPA_END:
            return _OPERAND_INVALID
        yield from guest.accepting(vcpu, gpa, size)
        return 0
    return _OPERAND_INVALID
