"""Ids for the slots that user space makes."""

import errno
import heapq
from typing import Any

from kvmsim.vmm.ram import Regions
from memfsd.uapi.errors import Refused
from memfsd.uapi.limits import MAX_SLOTS


class SlotIds:
    """From the top of an address space, away from those that people choose; log(n) an id, however many are in use."""

    def __init__(self, name: str, regions: Regions[Any], max_slots: int) -> None:
        """name: of the address space."""
        self._name = name
        self._regions = regions
        self._max_slots = max_slots
        self._next = max_slots - 1
        """Ids above were given out, or are a person's."""
        self._returned: list[int] = []
        """Of those above, negated: what was given back, as a heap, each once. A slot may have it again."""
        self._is_returned: set[int] = set()

    def take(self) -> int:
        """The highest id that no slot has; ENOSPC at the cap."""
        if len(self._regions) >= self._max_slots:
            more = "raise --max-slots" if self._max_slots < MAX_SLOTS else "delete some, or convert in larger ranges"
            raise Refused(errno.ENOSPC, f"all {self._max_slots} {self._name} slots are in use: {more}")
        while True:
            while self._returned:
                id_ = -heapq.heappop(self._returned)
                self._is_returned.remove(id_)
                if self._regions.get(id_) is None:
                    return id_
            while self._next >= 0:
                id_, self._next = self._next, self._next - 1
                if self._regions.get(id_) is None:
                    return id_
            self._next = self._max_slots - 1  # a person has deleted slots of theirs meanwhile

    def give_back(self, id_: int) -> None:
        if id_ not in self._is_returned:
            self._is_returned.add(id_)
            heapq.heappush(self._returned, -id_)
