"""Numbered conformance cases of the kernel's selftests where a vCPU runs beside its slots: B of set_memory_region_test,
E of pre_fault_memory_test."""

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from kvmsim.kvm.exits import InternalErrorExit, MmioExit
from kvmsim.kvm.kvm import Kvm
from memfsd.uapi.abi import GMEM_6_18, GMEM_7_2
from memfsd.uapi.errors import Refused, errno_name
from memfsd.uapi.units import Gfn
from tests.kvmsim.kvm.test_region2 import GmemVm
from tests.support.both_sides import LocalStore, alias, errno_of, opened_store, page
from tests.support.machine_code import Code
from tests.support.threads import Beside, until

GPA, PAGES = page(16), 2
ROUNDS = 30


@pytest.fixture(params=[GMEM_6_18, GMEM_7_2], ids=lambda abi: abi.name)
def store(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[LocalStore]:
    with opened_store(tmp_path, 64, abi=request.param) as opened:
        yield opened


@pytest.fixture
def vm(store: LocalStore) -> Iterator[GmemVm]:
    with closing(GmemVm(store)) as vm:
        yield vm


@contextmanager
def spinning(vm: GmemVm) -> Iterator[list[object]]:
    """The vCPU reads the word at GPA, again and again: each other answer in a row, once."""
    answers: list[object] = []
    ended = threading.Event()

    def spin() -> None:
        while not ended.is_set():
            found = vm.read(GPA, 8, shared=True)
            answer = "MMIO" if isinstance(found, MmioExit) else found
            if not answers or answers[-1] != answer:
                answers.append(answer)

    running = Beside(spin)
    try:
        until(lambda: len(answers) > 0, "the vCPU reads")
        yield answers
    finally:
        ended.set()
        running.result()


def test_b15_a_slot_moves_and_goes_while_a_vcpu_uses_it(vm: GmemVm) -> None:
    """It sees the device's space or the old value, never another page."""
    old, other = b"old.....", b"other..."
    vm.set(0, GPA, PAGES)
    assert vm.write(GPA, old, shared=True) is None
    assert vm.write(GPA + page(1), other, shared=True) is None
    with spinning(vm) as answers:
        for _ in range(ROUNDS):
            vm.set(0, GPA + page(PAGES), PAGES)
            until(lambda: answers[-1] == "MMIO", "the slot has moved away")
            vm.set(0, GPA, PAGES)
            until(lambda: answers[-1] == old, "and back")
        vm.set(0, 0, 0)
        until(lambda: answers[-1] == "MMIO", "it is deleted")
        vm.set(0, GPA, PAGES)
        until(lambda: answers[-1] == bytes(8), "a new one reads as zeros")
    assert set(answers) == {"MMIO", old, bytes(8)}


def test_b16_a_vm_without_slots_cannot_run(vm: GmemVm) -> None:
    code = Code(vm)
    code.engine.reset()
    code.set(rip=alias(page(1)))
    assert isinstance(code.run(), InternalErrorExit)
    assert vm.vcpu.run.exit_reason == 17


@pytest.mark.parametrize("private", [True, False])
def test_e4_the_size_shrinks_exactly_when_something_was_done(vm: GmemVm, store: LocalStore, private: bool) -> None:
    vm.set(0, 0, 8, store.create_memfd("g", 8))
    vm.attributes(0, 8, private=private)
    for first in range(10):
        for count in (1, 3, 8):
            if private:  # what was done before counts as done
                vm.kvm.unmapper.zap([(Gfn(0), Gfn(8))], private=True)
            before = vm.vm.mmu.epts[private].leaf_count
            if first >= 8:
                number = errno_of(vm.kvm.pre_fault, vm.vcpu, page(first), page(count), shared=not private)
                assert number == "ENOENT"
                assert vm.vm.mmu.epts[private].leaf_count == before
                continue
            left = vm.kvm.pre_fault(vm.vcpu, page(first), page(count), shared=not private)
            assert left == page(max(first + count - 8, 0)) < page(count)


@pytest.mark.parametrize("private", [True, False])
def test_e5_eintr_is_for_a_retry_and_eagain_for_a_slot_that_goes(vm: GmemVm, store: LocalStore, private: bool) -> None:
    g = store.create_memfd("g", 8)
    vm.set(0, 0, 8, g)
    vm.attributes(0, 8, private=private)
    vm.vcpu.request_exit()
    assert errno_of(vm.kvm.pre_fault, vm.vcpu, 0, page(8), shared=not private) == "EINTR"
    vm.vcpu.run.immediate_exit = 0
    assert vm.kvm.pre_fault(vm.vcpu, 0, page(8), shared=not private) == 0
    ended = threading.Event()

    def recreate() -> None:
        while not ended.is_set():
            vm.set(0, 0, 0)
            vm.set(0, 0, 8, g)

    running = Beside(recreate)
    answers: set[object] = set()
    try:
        for _ in range(10 * ROUNDS):
            answers.add(_answer(vm.kvm, vm, private))
    finally:
        ended.set()
        running.result()
    assert answers <= {"done", "EAGAIN", "EFAULT" if private else "ENOENT"}
    assert {_answer(vm.kvm, vm, private) for _ in range(ROUNDS)} == {"done"}, "no slot goes"


def _answer(kvm: Kvm, vm: GmemVm, private: bool) -> str:
    try:
        left = kvm.pre_fault(vm.vcpu, 0, page(8), shared=not private)
    except Refused as refused:
        return errno_name(refused.errno)
    assert left < page(8)
    return "done"
