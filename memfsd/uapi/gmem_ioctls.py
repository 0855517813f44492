"""guest_memfd's structures and flags, as <linux/kvm.h> has them.

create_guest_memfd     struct kvm_create_guest_memfd { u64 size, flags, reserved[6] }
memory_attributes2     struct kvm_memory_attributes2 { u64 offset, size, attributes, flags, error_offset, reserved[11] }
"""

import errno
import struct
from typing import NamedTuple

from .abi import GmemFlag
from .errors import Refused
from .units import PAGE_SIZE

ATTRIBUTE_PRIVATE = 1 << 3
"""KVM_MEMORY_ATTRIBUTE_PRIVATE."""

_CREATE = struct.Struct("=8Q")
_ATTRIBUTES2 = struct.Struct("=16Q")
CREATE_BYTES, ATTRIBUTES2_BYTES = _CREATE.size, _ATTRIBUTES2.size


FLAG_NAMES = {"mmap": GmemFlag.MMAP, "init-shared": GmemFlag.INIT_SHARED}


class CreateGuestMemfd(NamedTuple):
    """KVM_CREATE_GUEST_MEMFD. The kernel does not look at reserved words."""

    size: int
    flags: int

    def pack(self) -> bytes:
        """Refused(EINVAL) for what does not fit into 64 bits."""
        if not 0 <= self.size < 1 << 64 or not 0 <= self.flags < 1 << 64:
            raise Refused(errno.EINVAL, f"size {self.size} and flags {self.flags:#x} must fit into 64 bits")
        return _CREATE.pack(self.size, self.flags, *[0] * 6)

    @classmethod
    def unpack(cls, data: bytes) -> "CreateGuestMemfd":
        size, flags, *_ = _CREATE.unpack(data)
        return cls(size, flags)


class MemoryAttributes2(NamedTuple):
    """KVM_SET_MEMORY_ATTRIBUTES2 on a guest_memfd; offset and size in bytes."""

    offset: int
    size: int
    attributes: int
    flags: int = 0
    error_offset: int = 0
    reserved: tuple[int, ...] = (0,) * 11

    def pack(self) -> bytes:
        return _ATTRIBUTES2.pack(*self[:5], *self.reserved)

    @classmethod
    def unpack(cls, data: bytes) -> "MemoryAttributes2":
        offset, size, attributes, flags, error_offset, *reserved = _ATTRIBUTES2.unpack(data)
        return cls(offset, size, attributes, flags, error_offset, tuple(reserved))


def parse_flags(text: str) -> GmemFlag:
    """Flags by name, "mmap,init-shared". ValueError names one that does not exist."""
    flags = GmemFlag(0)
    for name in text.split(","):
        if name not in FLAG_NAMES:
            raise ValueError(f"no flag '{name}': choose from {', '.join(FLAG_NAMES)}")
        flags |= FLAG_NAMES[name]
    return flags


def format_flags(flags: GmemFlag) -> str:
    return ",".join(name for name, flag in FLAG_NAMES.items() if flag in flags) or "none"


def check_create(size: int, flags: int, known: GmemFlag) -> None:
    """EINVAL in the kernel's order (kvm_gmem_create): flags, then the size."""
    unknown = flags & ~int(known)
    if unknown:
        raise Refused(errno.EINVAL, f"guest_memfd flags {unknown:#x} do not exist here: choose from {int(known):#x}")
    if not 0 < size < 1 << 63 or size % PAGE_SIZE:
        raise Refused(errno.EINVAL, f"size {size} of a guest_memfd must be a multiple of {PAGE_SIZE}, and positive")
