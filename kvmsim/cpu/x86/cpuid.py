"""CPUID leaves that say what kind of guest code runs in."""

from kvmsim.kvm.hypercalls import SHARED_BIT

GPA_BITS = SHARED_BIT.bit_length()
_TDX_LEAF, _TDX_NAME = 0x21, b"IntelTDX    "
_ADDRESS_LEAF = 0x8000_0008
_HYPERVISOR_LEAF, _HYPERVISOR_NAME = 0x4000_0000, b"KVMKVMKVM\0\0\0"


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
