"""IN, OUT, INS and OUTS: the exit, its answer, and memory that is missing half way against a run that never faults."""

import struct
from dataclasses import dataclass, field

import pytest

from kvmsim.kvm.exits import (
    HltExit,
    IoDirection,
    IoExit,
    IrqWindowOpenExit,
    MemoryErrorExit,
    MmioExit,
    ShutdownExit,
)
from kvmsim.kvm.kvm_run import set_io_data
from kvmsim.kvm.region import MemoryRegion
from kvmsim.memory.memory import AnonymousMemory
from memfsd.uapi.units import PAGE_SIZE
from tests.support.both_sides import LocalStore, LocalVm, alias, errno_of, page
from tests.support.machine_code import Code, assemble
from tests.support.threads import Beside, until

IN, OUT = IoDirection
CODE, DATA = alias(page(1)), alias(page(8))
A = 0x1122334455667788
SEEN = ("rax", "rcx", "rdx", "rsi", "rdi", "rip", "rflags")


@pytest.fixture
def memory(vm: LocalVm) -> AnonymousMemory:
    return vm.shared_slot(0, 0, page(64))


def answer(code: Code, data: bytes) -> object:
    set_io_data(code.vcpu.run, data)
    return code.resume()


@pytest.mark.parametrize(
    ("insn", "exit_", "rax"),
    [
        ("in $0x80, %al", IoExit(IN, 1, 0x80), A & ~0xFF | 0xA1),
        ("in $0x80, %ax", IoExit(IN, 2, 0x80), A & ~0xFFFF | 0xA2A1),
        ("in $0x80, %eax", IoExit(IN, 4, 0x80), 0xA4A3A2A1),
        ("in %dx, %al", IoExit(IN, 1, 0x1234), A & ~0xFF | 0xA1),
        ("in %dx, %ax", IoExit(IN, 2, 0x1234), A & ~0xFFFF | 0xA2A1),
        ("in %dx, %eax", IoExit(IN, 4, 0x1234), 0xA4A3A2A1),
        (".byte 0x48, 0xed", IoExit(IN, 4, 0x1234), 0xA4A3A2A1),
        (".byte 0x66, 0x48, 0xed", IoExit(IN, 4, 0x1234), 0xA4A3A2A1),
        ("out %al, $0x80", IoExit(OUT, 1, 0x80, 1, b"\x88"), A),
        ("out %ax, $0x80", IoExit(OUT, 2, 0x80, 1, b"\x88\x77"), A),
        ("out %eax, $0x80", IoExit(OUT, 4, 0x80, 1, b"\x88\x77\x66\x55"), A),
        ("out %al, %dx", IoExit(OUT, 1, 0x1234, 1, b"\x88"), A),
        ("out %ax, %dx", IoExit(OUT, 2, 0x1234, 1, b"\x88\x77"), A),
        ("out %eax, %dx", IoExit(OUT, 4, 0x1234, 1, b"\x88\x77\x66\x55"), A),
    ],
)
@pytest.mark.parametrize("steps", [False, True])
def test_in_and_out(vm: LocalVm, memory: AnonymousMemory, insn: str, exit_: IoExit, rax: int, *, steps: bool) -> None:
    """Until the next KVM_RUN it has not happened; what is before it in its block has, what is behind it has not."""
    code = Code(vm).place(f"inc %rbx; {insn}\n inc %rbx; hlt", CODE, rax=A, rdx=0xFFFF1234, rbx=0)
    if steps:
        assert code.step() is None
    assert (code.step() if steps else code.run()) == exit_
    assert (code.get("rip"), code.get("rbx"), code.get("rax")) == (CODE + 3, 1, A)
    assert (code.vcpu.run.io.data_offset, code.vcpu.run.exit_reason) == (4096, 2)
    assert answer(code, b"\xa1\xa2\xa3\xa4") == (None if steps else HltExit())
    assert code.get("rax") == rax
    if steps:
        assert (code.get("rip"), code.get("rbx")) == (CODE + 3 + len(assemble(insn)), 1)
        assert code.run() == HltExit()
    assert code.get("rbx") == 2


def test_user_space_that_sets_rip_completes_nothing_twice(vm: LocalVm, memory: AnonymousMemory) -> None:
    code = Code(vm).place("in $0x80, %al\nhlt; nop; hlt", CODE, rax=0)
    assert code.run() == IoExit(IN, 1, 0x80)
    code.set(rip=CODE + 3)
    assert answer(code, b"\7") == HltExit()
    assert (code.get("rip"), code.get("rax")) == (CODE + 5, 7)


def test_asked_to_leave_it_completes_first(vm: LocalVm, memory: AnonymousMemory) -> None:
    code = Code(vm).place("in $0x80, %al; inc %rbx; hlt", CODE, rax=0, rbx=0)
    assert code.run() == IoExit(IN, 1, 0x80)
    code.vcpu.request_exit()
    assert errno_of(lambda: answer(code, b"\7")) == "EINTR"
    assert (code.get("rip"), code.get("rax"), code.get("rbx")) == (CODE + 2, 7, 0)
    code.vcpu.run.immediate_exit = 0
    assert code.resume() == HltExit()


def test_a_new_command_at_the_exit_does_it_again(vm: LocalVm, memory: AnonymousMemory) -> None:
    code = Code(vm).place("out %al, $0x80; hlt", CODE, rax=5)
    assert code.run() == IoExit(OUT, 1, 0x80, 1, b"\5")
    assert code.run() == IoExit(OUT, 1, 0x80, 1, b"\5")
    assert code.resume() == HltExit()


def test_bytes_of_other_instructions_that_look_like_port_instructions(vm: LocalVm, memory: AnonymousMemory) -> None:
    source = "mov %rsp, %rbp; sub $0x6c, %rsp; mov $0xeeedece4, %eax; lea 0x6f(%rax), %rbx; hlt"
    assert Code(vm).place(source, CODE).run() == HltExit()


def test_a_block_that_jumps_into_the_middle_of_an_instruction(vm: LocalVm, memory: AnonymousMemory) -> None:
    """0xb8 e6 80 f4 90 is mov to EAX, and out %al, $0x80; hlt from its second byte on."""
    code = Code(vm).place(".byte 0xb8, 0xe6, 0x80, 0xf4, 0x90\n jmp . - 4", CODE)
    assert code.run() == IoExit(OUT, 1, 0x80, 1, b"\xe6")
    assert code.get("rip") == CODE + 1
    assert code.resume() == HltExit()


def test_code_that_becomes_a_port_instruction_and_another_again(vm: LocalVm, memory: AnonymousMemory) -> None:
    """Three rounds: nop; nop, then OUT, then nop; nop."""
    source = """
        mov $3, %ecx
    1:  jmp 2f
    2:  nop; nop
        inc %rbx
        cmpw $0x80e6, 2b(%rip); je 3f
        movw $0x80e6, 2b(%rip); jmp 4f
    3:  movw $0x9090, 2b(%rip)
    4:  dec %ecx; jnz 1b
        hlt
    """
    code = Code(vm).place(source, CODE, rbx=0, rax=9)
    assert code.run() == IoExit(OUT, 1, 0x80, 1, b"\x09")
    assert code.get("rbx") == 1
    assert code.resume() == HltExit()
    assert code.get("rbx") == 3


def test_more_port_instructions_than_stops(
    vm: LocalVm, memory: AnonymousMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvmsim.cpu.x86.engine.MAX_STOPS", 8)
    count = 20
    code = Code(vm).place("1:" + "in $0x80, %al; inc %ebx;" * count + "dec %ecx; jnz 1b\nhlt", CODE, rcx=2, rbx=0)
    exits, exit_ = 0, code.run()
    while exit_ == IoExit(IN, 1, 0x80):
        exits += 1
        exit_ = code.resume()  # type: ignore[assignment]
    assert (exit_, exits, code.get("rbx")) == (HltExit(), 2 * count, 2 * count)


@pytest.mark.parametrize("insn", [".byte 0xf0, 0xec", ".byte 0xf0, 0x6c"])
@pytest.mark.parametrize("steps", [False, True])
def test_lock_does_not_go_with_it(vm: LocalVm, memory: AnonymousMemory, insn: str, *, steps: bool) -> None:
    code = Code(vm).place(f"{insn}\nhlt", CODE)
    got = code.step() if steps else code.run()
    assert got == ShutdownExit()
    assert isinstance(got, ShutdownExit)
    assert "#UD" in got.why


def test_an_instruction_across_two_pages(vm: LocalVm, memory: AnonymousMemory) -> None:
    at = alias(page(5)) - 1
    code = Code(vm).place("out %al, $0x80; hlt", at, rax=5)
    assert code.run() == IoExit(OUT, 1, 0x80, 1, b"\5")
    assert code.resume() == HltExit()


def test_an_interrupt_after_sti_comes_behind_the_port_instruction(vm: LocalVm, memory: AnonymousMemory) -> None:
    code = Code(vm).place("sti; out %al, $0x80; nop; hlt", CODE, rax=5)
    code.vcpu.run.request_interrupt_window = 1
    assert code.run() == IoExit(OUT, 1, 0x80, 1, b"\5")
    assert code.resume() == IrqWindowOpenExit()
    assert code.get("rip") == CODE + 3


# -- strings


@dataclass(frozen=True)
class String:
    code: str
    registers: dict[str, int] = field(default_factory=dict)


SCRATCH, FIRST = alias(page(8)), alias(page(16))
EDGE = FIRST + PAGE_SIZE
STRINGS = {
    "insb": String("insb", {"rdi": EDGE}),
    "insw across": String("insw", {"rdi": EDGE - 1}),
    "insl across": String("insl", {"rdi": EDGE - 3}),
    "outsb": String("outsb", {"rsi": EDGE}),
    "outsw across": String("outsw", {"rsi": EDGE - 1}),
    "outsl across": String("outsl", {"rsi": EDGE - 1}),
    "rep insb": String("rep insb", {"rdi": EDGE - 5, "rcx": 11}),
    "rep insw": String("rep insw", {"rdi": EDGE - 5, "rcx": 5}),
    "rep insl": String("rep insl", {"rdi": EDGE - 6, "rcx": 4}),
    "rep insl down": String("std; rep insl; cld", {"rdi": EDGE + 6, "rcx": 4}),
    "rep outsb": String("rep outsb", {"rsi": EDGE - 5, "rcx": 11}),
    "rep outsw": String("rep outsw", {"rsi": EDGE - 5, "rcx": 5}),
    "rep outsl": String("rep outsl", {"rsi": EDGE - 6, "rcx": 4}),
    "rep outsb down": String("std; rep outsb; cld", {"rsi": EDGE + 5, "rcx": 11}),
}


class World:
    """A private slot over all of it; two pages, private or shared, that may be missing."""

    def __init__(self, store: LocalStore, *, private: bool) -> None:
        store.create("mem", 64)
        self.store, self.private = store, private
        self.vm: LocalVm = store.vm()
        self.vm.private_slot(0, 0, page(64), "mem")
        self.vm.shared_slot(1, page(1), page(8))
        self.code = Code(self.vm)
        self.pages = {gpa: AnonymousMemory(PAGE_SIZE) for gpa in (page(16), page(17))}
        self.port: list[bytes] = []
        self.faults = 0
        for memory in self.pages.values():
            store.ending.callback(memory.close)

    def show(self, gpa: int, *, there: bool) -> None:
        number = gpa // PAGE_SIZE
        region = MemoryRegion.shared(number, gpa, PAGE_SIZE if there else 0)
        self.vm.kvm.slots.set_shared_slot(region, self.pages[gpa], owned=False)

    def begin(self, case: String) -> None:
        for number, gpa in enumerate(self.pages):
            if not self.private:
                self.show(gpa, there=True)
            data = bytes((number * 37 + at) % 251 for at in range(PAGE_SIZE))
            self.vm.write(gpa, data, shared=not self.private)
        self.port, self.faults = [], 0
        registers = {
            name: at & ~alias(0) if self.private and name != "rcx" else at for name, at in case.registers.items()
        }
        self.code.place(f"{case.code}\nhlt", CODE, **{"rdx": 0x500, "rcx": 0, "rsp": SCRATCH + 2048, **registers})

    def end(self, *, steps: bool) -> dict[str, object]:
        """The device counts up; missing pages are shown at their exit. What is there at the end."""
        items, exit_ = 0, self.code.step() if steps else self.code.run()
        while exit_ != HltExit():
            rip = self.code.get("rip")
            if isinstance(exit_, IoExit) and exit_.is_in:
                length = exit_.size * exit_.count
                set_io_data(self.code.vcpu.run, bytes(items + at & 0xFF for at in range(length)))
                items += length
            elif isinstance(exit_, IoExit):
                self.port.append(exit_.data)
            elif isinstance(exit_, MemoryErrorExit):
                self.faults += 1
                self.show(exit_.gpa, there=True)
            else:
                assert exit_ is None, exit_
                exit_ = self.code.step()
                continue
            assert self.code.get("rip") == rip
            exit_ = self.code.resume()  # type: ignore[assignment]
        memory = {
            gpa: self.vm.read(gpa, PAGE_SIZE) if self.private else shown.read(0, PAGE_SIZE)
            for gpa, shown in self.pages.items()
        }
        return {"port": self.port, "memory": memory, "in": items, **{name: self.code.get(name) for name in SEEN}}


@pytest.mark.parametrize("steps", [False, True])
@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize("name", STRINGS)
def test_a_string_instruction_meets_missing_pages(store: LocalStore, name: str, *, private: bool, steps: bool) -> None:
    case, world = STRINGS[name], World(store, private=private)
    world.begin(case)
    expected = world.end(steps=steps)
    for missing in ([0], [1], [0, 1]):
        world.begin(case)
        for number in missing:
            if private:
                store.punch("mem", 16 + number, 1)
            else:
                world.show(page(16 + number), there=False)
        got = world.end(steps=steps)
        if private:  # what was punched reads as zeros
            assert {key: got[key] for key in SEEN} == {key: expected[key] for key in SEEN}
            assert got["in"] == expected["in"]
        else:
            assert got == expected
            assert world.faults <= len(missing)


def test_ins_asks_for_several_within_a_page_and_1024_bytes(vm: LocalVm, memory: AnonymousMemory) -> None:
    code = Code(vm).place("rep insb; hlt", CODE, rdi=DATA + PAGE_SIZE - 1500, rcx=1600, rdx=7)
    assert code.run() == IoExit(IN, 1, 7, 1024)
    assert answer(code, b"a" * 1024) == IoExit(IN, 1, 7, 476)
    assert (code.get("rcx"), code.get("rdi")) == (576, DATA + PAGE_SIZE - 476)
    assert answer(code, b"b" * 476) == IoExit(IN, 1, 7, 100)
    assert answer(code, b"c" * 100) == HltExit()
    assert memory.read(page(9) - 1500, 1600) == b"a" * 1024 + b"b" * 476 + b"c" * 100
    assert (code.get("rcx"), code.get("rdi")) == (0, DATA + PAGE_SIZE + 100)


def test_repeated_no_times_is_no_exit(vm: LocalVm, memory: AnonymousMemory) -> None:
    assert Code(vm).place("rep outsb; rep insl; hlt", CODE, rcx=0).run() == HltExit()


def test_addresses_of_32_bits_and_the_base_of_a_segment(vm: LocalVm, memory: AnonymousMemory) -> None:
    low = vm.shared_slot(1, page(64), page(4))
    low.write(0, b"0123")
    code = Code(vm).place("addr32 fs outsb; hlt", CODE, rsi=0xFFFF_FFFF_0000_0002, rdx=7)
    code.engine.uc.reg_write(_fs_base(), alias(page(64)))
    assert code.run() == IoExit(OUT, 1, 7, 1, b"2")
    assert code.resume() == HltExit()
    assert code.get("rsi") == 3


def _fs_base() -> int:
    from unicorn import x86_const

    number: int = x86_const.UC_X86_REG_FS_BASE
    return number


def test_from_one_device_to_another(vm: LocalVm, memory: AnonymousMemory) -> None:
    code = Code(vm).place("outsl; insb; hlt", CODE, rsi=alias(page(100)), rdi=alias(page(101)), rdx=7)
    assert code.run() == MmioExit(page(100), 4, is_write=False)
    assert code.answer(b"mmio") == IoExit(OUT, 4, 7, 1, b"mmio")
    assert code.resume() == IoExit(IN, 1, 7)
    assert answer(code, b"x") == MmioExit(page(101), 1, True, b"x")
    assert code.resume() == HltExit()


def test_an_operand_without_a_page_of_the_guest_is_a_page_fault(vm: LocalVm, memory: AnonymousMemory) -> None:
    """CR3: one page of 1 GiB at 0. No data is asked of the device."""
    vm.write(alias(page(20)), struct.pack("<Q", page(21) | 3 | alias(0)))
    vm.write(alias(page(21)), struct.pack("<Q", 0x83 | alias(0)))
    code = Code(vm).place("mov %rax, %cr3; insb; hlt", CODE, rax=alias(page(20)), rdi=1 << 31, rdx=7)
    code.set(rip=CODE & ~alias(0))
    code.set(cr3=alias(page(20)))
    got = code.run()
    assert isinstance(got, ShutdownExit)
    assert "#PF" in got.why
    assert code.get("cr2") == 1 << 31


# -- others


def test_a_kick_ends_a_loop_of_outs(vm: LocalVm, memory: AnonymousMemory) -> None:
    code = Code(vm).place("1: out %al, $0xe9; inc %al; jmp 1b", CODE, rax=0)
    printed = ""

    def has_gone_on() -> bool:
        return code.vcpu.exit_counts.get(IoExit.reason, 0) > len(printed) + 2

    for _ in range(3):
        running = Beside(lambda: vm.vmm.run(code.vcpu, code.resume if code.vcpu.program else code.run, lambda _: True))
        until(has_gone_on, "it prints two more")
        code.vcpu.request_exit()
        assert errno_of(running.result) == "EINTR"
        printed += code.console()
        assert len(code.console()) == 0
    shown = bytes(at & 0x7F for at in range(len(printed)))
    assert len(printed) > 3
    assert printed[:100] == shown.decode()[:100], "each byte once"


def test_two_vcpus_do_port_io(vm: LocalVm, memory: AnonymousMemory) -> None:
    vm.vm.create_vcpu(1)
    codes = [Code(vm, number) for number in range(2)]
    for number, code in enumerate(codes):
        source = "1: lock incl (%rbx); out %al, $0xe9; dec %ecx; jnz 1b; hlt"
        code.place(source, alias(page(1 + number)), rbx=DATA, rcx=200, rax=ord("a") + number)
    running = [Beside(code.serve) for code in codes]
    assert [one.result() for one in running] == [HltExit()] * 2
    assert [code.console() for code in codes] == ["a" * 200, "b" * 200]
    assert memory.read(page(8), 4) == struct.pack("<I", 400)
    assert [code.vcpu.exit_counts.get(IoExit.reason) for code in codes] == [200, 200]
