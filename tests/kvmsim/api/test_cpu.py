"""Guest code: what its instructions return, and how it ends."""

import hashlib

import pytest

import kvmsim
from kvmsim.kvm.hypercalls import SUBFUNC_UNSUPPORTED
from tests.support.both_sides import errno_of


def test_an_instruction_gives_its_result(vcpu: kvmsim.VCPU) -> None:
    def guest(cpu: kvmsim.Cpu) -> kvmsim.Program[tuple[int, bytes, bytes]]:
        yield from cpu.write(0xFFE, b"crosses a page")
        yield from cpu.touch(0x4000, 0x3000)
        digest = yield from cpu.sha256(0xFFE, 14)
        return cpu.id, (yield from cpu.read(0xFFE, 14)), digest

    assert vcpu.execute(guest) == (0, b"crosses a page", hashlib.sha256(b"crosses a page").digest())


def test_what_is_done_before_an_exit_is_not_done_again(api: kvmsim.VM, vcpu: kvmsim.VCPU) -> None:
    done = []

    def guest(cpu: kvmsim.Cpu) -> kvmsim.Program[bytes]:
        done.append("once")
        return (yield from cpu.read(0x8000_0000, 12, shared=True))

    vcpu.load(guest)
    assert vcpu.run() == kvmsim.MmioExit(0x8000_0000, 8, is_write=False)
    vcpu.answer(data=b"01234567")
    assert vcpu.run() == kvmsim.MmioExit(0x8000_0008, 4, is_write=False)
    vcpu.answer(data=b"89ab")
    assert vcpu.run() == kvmsim.HltExit()
    assert (vcpu.is_done, vcpu.result, done) == (True, b"0123456789ab", ["once"])


def test_hypercalls_are_of_both_kinds(api: kvmsim.VM, vcpu: kvmsim.VCPU) -> None:
    api.enable_exit_hypercall(1 << kvmsim.KVM_HC_MAP_GPA_RANGE)

    def guest(cpu: kvmsim.Cpu) -> kvmsim.Program[tuple[int, int]]:
        rax = yield from cpu.vmcall(kvmsim.KVM_HC_MAP_GPA_RANGE, 0, 1, 0)
        registers = yield from cpu.tdvmcall(kvmsim.Registers(r11=0x123456))
        return rax, registers.r10

    vcpu.load(guest)
    assert vcpu.run() == kvmsim.HypercallExit(kvmsim.KVM_HC_MAP_GPA_RANGE, (0, 1, 0))
    vcpu.answer(ret=7)
    vcpu.run()
    assert vcpu.result == (7, SUBFUNC_UNSUPPORTED)


def test_a_triple_fault_stays_one_and_hlt_is_left(vcpu: kvmsim.VCPU) -> None:
    def guest(cpu: kvmsim.Cpu) -> kvmsim.Program[None]:
        yield from cpu.hlt()
        yield from cpu.shutdown()

    vcpu.load(guest)
    assert [vcpu.run() for _ in range(3)] == [kvmsim.HltExit(), kvmsim.ShutdownExit(), kvmsim.ShutdownExit()]
    assert not vcpu.is_done


def test_an_address_that_no_guest_has_is_refused_in_the_guest(vcpu: kvmsim.VCPU) -> None:
    def guest(cpu: kvmsim.Cpu) -> kvmsim.Program[str]:
        with pytest.raises(kvmsim.Refused) as refused:
            yield from cpu.read(1 << 60, 1)
        return str(refused.value)[:6]

    assert vcpu.execute(guest) == "EFAULT"
    assert errno_of(vcpu.read, 1 << 60, 1) == "EFAULT"
