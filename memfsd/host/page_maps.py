"""Memory of page maps (uapi.page_map): a memfd for each, which the store alone can write."""

import fcntl
import os
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from memfsd.common.linux import map_shared
from memfsd.uapi.limits import MAX_PAGE_MAP_BYTES
from memfsd.uapi.page_map import FIRST_WORD, map_bytes
from memfsd.uapi.units import Ino

_F_SEAL_FUTURE_WRITE = 0x10
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL | _F_SEAL_FUTURE_WRITE


class Mapped(NamedTuple):
    """fd: for the VM, the caller's to close. words: the same memory, as the store writes it, unmapped with the last
    reference to it."""

    fd: int
    words: NDArray[np.uint64]

    @property
    def page_count(self) -> int:
        """Pages that it has entries for."""
        return len(self.words) - FIRST_WORD


def make_page_map(ino: Ino, page_count: int) -> Mapped:
    """All zero and sparse. Of the file's first pages only, if it has more than a map may have. OSError."""
    size = min(map_bytes(page_count), MAX_PAGE_MAP_BYTES)
    fd = os.memfd_create(f"memfsd-page-map-{ino}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        mapped = map_shared(fd, size, writable=True)
        # From here on nobody else can write to it, by whatever way, and nobody can take the seal off.
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except OSError:
        os.close(fd)
        raise
    return Mapped(fd, np.frombuffer(memoryview(mapped), np.uint64))
