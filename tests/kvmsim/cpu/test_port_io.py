"""Port I/O of a guest in Python: exits, and their answers."""

import pytest

import kvmsim
from tests.support.both_sides import errno_of


def guest(cpu: kvmsim.Cpu) -> kvmsim.Program[int]:
    yield from cpu.port_out(0x3F8, ord("a"))
    got = yield from cpu.port_in(0x80, 4)
    yield from cpu.port_out(0xE9, ord("b"))
    return got


def test_a_loop_of_ones_own_answers_each_exit() -> None:
    with kvmsim.VM("ports") as vm:
        vcpu = vm.create_vcpu()
        vcpu.load(guest)
        assert vcpu.kvm_run() == kvmsim.IoExit(kvmsim.IoDirection.OUT, 1, 0x3F8, 1, b"a")
        assert errno_of(lambda: vcpu.answer(data=b"x")) == "EINVAL"
        exit_ = vcpu.kvm_run()
        assert exit_ == kvmsim.IoExit(kvmsim.IoDirection.IN, 4, 0x80)
        assert vcpu.exit_struct.io.data_offset == 4096
        assert errno_of(lambda: vcpu.answer(data=b"x")) == "EINVAL"
        vcpu.answer(data=b"\1\2\3\4")
        vcpu.kick()
        assert vcpu.kvm_run() == kvmsim.IntrExit(), "the IN is complete, the OUT has not begun"
        exit_ = vcpu.kvm_run()
        assert exit_.fields() == {"direction": 1, "size": 1, "port": 0xE9, "count": 1, "data": "62"}
        assert vcpu.handle(exit_)
        assert (vcpu.kvm_run(), vcpu.result, vcpu.console()) == (kvmsim.HltExit(), 0x04030201, "b")


def test_run_serves_them() -> None:
    with kvmsim.VM("ports") as vm:
        vcpu = vm.create_vcpu()
        vcpu.load(guest)
        assert (vcpu.run(), vcpu.result, vcpu.console()) == (kvmsim.HltExit(), 0xFFFFFFFF, "ab")


@pytest.mark.parametrize(("port", "size"), [(1 << 16, 1), (-1, 1), (0, 3), (0, 8)])
def test_there_is_no_such_port(port: int, size: int) -> None:
    with kvmsim.VM("ports") as vm:
        vcpu = vm.create_vcpu()
        with pytest.raises(ValueError, match="ports are 0 to 0xffff"):
            vcpu.execute(lambda cpu: cpu.port_in(port, size))
        with pytest.raises(ValueError, match="ports are 0 to 0xffff"):
            vcpu.execute(lambda cpu: cpu.port_out(port, 0, size))
