"""I/O ports of user space: a console for each vCPU, ports that are left to whoever drives the VM, and nothing else."""

from kvmsim.kvm.exits import IoExit
from kvmsim.kvm.kvm_run import set_io_data
from kvmsim.kvm.vcpu import Vcpu

CONSOLE_PORTS = frozenset({0x3F8, 0xE9})
_LINE_STATUS, _EMPTY = 0x3FD, 0x60
_DEBUG_PORT = 0xE9
MAX_CONSOLE_BYTES = 1 << 20
"""Output of one vCPU that nobody has taken yet; what is older goes."""


class Console:
    """The output of a vCPU, until somebody takes it."""

    def __init__(self) -> None:
        self._output = bytearray()

    def write(self, data: bytes) -> None:
        self._output += data
        if len(self._output) > MAX_CONSOLE_BYTES:
            del self._output[: -MAX_CONSOLE_BYTES // 2]

    @property
    def is_waiting(self) -> bool:
        return bool(self._output)

    def take(self) -> str:
        text, self._output = self._output.decode(errors="replace"), bytearray()
        return text


class Ports:
    """Of one VM. A port without a device is an unassigned one of QEMU: OUT is ignored, and IN reads all ones."""

    def __init__(self) -> None:
        self._consoles: dict[int, Console] = {}
        self._left: set[int] = set()

    def leave(self, port: int, count: int, *, left: bool) -> None:
        """Exits of these ports are the driver's, or (not left) served as before."""
        ports = range(port, port + count)
        if left:
            self._left.update(ports)
        else:
            self._left.difference_update(ports)

    def serve(self, vcpu: Vcpu, exit_: IoExit) -> bool:
        """Answers the exit, for the next KVM_RUN. False: its port is left to the driver."""
        if exit_.port in self._left:
            return False
        if exit_.is_in:
            set_io_data(vcpu.run, self._read(exit_.port, exit_.size) * exit_.count)
        elif exit_.port in CONSOLE_PORTS:
            self._console(vcpu).write(exit_.data)
        return True

    def _read(self, port: int, size: int) -> bytes:
        """A UART that is always ready to send, and a debug port that says that it is there."""
        if port == _LINE_STATUS:
            return _EMPTY.to_bytes(size, "little")
        if port == _DEBUG_PORT:
            return _DEBUG_PORT.to_bytes(size, "little")
        return b"\xff" * size

    def _console(self, vcpu: Vcpu) -> Console:
        return self._consoles.setdefault(vcpu.id, Console())

    def console(self, vcpu: Vcpu) -> str:
        """What the vCPU has printed since the last time."""
        return self._console(vcpu).take()

    def has_printed(self, vcpu: Vcpu) -> bool:
        """Something that nobody has taken yet; from any thread."""
        return self._console(vcpu).is_waiting
