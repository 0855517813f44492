"""The entry layout of the hardware's extended page tables (Intel SDM vol. 3, 29.3.2)."""

import numpy as np
from numpy.typing import NDArray

from memfsd.uapi.units import Gfn, HostPfn

READ = 1 << 0
WRITE = 1 << 1
EXECUTE = 1 << 2
MEMORY_TYPE_SHIFT = 3
MEMORY_TYPE_MASK = 7 << MEMORY_TYPE_SHIFT
MEMORY_TYPE_UC = 0 << MEMORY_TYPE_SHIFT
MEMORY_TYPE_WB = 6 << MEMORY_TYPE_SHIFT
LARGE = 1 << 7
"""A leaf above level 0: 2 MiB in a table of level 1, 1 GiB in one of level 2."""
ACCESSED = 1 << 8
DIRTY = 1 << 9
AGED = 1 << 11
"""Was ACCESSED when KVM last cleared that: a bit that the hardware ignores, as KVM's own SPTE bits."""
TOUCHED = ACCESSED | AGED
PFN_SHIFT = 12

LEVEL_BITS = 9
ENTRIES = 1 << LEVEL_BITS
INDEX = ENTRIES - 1
TOP_LEVEL = 3
MAX_GFN_EPT = Gfn(1 << 36)
"""GFNs end here: 48-bit guest physical addresses, without the SHARED bit."""
MAX_PFN = HostPfn(1 << 52 - PFN_SHIFT)

Words = NDArray[np.uint64]


def entry_pfn(entry: int) -> HostPfn:
    return HostPfn(entry >> PFN_SHIFT)


def entry_writable(entry: int) -> bool:
    return entry & WRITE != 0


def entry_memory_type(entry: int) -> int:
    """MEMORY_TYPE_UC or MEMORY_TYPE_WB."""
    return entry & MEMORY_TYPE_MASK


def leaf_pages(level: int) -> int:
    """Pages that one leaf in a table of this level maps."""
    return 1 << level * LEVEL_BITS
