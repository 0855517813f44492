"""KVM_RUN as the API has it: exits as objects, kicks, answers, ends."""

import errno

import pytest

import kvmsim
from tests.support.both_sides import LocalStore, errno_of
from tests.support.threads import Beside, until


def spinning(cpu: kvmsim.Cpu) -> kvmsim.Program[None]:
    while True:
        yield from cpu.read(0, 4)


def run_until_refused(vcpu: kvmsim.VCPU) -> str:
    """The errno's name."""
    while True:
        try:
            vcpu.run()
        except kvmsim.Refused as refused:
            return errno.errorcode[refused.errno]


def test_a_vcpu_without_code_has_nothing_to_run(vcpu: kvmsim.VCPU) -> None:
    assert errno_of(vcpu.run) == "EINVAL"
    assert errno_of(vcpu.kvm_run) == "EINVAL"


def test_code_that_has_ended_halts_and_goes_on_halting(vcpu: kvmsim.VCPU) -> None:
    vcpu.load(lambda cpu: cpu.write(0, b"x"))
    assert not vcpu.is_done
    assert [vcpu.run(), vcpu.run()] == [kvmsim.HltExit()] * 2
    assert vcpu.is_done


def test_new_code_takes_the_place_of_what_was_under_way(vcpu: kvmsim.VCPU) -> None:
    vcpu.load(lambda cpu: cpu.read(0x8000_0000, 4, shared=True))
    assert isinstance(vcpu.run(), kvmsim.MmioExit)
    assert vcpu.read(0, 2) == b"\0\0"


def test_an_exit_that_nobody_handles_is_raised_and_can_be_gone_on_from(vcpu: kvmsim.VCPU) -> None:
    with pytest.raises(kvmsim.UnhandledExit, match="KVM_EXIT_MMIO") as raised:
        vcpu.read(0x8000_0000, 4, shared=True)
    assert raised.value.exit == kvmsim.MmioExit(0x8000_0000, 4, is_write=False)
    vcpu.answer(data=b"1234")
    assert vcpu.run() == kvmsim.HltExit()
    assert vcpu.result == b"1234"


def test_an_answer_that_the_exit_does_not_ask_for_is_refused(vcpu: kvmsim.VCPU) -> None:
    assert errno_of(vcpu.answer, data=b"1234") == "EINVAL"
    assert errno_of(vcpu.answer, ret=0) == "EINVAL"
    with pytest.raises(kvmsim.UnhandledExit):
        vcpu.read(0x8000_0000, 4, shared=True)
    assert errno_of(vcpu.answer, data=b"12345") == "EINVAL"


def test_a_kick_ends_kvm_run_once(vcpu: kvmsim.VCPU) -> None:
    vcpu.load(spinning)
    running = Beside(vcpu.run)
    vcpu.kick()
    assert running.result() == kvmsim.IntrExit()
    running = Beside(vcpu.kvm_run)
    vcpu.kick()
    assert running.result() == kvmsim.IntrExit()


def test_one_thread_at_a_time_runs_it(api: kvmsim.VM, vcpu: kvmsim.VCPU) -> None:
    vcpu.load(spinning)
    running = Beside(vcpu.run)
    until(lambda: api.machine.vm.vcpu(0).is_running, "the vCPU runs")
    assert errno_of(vcpu.run) == "EBUSY"
    vcpu.kick()
    running.result()


def test_what_guest_code_raises_comes_out_of_run(vcpu: kvmsim.VCPU) -> None:
    def guest(cpu: kvmsim.Cpu) -> kvmsim.Program[None]:
        yield from cpu.write(0, b"x")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        vcpu.execute(guest)
    assert errno_of(vcpu.run) == "EINVAL", "its code has ended"
    assert vcpu.read(0, 1) == b"x"


def test_closing_the_vm_ends_a_vcpu_that_runs(api: kvmsim.VM, vcpu: kvmsim.VCPU) -> None:
    vcpu.load(spinning)
    running = Beside(lambda: run_until_refused(vcpu))
    until(lambda: api.machine.vm.vcpu(0).is_running, "the vCPU runs")
    api.close()
    assert running.result() == "EBADF"
    assert errno_of(vcpu.run) == "EBADF"


def test_a_stopped_vm_can_be_closed(api: kvmsim.VM, vcpu: kvmsim.VCPU) -> None:
    api.stop()
    vcpu.load(spinning)
    running = Beside(lambda: run_until_refused(vcpu))
    api.close()
    assert running.result() == "EBADF"


def test_a_loop_of_ones_own_sees_each_exit_and_lets_the_policy_handle_it(api: kvmsim.VM, vcpu: kvmsim.VCPU) -> None:
    api.set_policy("punch")
    vcpu.load(lambda cpu: cpu.map_gpa(0x2000, 0x1000, private=False))
    exit_ = vcpu.kvm_run()
    assert exit_ == kvmsim.MemoryErrorExit(0x2000, 0x1000, private=False, explicit=True)
    assert vcpu.handle(exit_)
    assert vcpu.kvm_run() == kvmsim.HltExit()
    assert not vcpu.handle(kvmsim.HltExit())
    assert vcpu.is_done


def test_pages_are_faulted_in_ahead(api: kvmsim.VM, vcpu: kvmsim.VCPU, store: LocalStore) -> None:
    assert vcpu.pre_fault_memory(0, 16 << 12) == 0
    assert api.stats()["pages_4k"] >= 16
    assert errno_of(vcpu.pre_fault_memory, 64 << 12, 1 << 12) == "ENOENT"
    assert vcpu.pre_fault_memory(63 << 12, 2 << 12) == 1 << 12


def test_the_initial_image_is_measured(api: kvmsim.VM, vcpu: kvmsim.VCPU) -> None:
    before = api.measurement()
    vcpu.init_mem_region(0x3000, b"boot loader")
    assert vcpu.read(0x3000, 12) == b"boot loader\0"
    assert api.measurement() != before
    assert errno_of(vcpu.init_mem_region, 0x3000, b"again") == "EEXIST"
    api.finalize()
    assert errno_of(vcpu.init_mem_region, 0x9000, b"late") == "EINVAL"


def test_kvm_run_is_the_kernels_struct(vcpu: kvmsim.VCPU) -> None:
    with pytest.raises(kvmsim.UnhandledExit):
        vcpu.read(0x8000_0000, 4, shared=True)
    assert (vcpu.id, vcpu.exit_struct.exit_reason, vcpu.exit_struct.mmio.len) == (0, kvmsim.ExitReason.MMIO, 4)
