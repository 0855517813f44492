"""Port I/O of a guest: each transfer is an exit, which user space answers before it runs the vCPU again."""

from kvmsim.kvm.exits import IoDirection, IoExit
from kvmsim.kvm.kvm_run import io_data
from kvmsim.kvm.vcpu import Program, Vcpu


def port_in(vcpu: Vcpu, port: int, size: int, count: int = 1) -> Program[bytes]:
    """size * count bytes."""
    yield from vcpu.entry()
    yield IoExit(IoDirection.IN, size, port, count)
    return io_data(vcpu.run, size * count)


def port_out(vcpu: Vcpu, port: int, size: int, data: bytes) -> Program[None]:
    """size: of each transfer."""
    yield from vcpu.entry()
    yield IoExit(IoDirection.OUT, size, port, len(data) // size, data)
