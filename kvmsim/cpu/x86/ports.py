"""What machine code finds beside memory: a console at a port, and CPUID leaves that say what kind of guest it is in."""

from kvmsim.kvm.hypercalls import SHARED_BIT

CONSOLE_PORTS = frozenset({0x3F8, 0xE9})
_LINE_STATUS, _EMPTY = 0x3FD, 0x60
_DEBUG_PORT = 0xE9
MAX_CONSOLE_BYTES = 1 << 20
"""Output of one vCPU that nobody has taken yet; what is older goes."""

GPA_BITS = SHARED_BIT.bit_length()
_TDX_LEAF, _TDX_NAME = 0x21, b"IntelTDX    "
_ADDRESS_LEAF = 0x8000_0008
_HYPERVISOR_LEAF, _HYPERVISOR_NAME = 0x4000_0000, b"KVMKVMKVM\0\0\0"


class Console:
    """The output of a vCPU, until somebody takes it."""

    def __init__(self) -> None:
        self._output = bytearray()

    def read(self, port: int, size: int) -> int:
        """A UART that is always ready to send; where there is no device, all bits are set."""
        if port == _LINE_STATUS:
            return _EMPTY
        if port == _DEBUG_PORT:
            return _DEBUG_PORT
        return (1 << 8 * size) - 1

    def write(self, port: int, size: int, value: int) -> None:
        if port in CONSOLE_PORTS:
            self._output += value.to_bytes(8, "little")[:size]
            if len(self._output) > MAX_CONSOLE_BYTES:
                del self._output[: MAX_CONSOLE_BYTES // 2]

    @property
    def is_waiting(self) -> bool:
        return bool(self._output)

    def take(self) -> str:
        text, self._output = self._output.decode(errors="replace"), bytearray()
        return text


def cpuid(leaf: int, subleaf: int) -> tuple[int, int, int, int] | None:
    """A TD, so that the SHARED bit is the last one of guest physical addresses; None: what the CPU says by itself."""
    if leaf == _TDX_LEAF and not subleaf:
        b, d, c = (int.from_bytes(_TDX_NAME[at : at + 4], "little") for at in (0, 4, 8))
        return 0, b, c, d
    if leaf == _HYPERVISOR_LEAF:
        b, c, d = (int.from_bytes(_HYPERVISOR_NAME[at : at + 4], "little") for at in (0, 4, 8))
        return _HYPERVISOR_LEAF, b, c, d
    if leaf == _ADDRESS_LEAF:
        return 48 << 8 | GPA_BITS, 0, 0, 0
    return None
