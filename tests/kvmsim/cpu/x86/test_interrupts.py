"""Exceptions: the guest's handler at CPL 0, or a triple fault."""

import struct

import pytest

from kvmsim.kvm.exits import HltExit, IrqWindowOpenExit, ShutdownExit
from tests.support.both_sides import LocalVm, alias, errno_of, page
from tests.support.machine_code import Code, assemble

CODE, HANDLER, IDT, STACK = (alias(page(number)) for number in (1, 2, 3, 6))
LOAD_IDT = f"movabs ${IDT}, %rax; mov %rax, 2+1f(%rip); lidt 1f(%rip); jmp 2f\n1: .word 4095; .quad 0\n2:"


def with_handler(vm: LocalVm, vector: int, handler: str, kind: int = 0x8E) -> Code:
    vm.shared_slot(0, 0, page(16))
    code = Code(vm)
    vm.write(HANDLER, assemble(handler, HANDLER))
    gate = struct.pack("<HHBBHII", HANDLER & 0xFFFF, 0, 0, kind, HANDLER >> 16 & 0xFFFF, HANDLER >> 32, 0)
    vm.write(IDT + 16 * vector, gate)
    return code


@pytest.mark.parametrize(
    ("vector", "source", "error"),
    [
        (0, "xor %ecx, %ecx; xor %edx, %edx; mov $1, %eax\nfault: div %ecx", None),
        (6, "fault: ud2", None),
        (13, "movabs $0xfffff00000000000, %rbx\nfault: mov (%rbx), %rax", 0),
    ],
)
def test_a_fault_reaches_the_handler_with_the_instruction_to_blame(
    vm: LocalVm, vector: int, source: str, error: int | None
) -> None:
    handler = "hlt" if error is None else "pop %rdx; hlt"
    code = with_handler(vm, vector, handler)
    code.place(f"{LOAD_IDT} {source}\nhlt", CODE, rsp=STACK)
    assert code.run() == HltExit()
    pushed = struct.unpack("<5Q", code.cpus.peek(code.vcpu, code.get("rsp"), 40))
    assert code.get("rip") == HANDLER + (1 if error is None else 2)
    assert pushed[3] == STACK
    fault = next(
        at for at, _, text in code.cpus.disassemble(code.vcpu, pushed[0], 1) if text.split()[0] in {"div", "ud2", "mov"}
    )
    assert fault == pushed[0]


GDT = alias(page(4))
LOAD_GDT = f"""
    movabs ${GDT}, %rax; mov %rax, 2+1f(%rip); lgdt 1f(%rip); jmp 2f
1:  .word 15; .quad 0
2:  push $8; lea 3f(%rip), %rax; push %rax; lretq
3:
"""


def test_int_returns_by_iret(vm: LocalVm) -> None:
    """IRET wants a code segment to return to, which is the guest's to set up."""
    code = with_handler(vm, 0x80, "inc %rbx; iretq")
    vm.write(GDT + 8, struct.pack("<Q", 0x00AF9A000000FFFF))
    vm.write(IDT + 16 * 0x80 + 2, struct.pack("<H", 8))
    code.place(f"{LOAD_GDT} {LOAD_IDT} int $0x80; int $0x80; hlt", CODE, rsp=STACK, rbx=0)
    assert code.run() == HltExit()
    assert (code.get("rbx"), code.get("rsp")) == (2, STACK)


@pytest.mark.parametrize("kind", [0, 0x0E, 0x85])
def test_without_a_gate_it_is_a_triple_fault(vm: LocalVm, kind: int) -> None:
    code = with_handler(vm, 6, "hlt", kind)
    code.place(f"{LOAD_IDT} ud2", CODE, rsp=STACK)
    got = code.run()
    assert got == ShutdownExit()
    assert "#UD" in got.why
    assert code.resume() == ShutdownExit(), "however often it is run"


def test_without_a_table_it_is_a_triple_fault(vm: LocalVm) -> None:
    vm.shared_slot(0, 0, page(16))
    assert Code(vm).place("int3", CODE, rsp=STACK).run() == ShutdownExit()


def with_irq(vm: LocalVm, source: str, handler: str = "inc %rbx; iretq") -> Code:
    """Vector 0x20 has a handler, and IRETQ a segment to return to."""
    code = with_handler(vm, 0x20, handler)
    vm.write(GDT + 8, struct.pack("<Q", 0x00AF9A000000FFFF))
    vm.write(IDT + 16 * 0x20 + 2, struct.pack("<H", 8))
    return code.place(f"{LOAD_GDT} {LOAD_IDT} {source}", CODE, rsp=STACK, rbx=0, rcx=0)


def test_an_interrupt_waits_for_sti_and_one_instruction_more(vm: LocalVm) -> None:
    code = with_irq(vm, "cli; inc %rcx; hlt; sti; inc %rcx; mov %rbx, %rdx; hlt", "inc %rbx; mov %rcx, %rsi; iretq")
    code.vcpu.queue_interrupt(0x20)
    assert code.run() == HltExit(), "IF is clear"
    assert (code.get("rbx"), code.vcpu.run.if_flag, code.vcpu.run.ready_for_interrupt_injection) == (0, 0, 0)
    assert errno_of(lambda: code.vcpu.queue_interrupt(0x21)) == "EEXIST"
    assert code.resume() == HltExit()
    assert (code.get("rbx"), code.get("rsi"), code.get("rsp")) == (1, 2, STACK), "after the instruction behind STI"
    assert (code.vcpu.interrupt, code.vcpu.run.if_flag, code.vcpu.run.ready_for_interrupt_injection) == (None, 1, 1)


def test_an_interrupt_wakes_a_halted_vcpu(vm: LocalVm) -> None:
    code = with_irq(vm, "sti; hlt; inc %rcx; hlt")
    assert code.run() == HltExit()
    code.vcpu.queue_interrupt(0x20)
    assert code.resume() == HltExit()
    assert (code.get("rbx"), code.get("rcx")) == (1, 1), "the handler, and then on behind the HLT"


def test_a_halt_with_an_interrupt_pending_is_no_exit(vm: LocalVm) -> None:
    code = with_irq(vm, "cli; hlt; sti; hlt; inc %rcx; cli; hlt")
    assert code.run() == HltExit()
    code.vcpu.queue_interrupt(0x20)
    assert code.resume() == HltExit()
    assert (code.get("rbx"), code.get("rcx")) == (1, 1)


def test_a_loop_that_sets_if_now_and_then_is_interrupted(vm: LocalVm) -> None:
    code = with_irq(vm, "1: cli; inc %rcx; sti; nop; test %rbx, %rbx; jz 1b; cli; hlt")
    code.vcpu.queue_interrupt(0x20)
    assert code.run() == HltExit()
    assert code.get("rbx") == 1


def test_the_window_opens_when_it_is_asked_for(vm: LocalVm) -> None:
    code = with_irq(vm, "cli; mov $1000, %ecx\n1: loop 1b\nsti; 2: test %rbx, %rbx; jz 2b; cli; hlt")
    code.vcpu.run.request_interrupt_window = 1
    assert code.run() == IrqWindowOpenExit()
    assert (code.get("rcx"), code.vcpu.run.ready_for_interrupt_injection) == (0, 1)
    assert code.resume() == IrqWindowOpenExit(), "for as long as it is asked for"
    code.vcpu.run.request_interrupt_window = 0
    code.vcpu.queue_interrupt(0x20)
    assert code.resume() == HltExit()
    assert code.get("rbx") == 1


def test_an_interrupt_without_a_gate_is_a_triple_fault(vm: LocalVm) -> None:
    code = with_irq(vm, "sti; nop; 1: jmp 1b")
    code.vcpu.queue_interrupt(0x21)
    assert code.run() == ShutdownExit()


# -- shadows, NMIs, and stacks of the TSS


@pytest.mark.parametrize(
    "loads", ["mov %edi, %ss", "mov %r8, %ss", "mov (%rsi), %ss", "mov 0x1234567(%rsi, %r9, 8), %ss"]
)
def test_an_interrupt_waits_for_the_instruction_after_mov_ss(vm: LocalVm, loads: str) -> None:
    before = f"{LOAD_GDT} {LOAD_IDT} cli; sti; nop; nop"
    code = with_irq(vm, f"cli; sti; nop; nop; {loads}\ninc %rcx; hlt", "mov %rcx, %rdx; mov $1, %ebx; cli; hlt")
    at = CODE + len(assemble(before, CODE))
    while code.get("rip") != at:
        assert code.step() is None
    code.set(rsi=alias(page(8)) - (0x1234567 if "(%rsi," in loads else 0), rdi=0, r8=0, r9=0)
    assert code.step() is None
    code.vcpu.queue_interrupt(0x20)
    assert code.run() == HltExit()
    assert (code.get("rbx"), code.get("rdx")) == (1, 1), "one instruction behind it"


def with_nmi(vm: LocalVm, source: str, handler: str) -> Code:
    code = with_irq(vm, source)
    at = alias(page(5))
    vm.write(at, assemble(handler, at))
    vm.write(IDT + 16 * 2, struct.pack("<HHBBHII", at & 0xFFFF, 8, 0, 0x8E, at >> 16 & 0xFFFF, at >> 32, 0))
    return code


def test_an_nmi_comes_whatever_if_says_and_wakes_a_halted_vcpu(vm: LocalVm) -> None:
    code = with_nmi(vm, "cli; hlt; inc %rcx; hlt", "inc %rbx; iretq")
    assert code.run() == HltExit()
    code.vcpu.queue_nmi()
    assert code.resume() == HltExit()
    assert (code.get("rbx"), code.get("rcx"), code.get("rsp"), code.vcpu.is_in_nmi) == (1, 1, STACK, False)


@pytest.mark.parametrize("steps", [False, True])
def test_an_nmi_waits_for_the_iret_of_the_one_before(vm: LocalVm, *, steps: bool) -> None:
    """The handler halts in its middle; of three that come there one is taken after its IRETQ, the others are lost."""
    code = with_nmi(vm, "cli; hlt; inc %rcx; hlt", "inc %rbx; mov %rcx, %rdx; hlt; iretq")
    assert code.run() == HltExit()
    code.vcpu.queue_nmi()
    assert code.resume() == HltExit()
    for _ in range(3):
        code.vcpu.queue_nmi()
    assert (code.get("rbx"), code.vcpu.nmi_count, code.vcpu.is_in_nmi) == (1, 1, True)
    if steps:
        assert code.step() is None, "the IRETQ"
        assert (code.vcpu.is_in_nmi, code.get("rsp")) == (False, STACK)
    assert (code.run() if steps else code.resume()) == HltExit()
    assert (code.get("rbx"), code.get("rcx"), code.vcpu.nmi_count) == (2, 0, 0)
    assert code.resume() == HltExit()
    assert (code.get("rbx"), code.get("rcx"), code.get("rsp")) == (2, 1, STACK)


def test_two_nmis_at_most_wait(vm: LocalVm) -> None:
    code = with_nmi(vm, "cli; hlt; hlt", "inc %rbx; iretq")
    assert code.run() == HltExit()
    for _ in range(3):
        code.vcpu.queue_nmi()
    assert code.resume() == HltExit()
    assert (code.get("rbx"), code.vcpu.nmi_count) == (2, 0)


def test_an_nmi_before_an_interrupt(vm: LocalVm) -> None:
    code = with_nmi(vm, "cli; hlt; sti; nop; nop; cli; hlt", "mov %rbx, %rdx; inc %rcx; iretq")
    assert code.run() == HltExit()
    code.vcpu.queue_interrupt(0x20)
    code.vcpu.queue_nmi()
    assert code.resume() == HltExit()
    assert (code.get("rcx"), code.get("rdx"), code.get("rbx")) == (1, 0, 1)


def test_an_nmi_without_a_gate_is_a_triple_fault_that_lasts(vm: LocalVm) -> None:
    code = with_irq(vm, "cli; hlt; hlt")
    assert code.run() == HltExit()
    code.vcpu.queue_nmi()
    got = code.resume()
    assert isinstance(got, ShutdownExit)
    assert "NMI" in got.why
    assert code.resume() == ShutdownExit()


TSS, IST = alias(page(9)), alias(page(12))
TSS_BYTES = 104


@pytest.mark.parametrize("number", [1, 7])
@pytest.mark.parametrize("limit", [TSS_BYTES - 1, 0x24])
def test_a_gate_with_a_stack_of_the_tss(vm: LocalVm, number: int, limit: int) -> None:
    """RSP is out of memory, so only that stack can take the frame; IRETQ brings RSP back."""
    source = "mov $16, %eax; ltr %ax; cli; movabs $0x1234567890, %rsp; hlt; hlt"
    code = with_nmi(vm, source, "mov %rsp, %rbx; iretq")
    vm.write(TSS + 0x24 + 8 * (number - 1), struct.pack("<Q", IST + 8))
    vm.write(IDT + 16 * 2 + 4, bytes([number]))
    descriptor = limit | (TSS & 0xFFFFFF) << 16 | 0x89 << 40 | (TSS >> 24 & 0xFF) << 56
    vm.write(GDT + 16, struct.pack("<QQ", descriptor, TSS >> 32))
    vm.write(CODE + assemble(LOAD_GDT, CODE).index(struct.pack("<HQ", 15, 0)), struct.pack("<H", 31))
    assert code.run() == HltExit()
    code.vcpu.queue_nmi()
    if limit < TSS_BYTES - 1:
        assert isinstance(code.resume(), ShutdownExit), "the TSS is too short"
        return
    assert code.resume() == HltExit()
    assert (code.get("rbx"), code.get("rsp")) == (IST - 40, 0x1234567890)
