"""Slots of the swap file: which are in use, and what went through them."""

import errno
from array import array
from collections.abc import Iterable

from memfsd.uapi.errors import Refused


class SwapSlots:
    """Numbers 0 to total. One that is given back is used again before one that was never used.

    is_on: pages may be swapped out; False after swapoff, and while it runs.
    """

    def __init__(self, total: int = 0) -> None:
        self.total = total
        self.is_on = total > 0
        self.used = 0
        self.out_count = 0
        """Pages written to the file since the start."""
        self.in_count = 0
        """Pages that came back from it."""
        self.failed_count = 0
        """Pages that stayed where they were because file or VM refused."""
        self._fresh = 0
        self._returned = array("Q")
        self._is_used = bytearray(total)

    @property
    def free_count(self) -> int:
        return self.total - self.used

    @property
    def room(self) -> int:
        """Pages that may still leave."""
        return self.free_count if self.is_on else 0

    def alloc(self) -> int:
        """ENOSPC: all are in use."""
        if self._returned:
            slot = self._returned.pop()
        elif self._fresh < self.total:
            slot = self._fresh
            self._fresh += 1
        else:
            raise self.no_room()
        assert not self._is_used[slot], f"slot {slot} is given twice"
        self._is_used[slot] = 1
        self.used += 1
        return slot

    def no_room(self) -> Refused:
        """Why no page may leave now: there are no slots, or no more are given, or all are in use."""
        if not self.total:
            return Refused(errno.EOPNOTSUPP, "there is no swap file: mount with swap=FILE")
        if not self.is_on:
            return Refused(errno.EOPNOTSUPP, "swap is off: it was turned off")
        return Refused(
            errno.ENOSPC, f"the swap file is full ({self.total} pages): punch files, or mount with a larger one"
        )

    def free(self, slots: Iterable[int]) -> None:
        """Each must be in use."""
        for slot in slots:
            assert self._is_used[slot], f"slot {slot} is not in use"
            self._is_used[slot] = 0
            self._returned.append(slot)
            self.used -= 1

    def counts(self) -> dict[str, int]:
        """As `memfs stat` shows them."""
        return {
            "swap_slots": self.total,
            "swap_used": self.used,
            "swapped_out": self.out_count,
            "swapped_in": self.in_count,
            "swap_failed": self.failed_count,
        }
