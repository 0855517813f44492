"""KVM_RUN, guest mode and kicks: who kicks returns only when the vCPU has left once, and nobody waits forever."""

import errno

import pytest

from kvmsim.kvm.exits import ExitReason, HltExit
from kvmsim.kvm.vcpu import Program, Vcpu
from kvmsim.kvm.vm import Vm
from memfsd.uapi.errors import Refused
from memfsd.uapi.limits import MAX_VCPUS
from tests.support.both_sides import errno_of
from tests.support.slots import TRANSLATION
from tests.support.threads import Beside, Gate, until


@pytest.fixture
def vcpu() -> Vcpu:
    return Vcpu(0)


def test_a_kick_of_a_vcpu_outside_the_guest_returns_at_once(vcpu: Vcpu) -> None:
    vcpu.tlb.insert(1, TRANSLATION)
    vcpu.kick()
    assert (len(vcpu.tlb), vcpu.kick_count) == (1, 1), "flushing is another's business, where it is needed"
    vcpu.enter()
    vcpu.leave()


def test_a_kick_waits_until_the_vcpu_leaves(vcpu: Vcpu) -> None:
    vcpu.enter()
    kick = Beside(vcpu.kick)
    until(lambda: vcpu._kickers == 1, "the kick is under way")
    assert kick.running
    vcpu.leave()
    kick.result()
    assert vcpu.kick_count == 1


def test_a_vcpu_that_is_being_kicked_waits_outside(vcpu: Vcpu) -> None:
    vcpu.enter()
    kick = Beside(vcpu.kick)
    until(lambda: vcpu._kickers == 1, "the kick is under way")
    entering = Beside(vcpu.enter)
    vcpu.leave()
    kick.result()
    entering.result()
    assert vcpu.guest_lock.locked(), "it is in the guest now"
    vcpu.leave()


def test_every_kicker_gets_its_turn_with_a_guest_that_never_rests(vcpu: Vcpu) -> None:
    """No lost kick and no starvation: 4 kickers, 50 kicks each, against a guest that enters at once again."""
    stopped = False
    entries = 0

    def guest() -> None:
        nonlocal entries
        while not stopped:
            vcpu.enter()
            entries += 1
            vcpu.leave()

    def kicker() -> None:
        for _ in range(50):
            vcpu.kick()

    running = Beside(guest)
    until(lambda: entries > 0, "the guest is at it")
    kickers = [Beside(kicker) for _ in range(4)]
    for each in kickers:
        each.result()
    stopped = True
    running.result()
    assert (vcpu.kick_count, vcpu._kickers) == (200, 0)


def test_vcpus_of_a_vm_have_ids_below_the_cap() -> None:
    vm: Vm = Vm("vm")
    assert vm.create_vcpu(MAX_VCPUS - 1) is vm.vcpu(MAX_VCPUS - 1)
    assert errno_of(vm.create_vcpu, MAX_VCPUS) == "EINVAL"
    assert errno_of(vm.create_vcpu, -1) == "EINVAL"
    assert errno_of(vm.create_vcpu, 0) == "EEXIST"
    assert errno_of(vm.vcpu, 7) == "EINVAL"


# -- KVM_RUN


def counting(vcpu: Vcpu, steps: int) -> Program[str]:
    for _ in range(steps):
        yield from vcpu.entry()
        yield HltExit()
    return "done"


def test_a_program_goes_on_from_exit_to_exit_to_its_result(vcpu: Vcpu) -> None:
    assert vcpu.start(counting(vcpu, 2)) == HltExit()
    assert vcpu.run.exit_reason == ExitReason.HLT
    assert vcpu.kvm_run() == HltExit()
    assert vcpu.kvm_run() == "done"
    assert (vcpu.program, vcpu.run.exit_reason) == (None, 0)
    assert vcpu.start(counting(vcpu, 0)) == "done"


def test_nothing_under_way_is_einval(vcpu: Vcpu) -> None:
    assert errno_of(vcpu.kvm_run) == "EINVAL"


def test_a_program_that_is_refused_has_ended_and_the_vcpu_is_free(vcpu: Vcpu) -> None:
    def refused() -> Program[None]:
        yield HltExit()
        raise Refused(errno.EFAULT, "no such address")

    vcpu.start(refused())
    assert errno_of(vcpu.kvm_run) == "EFAULT"
    assert errno_of(vcpu.kvm_run) == "EINVAL"
    assert not vcpu.is_running


def test_what_is_abandoned_is_closed(vcpu: Vcpu) -> None:
    closed: list[bool] = []

    def holding() -> Program[None]:
        try:
            yield HltExit()
        finally:
            closed.append(True)

    vcpu.start(holding())
    assert closed == []
    assert vcpu.start(counting(vcpu, 0)) == "done"
    assert closed == [True]


def test_a_vcpu_that_another_thread_runs_is_busy(vcpu: Vcpu) -> None:
    gate = Gate()

    def held() -> Program[str]:
        gate.wait()
        yield HltExit()
        return "done"

    first = Beside(lambda: vcpu.start(held()))
    gate.reached()
    assert vcpu.is_running
    assert errno_of(vcpu.start, counting(vcpu, 1)) == "EBUSY"
    assert errno_of(vcpu.kvm_run) == "EBUSY"
    gate.open()
    assert first.result() == HltExit()
    assert vcpu.kvm_run() == "done", "any thread may run it, one at a time"


def test_a_vcpu_that_is_asked_to_leave_ends_with_eintr_and_can_go_on(vcpu: Vcpu) -> None:
    vcpu.request_exit()
    assert errno_of(vcpu.start, counting(vcpu, 1)) == "EINTR"
    assert vcpu.run.exit_reason == ExitReason.INTR
    vcpu.run.immediate_exit = 0
    assert vcpu.kvm_run() == HltExit()
    assert vcpu.kvm_run() == "done"
