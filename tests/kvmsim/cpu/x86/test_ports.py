"""The console, and what CPUID says."""

from kvmsim.cpu.x86.ports import MAX_CONSOLE_BYTES, Console, cpuid
from kvmsim.kvm.exits import HltExit
from kvmsim.kvm.hypercalls import SHARED_BIT
from tests.support.both_sides import LocalVm, alias, page
from tests.support.machine_code import Code


def test_the_console_keeps_what_nobody_has_taken_up_to_a_bound() -> None:
    console = Console()
    console.write(0x3F8, 1, ord("a"))
    console.write(0xE9, 1, ord("b"))
    console.write(0x80, 1, ord("c"))
    assert (console.take(), console.take()) == ("ab", "")
    for _ in range(MAX_CONSOLE_BYTES // 8 + 1):
        console.write(0xE9, 8, int.from_bytes(b"x" * 8, "little"))
    assert len(console.take()) <= MAX_CONSOLE_BYTES
    assert [console.read(port, 1) for port in (0x3FD, 0xE9, 0x80)] == [0x60, 0xE9, 0xFF]
    assert console.read(0x80, 4) == 0xFFFFFFFF


def test_code_prints_and_reads_ports(vm: LocalVm) -> None:
    vm.shared_slot(0, 0, page(16))
    source = """
        mov $0x3fd, %dx; in %dx, %al; mov %rax, %rbx
        mov $0x3f8, %dx; mov $'o', %al; out %al, %dx; mov $'k', %al; out %al, $0xe9
        mov $0x80, %dx; xor %eax, %eax; in %dx, %eax; hlt
    """
    code = Code(vm).place(source, alias(page(1)))
    assert code.run() == HltExit()
    assert code.cpus.console(code.vcpu) == "ok"
    assert (code.get("rbx"), code.get("rax")) == (0x60, 0xFFFFFFFF)


def test_a_guest_learns_its_shared_bit(vm: LocalVm) -> None:
    vm.shared_slot(0, 0, page(16))
    code = Code(vm).place("mov $0x21, %eax; xor %ecx, %ecx; cpuid; hlt", alias(page(1)))
    assert code.run() == HltExit()
    name = b"".join(code.get(register).to_bytes(4, "little") for register in ("rbx", "rdx", "rcx"))
    assert name == b"IntelTDX    "
    found = cpuid(0x80000008, 0)
    assert found is not None
    assert 1 << (found[0] & 0xFF) - 1 == SHARED_BIT
    assert cpuid(0, 0) is None
