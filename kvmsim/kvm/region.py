"""What user space says of guest memory: the values of the ioctls."""

from enum import IntFlag
from typing import NamedTuple

from memfsd.uapi.units import PAGE_SHIFT, Gfn, Pgoff

from .alias import PRIVATE, SHARED
from .mmu.eptentry import MAX_GFN_EPT

GPA_END = MAX_GFN_EPT << PAGE_SHIFT


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
