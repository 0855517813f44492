"""What user space says of guest memory: the values of the ioctls."""

from enum import IntEnum, IntFlag

from memfsd.uapi.units import PAGE_SHIFT

from .mmu.eptentry import MAX_GFN_EPT

GPA_END = MAX_GFN_EPT << PAGE_SHIFT


class AddressSpaceId(IntEnum):
    """Whose slots: those of shared GPAs, or of private ones."""

    SHARED = 0
    PRIVATE = 1


class SlotFlag(IntFlag):
    """KVM_MEM_*, with the kernel's values."""

    LOG_DIRTY_PAGES = 1
    READONLY = 2
    GUEST_MEMFD = 4
