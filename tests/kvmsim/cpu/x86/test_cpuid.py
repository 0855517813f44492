"""What CPUID says."""

from kvmsim.cpu.x86.cpuid import cpuid
from kvmsim.kvm.exits import HltExit
from kvmsim.kvm.hypercalls import SHARED_BIT
from tests.support.both_sides import LocalVm, alias, page
from tests.support.machine_code import Code


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
