"""Guest mode and kicks: who kicks returns only when the vCPU has left once, and nobody waits for ever."""

import pytest

from kvmsim.core.vcpu import Vcpu
from kvmsim.core.vm import Vm
from memfsd.uapi.limits import MAX_VCPUS
from tests.support.both_sides import errno_of
from tests.support.threads import Beside, until


@pytest.fixture
def vcpu() -> Vcpu[int]:
    return Vcpu(0)


def test_a_kick_of_a_vcpu_outside_the_guest_returns_at_once(vcpu: Vcpu[int]) -> None:
    vcpu.tlb.insert(1, 2)
    vcpu.kick()
    assert (len(vcpu.tlb), vcpu.kick_count) == (1, 1), "flushing is another's business, where it is needed"
    vcpu.enter()
    vcpu.leave()


def test_a_kick_waits_until_the_vcpu_leaves(vcpu: Vcpu[int]) -> None:
    vcpu.enter()
    kick = Beside(vcpu.kick)
    until(lambda: vcpu._kickers == 1, "the kick is under way")
    assert kick.running
    vcpu.leave()
    kick.result()
    assert vcpu.kick_count == 1


def test_a_vcpu_that_is_being_kicked_waits_outside(vcpu: Vcpu[int]) -> None:
    vcpu.enter()
    kick = Beside(vcpu.kick)
    until(lambda: vcpu._kickers == 1, "the kick is under way")
    entering = Beside(vcpu.enter)
    vcpu.leave()
    kick.result()
    entering.result()
    assert vcpu.guest_lock.locked(), "it is in the guest now"
    vcpu.leave()


def test_every_kicker_gets_its_turn_with_a_guest_that_never_rests(vcpu: Vcpu[int]) -> None:
    """No lost kick and no starvation: 4 kickers, 50 kicks each, against a guest that enters at once again."""
    stopped = False

    def guest() -> int:
        entries = 0
        while not stopped:
            vcpu.enter()
            entries += 1
            vcpu.leave()
        return entries

    def kicker() -> None:
        for _ in range(50):
            vcpu.kick()

    running = Beside(guest)
    kickers = [Beside(kicker) for _ in range(4)]
    for each in kickers:
        each.result()
    stopped = True
    assert running.result() > 0
    assert (vcpu.kick_count, vcpu._kickers) == (200, 0)


def test_vcpus_of_a_vm_have_ids_below_the_cap() -> None:
    vm: Vm[object, object] = Vm("vm")
    assert vm.create_vcpu(MAX_VCPUS - 1) is vm.vcpu(MAX_VCPUS - 1)
    assert errno_of(vm.create_vcpu, MAX_VCPUS) == "EINVAL"
    assert errno_of(vm.create_vcpu, -1) == "EINVAL"
    assert errno_of(vm.create_vcpu, 0) == "EEXIST"
    assert errno_of(vm.vcpu, 7) == "EINVAL"
