"""What a guest_memfd has besides a sealed file: its flags, and which of its pages are shared with the host."""

import errno
from dataclasses import dataclass, field

from memfsd.common.intervals import IntervalSet
from memfsd.uapi.abi import GmemFlag
from memfsd.uapi.errors import Refused
from memfsd.uapi.gmem_ioctls import ATTRIBUTE_PRIVATE, MemoryAttributes2
from memfsd.uapi.units import ORDER_4K, PAGE_SHIFT, PAGE_SIZE, Pgoff, PgoffRange, page_aligned


@dataclass(slots=True, eq=False)
class GuestMemfd:
    """shared: pages that are no private memory of the guest; all others are.

    Punching a page does not change what it is.
    """

    flags: GmemFlag
    shared: IntervalSet = field(default_factory=IntervalSet)

    @property
    def is_mappable(self) -> bool:
        return GmemFlag.MMAP in self.flags

    def is_shared(self, start: int, end: int) -> bool:
        """All of these pages are."""
        return self.shared.first(start, end) == (start, end)

    def is_private(self, start: int, end: int) -> bool:
        """All of these pages are."""
        return self.shared.first(start, end) is None

    def shared_until(self, pgoff: int) -> tuple[bool, int | None]:
        """Whether the page is shared, and up to which page the same holds; None: to the end of the file."""
        return self.shared.run_at(pgoff)

    def shared_ranges(self, start: Pgoff, end: Pgoff) -> list[PgoffRange]:
        return self.shared.within(start, end)

    def convert(self, start: int, end: int, *, to_shared: bool) -> None:
        if to_shared:
            self.shared.add(start, end)
        else:
            self.shared.discard(start, end)


def born(flags: GmemFlag, page_count: int) -> GuestMemfd:
    """Private, but with INIT_SHARED."""
    memfd = GuestMemfd(flags)
    if GmemFlag.INIT_SHARED in flags:
        memfd.shared.add(0, page_count)
    return memfd


def check_attributes(memfd: GuestMemfd, asked: MemoryAttributes2, file_size: int) -> PgoffRange | None:
    """KVM_SET_MEMORY_ATTRIBUTES2: the pages that change; None: all of them are so already.

    EINVAL in the kernel's order: flags, reserved, attributes, size or wrap, alignment, outside the file.
    """
    offset, size = asked.offset, asked.size
    if asked.flags or any(asked.reserved):
        raise Refused(errno.EINVAL, f"flags {asked.flags:#x} and all reserved words must be 0")
    if asked.attributes & ~ATTRIBUTE_PRIVATE:
        raise Refused(errno.EINVAL, f"attributes {asked.attributes:#x}: there is only PRIVATE, {ATTRIBUTE_PRIVATE:#x}")
    if not size or offset + size >= 1 << 64:
        raise Refused(errno.EINVAL, f"offset {offset} and size {size}: give at least one page, within 64 bits")
    if not page_aligned(offset | size, ORDER_4K):
        raise Refused(errno.EINVAL, f"offset {offset} and size {size} must be multiples of {PAGE_SIZE}")
    if offset + size > file_size:
        raise Refused(errno.EINVAL, f"offset + size, {offset + size}, is past the end of the file ({file_size} bytes)")
    start, end = Pgoff(offset >> PAGE_SHIFT), Pgoff(offset + size >> PAGE_SHIFT)
    is_so = memfd.is_private if asked.attributes & ATTRIBUTE_PRIVATE else memfd.is_shared
    return None if is_so(start, end) else (start, end)
