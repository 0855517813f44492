"""Pages that an ordinary file loses, taken out in steps of bounded length, and then its size.

As on tmpfs, who reads meanwhile may see some pages gone and others not yet. What was stored there meanwhile goes, too.
"""

from memfsd.core.memory.page_table import Run

from .inodes import Regular


class Cutting:
    """Pages [start, end) of a file; size: its new one, set in the step that finds all of them gone."""

    def __init__(self, file: Regular, start: int, end: int, size: int | None) -> None:
        self.file = file
        self.start, self.end = start, end
        self._size = size
        self._at = start

    def step(self) -> list[Run] | None:
        """What has left the file just now; None: it is done."""
        file = self.file
        if file.guest is not None:  # it was emptied, and sealed
            return None
        if self._at >= self.end:
            if self._size is None:
                return None
            first = file.pages.first_mapped(self.start, self.end)
            if first is None:
                file.size = self._size
                return None
            self._at = first
        _, reached = file.pages.part(self._at, self.end)
        runs = file.pages.unmap(self._at, reached)
        self._at = reached
        return runs
