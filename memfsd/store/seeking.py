"""One lseek(2) with SEEK_DATA or SEEK_HOLE, in steps that hold Service.lock for a moment each."""

import os
import threading
from typing import NamedTuple

from memfsd.core.files.seeking import Seek
from memfsd.host.windows import Windows


class Hole(NamedTuple):
    """Bytes [start, end) that may hold what a mapping stored: the kernel must write it back before lseek answers."""

    start: int
    end: int
    answer: int
    """When that cannot be: what may be data is data, and a file always ends with a hole."""


class Seeking:
    """`step` until it is done, then `answer`."""

    def __init__(self, lock: threading.Lock, seek: Seek, windows: Windows) -> None:
        self._lock = lock
        self._seek = seek
        self._windows = windows

    def step(self) -> bool:
        """True when it is done."""
        with self._lock:
            return self._seek.step(self._windows)

    def answer(self, written_back_to: int) -> int | Hole:
        """The offset, or a hole to be written back first: then seek again, and say up to where it was. ENXIO."""
        with self._lock:
            hole = self._seek.doubtful_hole()
            if hole is None or hole[1] <= written_back_to:
                return self._seek.answer()
            return Hole(*hole, hole[0] if self._seek.whence == os.SEEK_DATA else self._seek.file.size)
