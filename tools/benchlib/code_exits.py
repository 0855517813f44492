"""C4: a fault from machine code against one from Python. C5: conversions that machine code asks for, against Python's.

C4 writes a byte in every second page in random order, so that nothing is read ahead: each is a fault that takes a
message to the store. C5 is MapGPA of one page to shared and back, under policy overlay: the exit, the VMM's conversion,
and the next entry.
"""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter

from benchlib import our_mount
from benchlib.figure import Figure, Part, Progress, spread
from benchlib.machine import first_cpu, pin
from benchlib.plain_unicorn import CODE, DATA
from kvmsim.cpu.x86.library import check
from kvmsim.kvm.exits import HltExit
from kvmsim.kvm.region import MemoryRegion
from kvmsim.machine import VirtualMachine
from memfsd.uapi.errors import Refused
from memfsd.uapi.limits import MAX_SLOTS
from memfsd.uapi.units import PAGE_SHIFT, PAGE_SIZE

Seconds = Callable[[VirtualMachine, int, int], float]
"""Of one run: the VM, the address, the count."""

_STEP, _OFFSET = 1664525, 1013904223
_TOUCH = bytes.fromhex(
    "4869c00d66190048055ff36e3c4821f0"  # 1: imul $STEP, %rax, %rax; add $OFFSET, %rax; and %rsi, %rax
    "4889c248c1e20dc604170148ffc975e0"  # mov %rax, %rdx; shl $13, %rdx; movb $1, (%rdi,%rdx); dec %rcx; jnz 1b
    "f4"  # hlt
)
_CONVERT = bytes.fromhex(
    "31c0b900fc00004531d241bb01000100"  # 1: xor %eax, %eax; mov $0xfc00, %ecx; xor %r10d, %r10d; mov $0x10001, %r11d
    "4989f441bd00100000660f01cc4d85d2"  # mov %rsi, %r12; mov $0x1000, %r13d; tdcall; test %r10, %r10
    "750a480fbafe3348ffcb75d4"  # jnz 2f; btc $51, %rsi; dec %rbx; jnz 1b
    "f4"  # 2: hlt
)
_SHARED = 1 << 51


def faults(progress: Progress, rounds: int = 9, count: int = 2048) -> Figure:
    """count: a power of two."""
    what = "a fault of machine code / one of Guest.write, each a message to the store"
    size_bytes = count * 2 * PAGE_SIZE
    return _measure(progress, what, "fault", rounds, count, size_bytes, _code_touches, _python_touches)


def conversions(progress: Progress, rounds: int = 9, count: int = 400) -> Figure:
    """count: even, so that each run ends as it began."""
    what = "a conversion of a page that machine code asks for / one that Guest.map asks for, overlay"
    return _measure(progress, what, "conversion", rounds, count, PAGE_SIZE, _code_converts, _python_converts)


def _measure(
    progress: Progress, what: str, noun: str, rounds: int, count: int, size_bytes: int, code: Seconds, python: Seconds
) -> Figure:
    try:
        check()
    except Refused as refused:
        return Figure(what, "x", None, True, None, reason=str(refused))
    code_s, python_s = [], []
    with pin(first_cpu()):
        for round_ in range(rounds + 1):
            progress.round(round_, rounds)
            with _machine(2 * size_bytes) as machine:
                code_s.append(code(machine, DATA, count))
                python_s.append(python(machine, DATA + size_bytes, count))
    ratios = [a / b for a, b in zip(code_s[1:], python_s[1:], strict=True)]
    parts: dict[str, Part] = {
        f"us a {noun}": median(code_s[1:]) / count * 1e6,
        f"us a {noun}, Python": median(python_s[1:]) / count * 1e6,
        f"{noun}s a second": count / median(code_s[1:]),
    }
    return Figure(what, "x", None, True, median(ratios), parts | {**spread(ratios), "rounds": rounds})


@contextmanager
def _machine(size_bytes: int) -> Iterator[VirtualMachine]:
    with our_mount.mounted(DATA + size_bytes) as mountpoint:
        file = our_mount.sealed_file(Path(mountpoint, "memory"), DATA + size_bytes)
        with closing(VirtualMachine("bench", MAX_SLOTS)) as machine:
            machine.vmm.memory.set_private_slot(MemoryRegion.private(0, 0, DATA + size_bytes), str(file))
            machine.vmm.set_policy("overlay")
            yield machine
        file.unlink()


def _run(machine: VirtualMachine, code: bytes, **registers: int) -> float:
    vcpu = machine.vm.vcpu(0)
    if machine.guest.write(vcpu, CODE, code) is not None:
        raise RuntimeError("the guest stopped while its code was loaded")
    engine = machine.cpus.engine(vcpu)
    engine.reset()
    for name, value in {"rip": CODE, **registers}.items():
        engine.write(name, value)
    began = perf_counter()
    stopped = machine.vmm.run(vcpu, lambda: machine.cpus.run(vcpu))
    elapsed_s = perf_counter() - began
    if stopped != HltExit() or engine.read("rip") != CODE + len(code):
        raise RuntimeError(f"the guest stopped: {stopped}, rip {engine.read('rip'):#x}")
    return elapsed_s


def _code_touches(machine: VirtualMachine, gpa: int, count: int) -> float:
    return _run(machine, _TOUCH, rdi=gpa, rsi=count - 1, rcx=count, rax=0)


def _python_touches(machine: VirtualMachine, gpa: int, count: int) -> float:
    guest, vcpu, page, order = machine.guest, machine.vm.vcpu(0), 0, []
    for _ in range(count):
        page = page * _STEP + _OFFSET & count - 1
        order.append(gpa + (page << PAGE_SHIFT + 1))
    began = perf_counter()
    for at in order:
        if guest.write(vcpu, at, b"\1") is not None:
            raise RuntimeError(f"the guest stopped at gpa {at:#x}")
    return perf_counter() - began


def _code_converts(machine: VirtualMachine, gpa: int, count: int) -> float:
    elapsed_s = _run(machine, _CONVERT, rsi=gpa | _SHARED, rbx=count)
    if machine.cpus.engine(machine.vm.vcpu(0)).read("rbx"):
        raise RuntimeError("a conversion was refused")
    return elapsed_s


def _python_converts(machine: VirtualMachine, gpa: int, count: int) -> float:
    vcpu = machine.vm.vcpu(0)
    began = perf_counter()
    for number in range(count):
        call = partial(machine.guest.map, vcpu, gpa, PAGE_SIZE, private=bool(number & 1))
        stopped = machine.vmm.run(vcpu, call)
        if stopped is not None:
            raise RuntimeError(f"the guest stopped: {stopped}")
    return perf_counter() - began
