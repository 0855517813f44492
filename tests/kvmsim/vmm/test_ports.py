"""I/O ports of user space."""

from kvmsim.kvm.exits import IoDirection, IoExit
from kvmsim.kvm.kvm_run import fill, io_data
from kvmsim.kvm.vcpu import Vcpu
from kvmsim.vmm.ports import MAX_CONSOLE_BYTES, Ports


def out(port: int, data: bytes) -> IoExit:
    return IoExit(IoDirection.OUT, 1, port, len(data), data)


def read(ports: Ports, vcpu: Vcpu, port: int, size: int, count: int = 1) -> bytes:
    exit_ = IoExit(IoDirection.IN, size, port, count)
    fill(vcpu.run, exit_)
    assert ports.serve(vcpu, exit_)
    return io_data(vcpu.run, size * count)


def test_each_vcpu_has_a_console_at_two_ports() -> None:
    ports, one, other = Ports(), Vcpu(0), Vcpu(1)
    assert not ports.has_printed(one)
    assert all(ports.serve(one, out(port, data)) for port, data in ((0x3F8, b"a"), (0xE9, b"b"), (0x80, b"c")))
    ports.serve(other, out(0x3F8, b"x"))
    assert ports.has_printed(one)
    assert (ports.console(one), ports.console(one), ports.console(other)) == ("ab", "", "x")


def test_the_console_keeps_what_nobody_has_taken_up_to_a_bound() -> None:
    ports, vcpu = Ports(), Vcpu(0)
    for _ in range(MAX_CONSOLE_BYTES // 4096 + 1):
        ports.serve(vcpu, out(0xE9, b"x" * 4095 + b"y"))
    printed = ports.console(vcpu)
    assert len(printed) <= MAX_CONSOLE_BYTES
    assert printed.endswith("y")


def test_what_ports_read_as() -> None:
    ports, vcpu = Ports(), Vcpu(0)
    assert [read(ports, vcpu, port, 1) for port in (0x3FD, 0xE9, 0x80)] == [b"\x60", b"\xe9", b"\xff"]
    assert read(ports, vcpu, 0x80, 4) == b"\xff" * 4
    assert read(ports, vcpu, 0x3FD, 2, 3) == b"\x60\0" * 3


def test_exits_of_ports_that_are_left_to_the_driver_are_not_served() -> None:
    ports, vcpu = Ports(), Vcpu(0)
    ports.leave(0x3F8, 2, left=True)
    assert not ports.serve(vcpu, out(0x3F8, b"a"))
    assert not ports.serve(vcpu, out(0x3F9, b"a"))
    ports.leave(0x3F8, 1, left=False)
    assert ports.serve(vcpu, out(0x3F8, b"a"))
    assert ports.console(vcpu) == "a"
