"""Memory of a device: frames outside the pool and its tables, named by their place in a window of the device's own.

As memory without struct page: nobody allocates, zeroes, moves, swaps or frees it. It is there as long as the device.
"""

import errno
from dataclasses import dataclass

from memfsd.uapi.errors import Refused
from memfsd.uapi.units import Pfn


@dataclass(slots=True, eq=False)
class Device:
    """What a sealed file is made of when it is a device. is_gone: it was removed, and is not coming back."""

    page_count: int
    is_gone: bool = False

    def check_there(self) -> None:
        """ENODEV once it was removed."""
        if self.is_gone:
            raise Refused(errno.ENODEV, "the device was removed: delete its slots, and use a new file")

    def run_at(self, pgoff: int, max_pages: int) -> tuple[Pfn, int] | None:
        """(frame, pages), as FilePages.run_at: frame N is page N. None once it was removed."""
        count = min(max_pages, self.page_count - pgoff)
        return None if self.is_gone or count <= 0 else (Pfn(pgoff), count)
