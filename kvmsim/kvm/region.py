"""What user space says of guest memory: the values of the ioctls."""

from enum import IntFlag
from typing import NamedTuple

from kvmsim.memory.memory import Memory, UnmappedMemory
from memfsd.uapi.gmem_ioctls import ATTRIBUTE_PRIVATE as ATTRIBUTE_PRIVATE
from memfsd.uapi.units import PAGE_SHIFT, Gfn, Pgoff

from .alias import PRIVATE, SHARED
from .mmu.eptentry import MAX_GFN_EPT

_SPACE_SHIFT = 16
GPA_END = MAX_GFN_EPT << PAGE_SHIFT
MAX_SLOT_PAGES = (1 << 31) - 1
"""KVM_MEM_MAX_NR_PAGES: dirty bitmaps are indexed with an unsigned int."""


class SlotFlag(IntFlag):
    """KVM_MEM_*, with the kernel's values."""

    LOG_DIRTY_PAGES = 1
    READONLY = 2
    GUEST_MEMFD = 4


class MemoryRegion(NamedTuple):
    """struct kvm_userspace_memory_region2, as it comes from user space: nothing of it is checked. gpa, size and offset
    are bytes; size 0 deletes. offset: in the backing of the slot, be it a guest_memfd_offset or a userspace_addr."""

    id: int
    space: int
    flags: int
    gpa: int
    size: int
    offset: int

    @classmethod
    def shared(cls, id_: int, gpa: int, size: int, *, flags: int = 0, offset: int = 0) -> "MemoryRegion":
        return cls(id_, SHARED, flags, gpa, size, offset)

    @classmethod
    def private(cls, id_: int, gpa: int, size: int, *, flags: int = 0, offset: int = 0) -> "MemoryRegion":
        return cls(id_, PRIVATE, flags, gpa, size, offset)

    @property
    def gfn(self) -> Gfn:
        """The first of the slot's GFNs."""
        return Gfn(self.gpa >> PAGE_SHIFT)

    @property
    def page_count(self) -> int:
        """In 4 KiB."""
        return self.size >> PAGE_SHIFT

    @property
    def end(self) -> Gfn:
        """The GFN after the last one."""
        return self.gfn + self.page_count

    @property
    def pgoff(self) -> Pgoff:
        """The page of the backing at the first GFN."""
        return Pgoff(self.offset >> PAGE_SHIFT)


class Region2(NamedTuple):
    """struct kvm_userspace_memory_region2, as it comes from user space: nothing of it is checked. The address space is
    in bits 31:16 of slot. is_v2: False for KVM_SET_USER_MEMORY_REGION, which knows no guest_memfd."""

    slot: int
    flags: int
    gpa: int
    size: int
    userspace_addr: int = 0
    offset: int = 0
    is_v2: bool = True

    @property
    def has_gmem(self) -> bool:
        return bool(self.flags & SlotFlag.GUEST_MEMFD)

    @property
    def gfn(self) -> Gfn:
        return Gfn(self.gpa >> PAGE_SHIFT)

    @property
    def end(self) -> Gfn:
        return Gfn(self.gpa + self.size >> PAGE_SHIFT)

    def shared_half(self, offset: int) -> MemoryRegion:
        """offset: of userspace_addr in the memory behind it."""
        return MemoryRegion.shared(self.slot, self.gpa, self.size, flags=self.flags, offset=offset)

    def private_half(self) -> MemoryRegion:
        return MemoryRegion.private(self.slot, self.gpa, self.size, flags=self.flags, offset=self.offset)


class GmemFd(NamedTuple):
    """A descriptor of user space, which stays its own, and what a person calls it."""

    fd: int
    name: str


class Userspace(NamedTuple):
    """What is mapped at userspace_addr, and where in it that is. owned: closed with the slot."""

    memory: Memory = UnmappedMemory()
    offset: int = 0
    name: str = "(nothing)"
    owned: bool = False


class AttributesRange(NamedTuple):
    """struct kvm_memory_attributes, as it comes from user space. address and size in bytes."""

    address: int
    size: int
    attributes: int
    flags: int = 0
