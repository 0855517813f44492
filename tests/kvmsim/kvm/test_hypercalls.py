"""Hypercalls, register by register: a test for each status, and both ways of MapGPA."""

import errno

import pytest

from kvmsim.kvm.alias import PRIVATE, SHARED
from kvmsim.kvm.exits import HypercallExit, MemoryErrorExit
from kvmsim.kvm.hypercalls import (
    ALIGN_ERROR,
    CHUNK_BYTES,
    INVALID_OPERAND,
    KVM_HC_MAP_GPA_RANGE,
    MAP_GPA,
    RETRY,
    SUBFUNC_UNSUPPORTED,
    SUCCESS,
    Registers,
)
from memfsd.uapi.units import PAGE_SIZE
from tests.support.both_sides import LocalStore, LocalVm, alias, page

ENOSYS = (1 << 64) - 1000


def test_numbers_are_those_of_the_ghci_and_of_kvm() -> None:
    assert (SUCCESS, RETRY, INVALID_OPERAND) == (0, 1, 0x8000_0000_0000_0000)
    assert (ALIGN_ERROR, SUBFUNC_UNSUPPORTED) == (0x8000_0000_0000_0002, 0x8000_0000_0000_0003)
    assert (MAP_GPA, KVM_HC_MAP_GPA_RANGE) == (0x10001, 12)


EINVAL = (1 << 64) - errno.EINVAL
MIB = 1 << 20


def map_gpa(vm: LocalVm, r12: int, r13: int) -> object:
    """(R10, R11), or the exit."""
    return registers(vm.guest.tdvmcall(vm.vcpu, Registers(0, MAP_GPA, r12, r13)))


def registers(got: object) -> object:
    return (got.r10, got.r11) if isinstance(got, Registers) else got


def answer(vm: LocalVm, ret: int) -> object:
    vm.vcpu.run.hypercall.ret = ret
    return registers(vm.vcpu.kvm_run())


@pytest.fixture
def linux_way(vm: LocalVm) -> LocalVm:
    """User space has asked for KVM_HC_MAP_GPA_RANGE."""
    vm.vm.exit_hypercalls = 1 << KVM_HC_MAP_GPA_RANGE
    return vm


# -- MapGPA: statuses


def test_success_to_shared(vm: LocalVm) -> None:
    vm.shared_slot(0, 0, page(4))
    assert map_gpa(vm, alias(0), page(4)) == (SUCCESS, alias(page(4)))
    assert vm.vm.mmu.epts[SHARED].leaf_count == 4


def test_success_to_private(store: LocalStore) -> None:
    store.create("file", 4)
    local = store.vm()
    local.private_slot(0, 0, page(4), "file")
    assert map_gpa(local, 0, page(4)) == (SUCCESS, page(4))
    assert local.vm.mmu.epts[PRIVATE].leaf_count == 4


@pytest.mark.parametrize(
    ("gpa", "size"),
    [
        (0, 0),
        (page(1), 0),
        (1 << 48, page(1)),
        ((1 << 48) - PAGE_SIZE, page(2)),
        (1 << 52, page(1)),
        ((1 << 64) - PAGE_SIZE, page(1)),
        (0, (1 << 64) - 1),
        (page(1), (1 << 64) - PAGE_SIZE),
    ],
)
@pytest.mark.parametrize("shared", [False, True], ids=["private", "shared"])
def test_invalid_operand_and_r11_is_the_gpa(vm: LocalVm, gpa: int, size: int, shared: bool) -> None:
    asked = gpa | alias(0) if shared else gpa & ~alias(0)
    assert map_gpa(vm, asked, size) == (INVALID_OPERAND, asked)


@pytest.mark.parametrize(("gpa", "size"), [(1, page(1)), (0, 1), (PAGE_SIZE - 1, PAGE_SIZE + 1)])
def test_alignment_error_and_r11_is_the_gpa(vm: LocalVm, gpa: int, size: int) -> None:
    assert map_gpa(vm, alias(gpa), size) == (ALIGN_ERROR, alias(gpa))


@pytest.mark.parametrize(("gpa", "size"), [((1 << 48) - 1, page(1)), (1, 0), ((1 << 48) + 1, 1)])
def test_the_range_is_checked_before_the_alignment(vm: LocalVm, gpa: int, size: int) -> None:
    assert map_gpa(vm, gpa, size) == (INVALID_OPERAND, gpa)


@pytest.mark.parametrize("leaf", [0, 1, 0x10000, 0x10002, 0x10003, 12, (1 << 64) - 1])
def test_unsupported_leaf(vm: LocalVm, leaf: int) -> None:
    got = vm.guest.tdvmcall(vm.vcpu, Registers(0, leaf, 0, page(1)))
    assert isinstance(got, Registers)
    assert (got.r10, got.r12, got.r13) == (SUBFUNC_UNSUPPORTED, 0, page(1))


def test_a_range_that_no_slot_covers_is_no_status_but_an_exit(vm: LocalVm) -> None:
    assert map_gpa(vm, alias(0), page(2)) == MemoryErrorExit(0, page(2), private=False, explicit=True)
    vm.shared_slot(0, 0, page(2))
    assert registers(vm.vcpu.kvm_run()) == (SUCCESS, alias(page(2)))


def test_a_slot_that_goes_away_in_between_is_an_exit_for_what_is_left(
    vm: LocalVm, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm.shared_slot(0, 0, 8 * MIB)
    real, faults = vm.kvm.faults.fault, []

    def fault(*arguments: object, **named: object) -> object:
        faults.append(arguments)
        if len(faults) == 3:
            vm.delete(0, private=False)
        return real(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(vm.kvm.faults, "fault", fault)
    assert map_gpa(vm, alias(0), 8 * MIB) == MemoryErrorExit(4 * MIB, 4 * MIB, private=False, explicit=True)


# -- MapGPA when user space asked for KVM_HC_MAP_GPA_RANGE


def test_linux_way_user_space_answers_each_chunk(linux_way: LocalVm) -> None:
    vm = linux_way
    assert map_gpa(vm, alias(page(1)), 5 * MIB) == HypercallExit(12, (page(1), 512, 0))
    assert answer(vm, 0) == HypercallExit(12, (page(1) + CHUNK_BYTES, 512, 0))
    assert answer(vm, 0) == HypercallExit(12, (page(1) + 2 * CHUNK_BYTES, 256, 0))
    assert answer(vm, 0) == (SUCCESS, alias(page(1) + 5 * MIB))


def test_linux_way_to_private_is_encrypted(linux_way: LocalVm) -> None:
    assert map_gpa(linux_way, 0, page(1)) == HypercallExit(12, (0, 1, 1 << 4))
    assert answer(linux_way, 0) == (SUCCESS, page(1))


@pytest.mark.parametrize(
    ("ret", "status"),
    [(errno.EAGAIN, RETRY), (errno.EINVAL, INVALID_OPERAND), (5, INVALID_OPERAND), (ENOSYS, INVALID_OPERAND)],
)
def test_linux_way_an_answer_other_than_0_stops_at_its_chunk(linux_way: LocalVm, ret: int, status: int) -> None:
    assert isinstance(map_gpa(linux_way, alias(0), 4 * MIB), HypercallExit)
    assert isinstance(answer(linux_way, 0), HypercallExit)
    assert answer(linux_way, ret) == (status, alias(2 * MIB))


def test_linux_way_a_pending_exit_is_a_retry_between_chunks(linux_way: LocalVm) -> None:
    assert isinstance(map_gpa(linux_way, alias(0), 4 * MIB), HypercallExit)
    linux_way.vcpu.request_exit()
    assert answer(linux_way, 0) == (RETRY, alias(2 * MIB))


def test_linux_way_malformed_requests_never_reach_user_space(linux_way: LocalVm) -> None:
    assert map_gpa(linux_way, 0, 0) == (INVALID_OPERAND, 0)
    assert map_gpa(linux_way, 1, page(1)) == (ALIGN_ERROR, 1)


# -- KVM's own


@pytest.mark.parametrize("nr", [1, 9, 11, 12, 63, 64, 1 << 32, (1 << 64) - 1])
def test_a_hypercall_that_user_space_did_not_ask_for_is_enosys_without_an_exit(vm: LocalVm, nr: int) -> None:
    assert vm.guest.vmcall(vm.vcpu, nr, (0, 1, 0)) == ENOSYS


@pytest.mark.parametrize("nr", [0, 11, 63])
def test_a_hypercall_that_user_space_asked_for_is_its_to_answer(vm: LocalVm, nr: int) -> None:
    vm.vm.exit_hypercalls = 1 << nr
    args = (1, 2, 3, 4, 5, (1 << 64) - 1)
    assert vm.guest.vmcall(vm.vcpu, nr, args) == HypercallExit(nr, args)
    assert vm.vcpu.run.hypercall.ret == 0, "what it answers when it says nothing"
    assert answer(vm, ENOSYS) == ENOSYS
    assert vm.guest.vmcall(vm.vcpu, nr + 1, args) == ENOSYS, "others are not"


@pytest.mark.parametrize("args", [(1, 1, 0), (0, 0, 0), (page(1), (1 << 64) - 1, 0)])
def test_map_gpa_range_is_checked_by_kvm_first(linux_way: LocalVm, args: tuple[int, int, int]) -> None:
    assert linux_way.guest.vmcall(linux_way.vcpu, KVM_HC_MAP_GPA_RANGE, args) == EINVAL


def test_map_gpa_range_well_formed_is_user_spaces(linux_way: LocalVm) -> None:
    got = linux_way.guest.vmcall(linux_way.vcpu, KVM_HC_MAP_GPA_RANGE, (page(1), 1, 16))
    assert got == HypercallExit(12, (page(1), 1, 16))


def test_tdvmcall_with_r10_is_a_hypercall_of_kvm(vm: LocalVm) -> None:
    vm.vm.exit_hypercalls = 1 << 11
    got = vm.guest.tdvmcall(vm.vcpu, Registers(11, 1, 2, 3, 4, 5))
    assert got == HypercallExit(11, (1, 2, 3, 4))
    assert answer(vm, 9) == (9, 1)
    assert registers(vm.guest.tdvmcall(vm.vcpu, Registers(10, 1))) == (ENOSYS, 1)
