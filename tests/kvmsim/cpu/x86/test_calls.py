"""VMCALL and TDCALL of machine code."""

from kvmsim.kvm.exits import HltExit, HypercallExit, MemoryErrorExit
from kvmsim.kvm.hypercalls import ALIGN_ERROR, INVALID_OPERAND, KVM_HC_MAP_GPA_RANGE, RETRY, SUCCESS
from tests.support.both_sides import LocalStore, LocalVm, alias, page
from tests.support.machine_code import Code

CODE = alias(page(1))
MAP = {"rax": 0, "r10": 0, "r11": 0x10001}


def placed(vm: LocalVm, source: str, **registers: int) -> Code:
    vm.shared_slot(9, 0, page(16))
    return Code(vm).place(f"{source}\nhlt", CODE, **registers)


def test_a_hypercall_that_nobody_asked_for_is_enosys(vm: LocalVm) -> None:
    code = placed(vm, "vmcall", rax=99)
    assert code.run() == HltExit()
    assert code.get("rax") == (1 << 64) - 1000


def test_a_hypercall_of_user_space_takes_its_answer(vm: LocalVm) -> None:
    vm.vm.exit_hypercalls = 1 << 5
    code = placed(vm, "vmcall", rax=5, rbx=1, rcx=2, rdx=3, rsi=4)
    assert code.run() == HypercallExit(5, (1, 2, 3, 4))
    assert code.get("rip") == CODE, "it is under way"
    code.vcpu.run.hypercall.ret = 77
    assert code.resume() == HltExit()
    assert code.get("rax") == 77


def test_map_gpa_exits_where_no_slot_is_and_takes_the_answer(store: LocalStore) -> None:
    store.create("mem", 16)
    vm = store.vm()
    vm.private_slot(0, page(64), page(16), "mem")
    code = placed(vm, "tdcall", **MAP, r12=alias(page(64)), r13=page(2))
    assert code.run() == MemoryErrorExit(page(64), page(2), private=False, explicit=True)
    code.vcpu.run.memory_error.answered = 1
    assert code.resume() == HltExit()
    assert (code.get("rax"), code.get("r10"), code.get("r11")) == (0, SUCCESS, alias(page(66)))


def test_map_gpa_refuses_as_the_tdx_module(vm: LocalVm) -> None:
    for r12, r13, status in ((page(2), 0, INVALID_OPERAND), (page(2) + 1, page(1), ALIGN_ERROR)):
        code = Code(vm)
        if not vm.vm.slots[0].lookup(1):  # type: ignore[arg-type]
            vm.shared_slot(9, 0, page(16))
        code.place("tdcall; hlt", CODE, **MAP, r12=r12, r13=r13)
        assert code.run() == HltExit()
        assert (code.get("r10"), code.get("r11")) == (status, r12)


def test_retry_says_where_to_go_on(vm: LocalVm) -> None:
    vm.vm.exit_hypercalls = 1 << KVM_HC_MAP_GPA_RANGE
    code = placed(vm, "tdcall", **MAP, r12=alias(4 << 20), r13=4 << 20)
    assert isinstance(code.run(), HypercallExit)
    assert isinstance(code.resume(), HypercallExit)
    code.vcpu.run.hypercall.ret = 11
    assert code.resume() == HltExit()
    assert (code.get("r10"), code.get("r11")) == (RETRY, alias(6 << 20))


def test_accept_maps_and_refuses_what_is_no_page(store: LocalStore) -> None:
    store.create("mem", 16)
    vm = store.vm()
    vm.private_slot(0, page(64), page(16), "mem")
    code = placed(vm, "tdcall; mov %rax, %rbx; mov $6, %eax; mov $7, %ecx; tdcall", rax=6, rcx=page(64))
    assert code.run() == HltExit()
    assert (code.get("rbx"), code.get("rax")) == (0, 0xC000_0100_0000_0000)


def test_info_says_how_many_bits_an_address_has(vm: LocalVm) -> None:
    code = placed(vm, "tdcall", rax=1)
    assert code.run() == HltExit()
    assert (code.get("rcx"), code.get("rax"), code.get("r8")) == (52, 0, 1)
