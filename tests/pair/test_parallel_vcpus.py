"""Several vCPUs side by side: in guest mode at once, faulting at once, with invalidations in between."""

import threading
from functools import partial

import pytest

from kvmsim.kvm.exits import MmioExit
from kvmsim.kvm.vcpu import Vcpu
from memfsd.uapi.units import PAGE_SIZE
from tests.support.both_sides import LocalStore, LocalVm, page
from tests.support.threads import DEADLINE_S, Beside

PAGES = 64
PUNCHES = 12
"""While the guests run; they go on until the last one."""


@pytest.fixture
def running(store: LocalStore) -> LocalVm:
    """64 private pages at GPA 0, none of them granted; vCPUs 0 to 3."""
    store.create("file", PAGES)
    local = store.vm()
    local.private_slot(0, 0, page(PAGES), "file")
    for number in range(1, 4):
        local.vm.create_vcpu(number)
    return local


def test_two_vcpus_are_in_guest_mode_at_once(running: LocalVm) -> None:
    memory = running.shared_slot(0, page(100), page(2))
    both = threading.Barrier(2)
    real = memory.write

    def write(offset: int, data: bytes) -> None:
        both.wait(DEADLINE_S)
        real(offset, data)

    memory.write = write  # type: ignore[method-assign]
    vcpus = [running.vm.vcpu(number) for number in range(2)]
    threads = [Beside(partial(running.guest.write, vcpu, page(100 + vcpu.id), b"here", shared=True)) for vcpu in vcpus]
    assert [thread.result() for thread in threads] == [None, None], "each waited in the guest for the other"
    assert memory.read(0, 4) == memory.read(PAGE_SIZE, 4) == b"here"


def test_two_vcpus_fault_at_once_on_the_same_page(running: LocalVm, monkeypatch: pytest.MonkeyPatch) -> None:
    both = threading.Barrier(2)
    real = running.kvm.faults.fault

    def fault(*arguments: object, **named: object) -> object:
        both.wait(DEADLINE_S)
        return real(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(running.kvm.faults, "fault", fault)
    threads = [
        Beside(partial(running.guest.write, running.vm.vcpu(number), number, bytes([65 + number])))
        for number in range(2)
    ]
    assert [thread.result() for thread in threads] == [None, None]
    monkeypatch.undo()
    assert running.read(0, 2) == b"AB", "one page, both writes"


def test_an_exit_of_one_vcpu_does_not_hold_up_another(running: LocalVm) -> None:
    one, other = running.vm.vcpu(0), running.vm.vcpu(1)
    assert running.guest.read(one, page(200), 4, shared=True) == MmioExit(page(200), 4, is_write=False)
    assert Beside(lambda: running.guest.write(other, 0, b"going on")).result() is None
    one.run.mmio.data[:4] = list(b"late")
    assert one.kvm_run() == b"late"


def test_vcpus_go_on_while_their_memory_is_taken_back(store: LocalStore, running: LocalVm) -> None:
    """Each vCPU writes its own pages and reads them back: its own bytes, or zeros when they were punched in between."""

    done = threading.Event()

    def life(vcpu: Vcpu) -> int:
        own, mine = range(vcpu.id, PAGES, 4), bytes([vcpu.id + 1]) * 8
        zeros = 0
        while not done.is_set():
            for number in own:
                assert running.guest.write(vcpu, page(number), mine) is None
            for number in own:
                got = running.guest.read(vcpu, page(number), 8)
                assert got in (mine, bytes(8)), "never another one's, never half"
                zeros += got != mine
        return zeros

    threads = [Beside(partial(life, running.vm.vcpu(number))) for number in range(4)]
    try:
        for number in range(PUNCHES):
            store.punch("file", number * 7 % PAGES, min(5, PAGES - number * 7 % PAGES))
    finally:
        done.set()
    for thread in threads:
        thread.result()
    with running.vm.mmu.lock:
        assert running.vm.mmu.in_progress == 0


def test_bulk_accesses_side_by_side_with_invalidations(store: LocalStore, running: LocalVm) -> None:
    done = threading.Event()

    def life(vcpu: Vcpu) -> None:
        while not done.is_set():
            assert running.guest.touch(vcpu, 0, page(PAGES)) is None
            assert running.guest.map(vcpu, 0, page(PAGES), private=True) is None
            assert running.guest.read(vcpu, 0, page(PAGES)) == bytes(page(PAGES))

    threads = [Beside(partial(life, running.vm.vcpu(number))) for number in range(3)]
    try:
        for _ in range(PUNCHES):
            store.punch("file", 0, PAGES)
    finally:
        done.set()
    for thread in threads:
        thread.result()
