"""Machine code on vCPUs: from exit to exit, kicked, stepped, and with code that changes."""

import platform

import pytest

from kvmsim.kvm.exits import HltExit, MemoryErrorExit, ShutdownExit
from kvmsim.machine import VirtualMachine
from kvmsim.memory.memory import AnonymousMemory
from tests.support.both_sides import LocalVm, alias, errno_of, page
from tests.support.machine_code import Code, assemble
from tests.support.threads import Beside, until

CODE, DATA = alias(page(1)), alias(page(8))


@pytest.fixture
def memory(vm: LocalVm) -> AnonymousMemory:
    return vm.shared_slot(0, 0, page(64))


def word(memory: AnonymousMemory, at: int = page(8)) -> int:
    return int.from_bytes(memory.read(at, 8), "little")


def test_hlt_is_left_by_the_next_run(vm: LocalVm, memory: AnonymousMemory) -> None:
    code = Code(vm).place("hlt; mov $7, %eax; hlt", CODE)
    assert code.run() == HltExit()
    assert code.get("rip") == CODE + 1
    assert code.resume() == HltExit()
    assert code.get("rax") == 7


def test_steps(vm: LocalVm, memory: AnonymousMemory) -> None:
    code = Code(vm).place("inc %rax; inc %rax; vmcall; hlt; inc %rax", CODE)
    assert code.step(2) is None
    assert (code.get("rax"), code.get("rip")) == (2, CODE + 6)
    assert code.step() is None, "a hypercall is an instruction, too"
    assert code.get("rip") == CODE + 9
    assert code.step() == HltExit()
    assert code.resume() is None
    assert code.get("rip") == CODE + 10


@pytest.mark.parametrize(
    "loop",
    [
        "1: jmp 1b",
        "1: lock incq (%rbx); jmp 1b",
        "1: mov $0x10000, %ecx; mov %rbx, %rdi; rep stosb; jmp 1b",
        "1: call 2f; jmp 1b\n2: ret",
    ],
)
def test_a_kick_ends_any_loop_and_it_goes_on(vm: LocalVm, memory: AnonymousMemory, loop: str) -> None:
    code = Code(vm).place(loop, CODE, rbx=DATA, rsp=alias(page(40)))
    for begin in (code.run, code.resume, code.resume):
        running: Beside[object] = Beside(begin)
        until(lambda: code.vcpu.guest_lock.locked(), "it is in guest mode")
        code.vcpu.request_exit()
        assert errno_of(running.result) == "EINTR"
        code.vcpu.run.immediate_exit = 0


def test_a_block_that_ran_once_counts_by_itself(vm: LocalVm, memory: AnonymousMemory) -> None:
    code = Code(vm).place("mov $1000, %ecx\n1: dec %rcx; jnz 1b\nhlt", CODE)
    assert code.run() == HltExit()
    assert (code.engine.state.sites > 0) is (platform.machine() == "x86_64"), "elsewhere calls stay calls"


def test_a_stop_is_between_two_blocks_also_where_blocks_count(vm: LocalVm, memory: AnonymousMemory) -> None:
    code = Code(vm).place("1: lock incq (%rbx); inc %rax; jmp 1b", CODE, rax=0, rbx=DATA)
    for begin in (code.run, *[code.resume] * 20):
        running: Beside[object] = Beside(begin)
        until(lambda: code.vcpu.guest_lock.locked(), "it is in guest mode")
        code.vcpu.kick()
        code.vcpu.request_exit()
        assert errno_of(running.result) == "EINTR"
        code.vcpu.run.immediate_exit = 0
        assert (code.get("rip"), code.get("rax")) == (CODE, word(memory))


def test_the_next_run_finds_its_translations_and_reads_its_code_again(vm: LocalVm, memory: AnonymousMemory) -> None:
    code = Code(vm).place("mov (%rbx), %rax; mov $1, %cl; hlt", CODE, rbx=DATA)
    assert code.run() == HltExit()
    filled = code.engine.state.fills
    memory.write(page(1), assemble("mov (%rbx), %rax; mov $2, %cl; hlt"))
    memory.write(page(8), b"A")
    code.set(rip=CODE, rcx=0)
    assert code.run() == HltExit()
    assert (code.get("rax"), code.get("rcx"), code.engine.state.fills) == (ord("A"), 2, filled)


def test_a_fill_guesses_where_a_page_is_while_frames_are_in_order(vm: LocalVm, memory: AnonymousMemory) -> None:
    other = vm.shared_slot(1, page(64), page(8))
    other.write(0, b"B")
    loop = "1: add (%rbx), %rax; add $0x1000, %rbx; dec %rcx; jnz 1b; hlt"
    code = Code(vm).place(loop, CODE, rax=0, rbx=DATA, rcx=10)
    assert code.run() == HltExit()
    assert code.engine.state.confidence == 4, "all are in one memory"
    code.set(rip=CODE, rbx=alias(page(64)), rcx=1)
    assert code.run() == HltExit()
    assert code.engine.state.confidence == 0, "this one is elsewhere"
    assert code.get("rax") == ord("B"), "and found nevertheless"


def test_a_kick_before_the_run_is_not_lost(vm: LocalVm, memory: AnonymousMemory) -> None:
    code = Code(vm).place("1: inc %rax; jmp 1b", CODE)
    code.vcpu.request_exit()
    assert errno_of(code.run) == "EINTR"
    assert code.get("rax") == 0


def test_registers_are_not_for_others_while_it_runs(vm: LocalVm, memory: AnonymousMemory) -> None:
    code = Code(vm).place("1: jmp 1b", CODE)
    running: Beside[object] = Beside(code.run)
    until(lambda: code.vcpu.guest_lock.locked(), "it is in guest mode")
    assert errno_of(code.cpus.registers, code.vcpu) == "EBUSY"
    assert errno_of(code.cpus.disassemble, code.vcpu, CODE, 1) == "EBUSY"
    code.vcpu.request_exit()
    errno_of(running.result)
    assert code.cpus.registers(code.vcpu)["rip"] == CODE
    assert [(at, raw) for at, raw, _ in code.cpus.disassemble(code.vcpu, None, 1)] == [(CODE, b"\xeb\xfe")]


def test_an_address_that_does_not_exist(vm: LocalVm, memory: AnonymousMemory) -> None:
    got = Code(vm).place("mov (%rbx), %rax", CODE, rbx=1 << 48).run()
    assert got == ShutdownExit()
    assert "#GP" in got.why


def test_code_that_changes_itself(vm: LocalVm, memory: AnonymousMemory) -> None:
    source = "movb $7, 1+1f(%rip)\n1: mov $1, %al\nhlt"
    code = Code(vm).place(source, CODE)
    assert code.run() == HltExit()
    assert code.get("rax") & 0xFF == 7


def test_code_that_another_vcpu_changes(vm: LocalVm, memory: AnonymousMemory) -> None:
    """Back and forth: the write of one is seen by the other each time, though both have translated it before."""
    vm.vm.create_vcpu(1)
    runner, writer = Code(vm), Code(vm, 1)
    writer.place("1: mov %al, 1(%rbx); hlt; jmp 1b", alias(page(2)), rbx=CODE)
    runner.place("1: mov $1, %al; hlt; jmp 1b", CODE)
    assert runner.run() == HltExit()
    got: object
    for value in range(2, 6):
        writer.set(rax=value)
        got = writer.run() if value == 2 else writer.resume()
        assert got == HltExit()
        assert runner.resume() == HltExit()
        assert runner.get("rax") & 0xFF == value


def test_code_that_another_vcpu_changes_while_it_runs(vm: LocalVm, memory: AnonymousMemory) -> None:
    """Without an exit between: in turns. The runner loops until the immediate of its own instruction is not 1."""
    vm.vm.create_vcpu(1)
    runner, writer = Code(vm), Code(vm, 1)
    runner.place("mov %rdx, (%rdi)\n1: mov $1, %eax; cmp $1, %eax; je 1b; hlt", CODE, rdx=1, rdi=DATA)
    at = CODE + assemble("mov %rdx, (%rdi)").__len__() + 1
    writer.place("1: cmpq $0, (%rdi); je 1b; movb $9, (%rbx); hlt", alias(page(2)), rbx=at, rdi=DATA)
    running = Beside(runner.run)
    assert writer.run() == HltExit()
    assert running.result() == HltExit()
    assert runner.get("rax") == 9


@pytest.mark.parametrize(
    "count",
    [
        "lock incq (%rbx)",
        "mov $1, %eax; lock xadd %rax, (%rbx)",
        "mov (%rbx), %rax\n2: lea 1(%rax), %rdx; lock cmpxchg %rdx, (%rbx); jne 2b",
        "2: mov $1, %eax; xchg %eax, 64(%rbx); test %eax, %eax; pause; jnz 2b; incq (%rbx); movl $0, 64(%rbx)",
    ],
)
def test_lock_is_atomic_between_vcpus(vm: LocalVm, memory: AnonymousMemory, count: str) -> None:
    vm.vm.create_vcpu(1)
    each = 50_000
    both = [Code(vm, number) for number in range(2)]
    for number, code in enumerate(both):
        place = alias(page(1 + number))
        code.place(f"1: {count}; dec %rcx; jnz 1b; hlt", place, rbx=DATA, rcx=each)
    running = [Beside(code.run) for code in both]
    assert [one.result() for one in running] == [HltExit()] * 2
    assert word(memory) == 2 * each


def test_fetch_from_where_nothing_is_private(vm: LocalVm, memory: AnonymousMemory) -> None:
    code = Code(vm).place("jmp *%rbx", CODE, rbx=page(2))
    assert code.run() == MemoryErrorExit(page(2), page(1), private=True)
    assert code.resume() == MemoryErrorExit(page(2), page(1), private=True)


def test_a_vm_has_one_whoever_asks_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """gdb and a vCPU, at the same time: of two, one would walk the page tables without a gate."""
    asked, made = list[None](), list[object]()

    class Slow:
        def __init__(self, kvm: object, guest: object) -> None:
            made.append(self)
            until(lambda: len(asked) == 2, "the other thread asks, too")

    monkeypatch.setattr("kvmsim.machine.check", lambda: asked.append(None))
    monkeypatch.setattr("kvmsim.cpu.x86.cpus.Cpus", Slow)
    machine = VirtualMachine("vm", 4)
    first, second = Beside(lambda: machine.cpus), Beside(lambda: machine.cpus)
    assert first.result() is second.result()
    assert len(made) == 1
    machine.close()
