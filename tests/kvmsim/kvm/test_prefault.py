"""KVM_PRE_FAULT_MEMORY's rules: size shrinks if and only if something was mapped, and each errno means one thing."""

import pytest

from kvmsim.kvm.exits import MmioExit
from kvmsim.kvm.mmu.runs import Run
from memfsd.uapi.errors import Refused
from memfsd.uapi.units import PAGE_SIZE, Gfn, GfnRange
from tests.support.both_sides import LocalStore, LocalVm, alias, errno_of, page

_MIB = 1 << 20


def left(vm: LocalVm, gpa: int, size: int, *, shared: bool = False) -> int:
    return vm.kvm.pre_fault(vm.vcpu, gpa, size, shared=shared)


def refusal(vm: LocalVm, gpa: int, size: int, *, shared: bool = False) -> str:
    return errno_of(vm.kvm.pre_fault, vm.vcpu, gpa, size, shared=shared)


def mapped(vm: LocalVm, start: Gfn, end: Gfn, *, private: bool) -> int:
    return sum(count for _, _, count in vm.vm.mmu.epts[private].runs(start, end))


def test_all_of_a_range_is_mapped_and_nothing_is_left(vm: LocalVm) -> None:
    vm.shared_slot(0, 0, 2 * _MIB)
    assert left(vm, 0, 2 * _MIB, shared=True) == 0
    faults = vm.vm.mmu.fault_count
    assert mapped(vm, Gfn(0), Gfn(512), private=False) == 512
    assert vm.touch(0, 2 * _MIB, shared=True) is None
    assert vm.vm.mmu.fault_count == faults, "the guest faults no more"


def test_private_memory_is_mapped_with_the_store_s_frames(store: LocalStore) -> None:
    store.create("mem", 64)
    vm = store.vm()
    vm.private_slot(0, page(16), page(64), "mem")
    assert left(vm, page(16), page(64)) == 0
    assert mapped(vm, Gfn(16), Gfn(80), private=True) == 64
    assert left(vm, page(20), page(3)) == 0, "what is mapped already counts as done"
    assert vm.read(page(40), 4) == bytes(4)


def test_the_shared_bit_chooses_the_alias(vm: LocalVm) -> None:
    vm.shared_slot(0, 0, page(2))
    assert left(vm, alias(0), page(2)) == 0
    assert refusal(vm, 0, page(2)) == "ENOENT"


def test_a_range_that_begins_in_a_slot_and_ends_past_it_shrinks(vm: LocalVm) -> None:
    vm.shared_slot(0, 2 * _MIB, page(4))
    assert left(vm, 2 * _MIB, page(5), shared=True) == page(1)
    assert refusal(vm, 2 * _MIB + page(4), page(1), shared=True) == "ENOENT"


def test_without_a_slot_it_is_enoent(vm: LocalVm) -> None:
    assert refusal(vm, 0, page(1)) == "ENOENT"
    assert refusal(vm, 1 << 50, page(1), shared=True) == "ENOENT"
    assert refusal(vm, (1 << 64) - page(2), page(1), shared=True) == "ENOENT"
    assert isinstance(vm.read(0, 4, shared=True), MmioExit), "no device was asked"


def test_bad_ranges_are_einval(vm: LocalVm) -> None:
    vm.shared_slot(0, 0, page(4))
    last = (1 << 64) - PAGE_SIZE
    wrapping = (last, page(2)), (last, page(1))
    negative = (-page(1), page(2)), (page(1), -page(1))
    for gpa, size in ((0, 0), (1, page(1)), (0, 4095), *wrapping, *negative):
        assert refusal(vm, gpa, size, shared=True) == "EINVAL"


def test_a_kick_is_eintr_or_what_was_done_so_far(small_store: LocalStore) -> None:
    small_store.create("mem", 8)
    vm = small_store.vm()
    vm.private_slot(0, 0, page(8), "mem")
    vm.vcpu.request_exit()
    assert refusal(vm, 0, page(8)) == "EINTR"
    vm.vcpu.run.immediate_exit = 0
    faults, real = vm.kvm.faults, vm.kvm.faults.first_unmapped

    def kicked(gfn: Gfn, end: Gfn, *, shared: bool) -> Gfn:
        vm.vcpu.request_exit()
        return real(gfn, end, shared=shared)

    faults.first_unmapped = kicked  # type: ignore[method-assign]
    some = left(vm, 0, page(8))
    assert 0 < some < page(8), "a success, with what is left"
    assert mapped(vm, Gfn(0), Gfn(8), private=True) * PAGE_SIZE == page(8) - some
    assert refusal(vm, page(8) - some, some) == "EINTR"


def test_only_a_page_whose_slot_goes_is_eagain(vm: LocalVm) -> None:
    vm.shared_slot(0, 0, page(4))
    vm.shared_slot(1, page(8), page(4))
    answers: list[str] = []
    real = vm.kvm.unmapper.zap

    def zap(segments: list[GfnRange], *, private: bool) -> list[Run]:
        answers.append(refusal(vm, page(3), page(1), shared=True))
        answers.append(refusal(vm, page(4), page(1), shared=True))
        assert left(vm, page(8), page(1), shared=True) == 0
        return real(segments, private=private)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(vm.kvm.unmapper, "zap", zap)
        vm.delete(0, private=False)
    assert answers == ["EAGAIN", "ENOENT"]
    assert refusal(vm, page(3), page(1), shared=True) == "ENOENT", "it has gone"


def test_a_private_slot_that_goes_is_eagain(store: LocalStore) -> None:
    store.create("mem", 8)
    vm = store.vm()
    vm.private_slot(0, 0, page(8), "mem")
    answers: list[str] = []
    real = vm.kvm.unmapper.retire

    def retire(segments: list[GfnRange]) -> None:
        answers.append(refusal(vm, page(3), page(1)))
        real(segments)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(vm.kvm.unmapper, "retire", retire)
        vm.vmm.memory.punch_slot(0, page(2), page(2))
        assert left(vm, page(4), page(1)) == 0
        vm.delete(0, private=True)
    assert answers == ["EAGAIN", "ENOENT"], "a hole of the slot that is deleted has gone before"
    assert refusal(vm, page(3), page(1)) == "ENOENT"


def test_a_full_pool_is_enospc_and_what_was_mapped_counts(small_store: LocalStore) -> None:
    small_store.create("mem", 64)
    vm = small_store.vm()
    vm.private_slot(0, 0, page(64), "mem")
    assert vm.touch(0, page(30)) is None
    assert left(vm, 0, page(31)) == 0
    assert vm.touch(page(30), page(2)) is None
    assert left(vm, page(20), page(20)) == page(8)
    assert refusal(vm, page(32), page(8)) == "ENOSPC"


def test_what_is_under_way_on_the_vcpu_stays(vm: LocalVm) -> None:
    vm.shared_slot(0, 0, page(1))
    assert isinstance(vm.read(page(4), 8, shared=True), MmioExit)
    assert left(vm, 0, page(1), shared=True) == 0
    vm.vcpu.run.mmio.data[:8] = list(b"a device")
    assert vm.vcpu.kvm_run() == b"a device"


def test_a_vcpu_that_runs_is_ebusy(vm: LocalVm) -> None:
    vm.shared_slot(0, 0, page(1))
    vm.vcpu.take()
    assert refusal(vm, 0, page(1), shared=True) == "EBUSY"
    vm.vcpu.release()


def test_a_store_that_is_gone_says_why(store: LocalStore) -> None:
    store.create("mem", 8)
    vm = store.vm()
    vm.private_slot(0, 0, page(8), "mem")
    store.hang_up("mem")
    with pytest.raises(Refused, match="the store"):
        left(vm, 0, page(1))
