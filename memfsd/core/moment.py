"""Copies of what the audit looks at, all of one moment: the store goes on while they are made and compared.

One hold of Service.lock for what each block of frames is and the list of files; then some frames and some files at a
time. A page table that is changed before its turn is kept first (TablesThen), and so are frames (StateCopy). What else
there is of a sealed file changes with its invalidate_lock held only, which is the caller's until all is there.

Copies of many small files are numbers: were they objects, the collector of garbage would go through all of them.
"""

import copy
import weakref
from collections.abc import Set as AbstractSet
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from memfsd.uapi.frame_state import FrameState
from memfsd.uapi.units import Ino

from .files.inodes import Inode, Regular
from .gmem import guest_of
from .memory.page_table import FilePages, TablesThen
from .memory.state_copy import Pfns
from .service import Service

_STEP_INODES = 64
_STEP_NUMBERS = 1024
_STEP_SEALED = 8
Pgoffs = NDArray[np.int64]
Pages = tuple[NDArray[np.uint64], Pgoffs, Pfns]
"""Of each page: its inode, where it is in the file, and its frame."""
PRIVATE_STATES = (FrameState.PRIVATE, FrameState.PENDING, FrameState.CLOSING)


class Holding(NamedTuple):
    """Frames that belong to an inode, and the states that fit; `rule` is broken by any other."""

    ino: Ino
    pages: FilePages
    legal: tuple[FrameState, ...]
    rule: str = "R2"


class Moment:
    """Make it with the service's lock held, and with that held again `copy_some` until there is no more. Then it needs
    none."""

    def __init__(self, service: Service, settled: AbstractSet[Ino]) -> None:
        """settled: sealed files whose invalidate_lock the caller holds. Of others only the page tables are copied."""
        self.options = service.options
        self.frame_count = service.pool.frame_count
        self.states = service.pool.copy_states()
        self.swap_used = service.slots.used
        self.inode_count = len(service.inodes)
        self.sealed: list[Regular] = []
        self.unsettled: list[Regular] = []
        """Sealed files of which there are only page tables, and what counts these."""
        self.holdings: list[Holding] = []
        self.small: list[Pages] = []
        """Of ordinary files that have a few nodes only."""
        self.discards: list[Holding] = []
        """Of sealed files, among the holdings."""
        self.returned: list[FilePages] = []
        """Slots of the swap file that are no file's any more."""
        self._tables = TablesThen()
        weakref.finalize(self, self._tables.close)
        sealed = service.inodes.sealed_files()
        self._settled = settled
        self._inos = {file.ino for file in sealed}
        self._inodes, self._numbers, self._reached = service.inodes, service.inodes.numbers(), 0
        self._dropped, self._dropped_count = service.inodes.watch(), 0
        self._unwatch = weakref.finalize(self, service.inodes.unwatch, self._dropped)
        self._gone: list[Inode] = []
        """Dropped before their turn."""
        self._sealed = iter([(file, guest_of(file).pending) for file in sealed])
        self._others: list[Holding] = []
        """Tables of pages that are of no file any more, or not yet."""
        for discard in service.data.discards:
            states = (FrameState.SHARED,) if discard.window is None else (*PRIVATE_STATES, FrameState.QUARANTINED)
            self._others.append(Holding(discard.ino, discard.pages, states))
            if discard.window is not None:
                self.discards.append(Holding(discard.ino, self._tables.of(discard.pages), states))
        for allocation in service.data.allocations.values():
            supplied = (FrameState.SHARED, FrameState.PRIVATE)
            self._others.append(Holding(allocation.file.ino, allocation.supply, supplied))
        for effect in service.gmem.quarantines:
            self._others.append(Holding(effect.ino, effect.pages, PRIVATE_STATES))
        self.returned = [effect.pages for effect in service.gmem.slot_returns]

    def copy_some(self) -> bool:
        """Some more frames, or some more files; False when that were all."""
        if self.states.copy_some():
            return True
        sealed = list(islice(self._sealed, _STEP_SEALED))
        if sealed:
            for file, pending in sealed:
                self._copy(file, pending)
            return True
        if (inodes := self._next_inodes()) is not None:
            self._copy_ordinary([i for i in inodes if isinstance(i, Regular) and i.ino not in self._inos])
            return True
        for other in self._others:
            self._hold(other)
        self.returned = [self._tables.of(table) for table in self.returned]
        self._others = []
        self._unwatch()
        return False

    def _next_inodes(self) -> list[Inode] | None:
        """Some that there were at the moment; None: these were all."""
        dropped = self._dropped.inodes[self._dropped_count :]
        self._dropped_count += len(dropped)
        self._gone += [inode for inode in dropped if inode.ino > self._reached]
        before, found = self._reached, list[Inode]()
        for ino in islice(self._numbers, _STEP_NUMBERS):
            self._reached = ino
            if (inode := self._inodes.find(ino)) is not None:
                found.append(inode)
                if len(found) == _STEP_INODES:
                    break
        if self._reached > before:
            return found
        found, self._gone = self._gone[:_STEP_INODES], self._gone[_STEP_INODES:]
        return found or None

    def _copy_ordinary(self, files: list[Regular]) -> None:
        inos, pages = list[int](), list[tuple[Pgoffs, Pfns]]()
        for file in files:
            then = self._tables.peek(file.pages)
            if not then.page_count:
                continue
            few = then.few()
            if few is None:
                self._hold(Holding(file.ino, file.pages, (FrameState.SHARED,)))
            else:
                self._tables.seen(file.pages)
                inos.append(file.ino)
                pages.append(few)
        if pages:
            counts = [len(pgoffs) for pgoffs, _ in pages]
            pgoffs, pfns = (np.concatenate(part) for part in zip(*pages, strict=True))
            self.small.append((np.repeat(np.array(inos, np.uint64), counts), pgoffs, pfns))

    def _hold(self, holding: Holding) -> None:
        """Unless its table was empty."""
        table = holding.pages
        if table.page_count or self._tables.has(table):
            then = self._tables.of(table)
            if then.page_count:
                self.holdings.append(holding._replace(pages=then))

    def _copy(self, file: Regular, pending: int) -> None:
        """pending: as it was."""
        copied, guest = copy.copy(file), copy.copy(guest_of(file))
        copied.pages, copied.guest = self._tables.of(file.pages), guest
        guest.pending = pending
        if file.ino in self._settled:
            guest.pairing = copy.copy(guest.pairing)
            guest.bindings = guest.bindings.copy()
        guest.absent = guest.absent.copy(self._tables)
        guest.quarantine = self._tables.of(guest.quarantine)
        guest.moving = self._tables.of(guest.moving)
        (self.sealed if file.ino in self._settled else self.unsettled).append(copied)
        self.holdings.append(Holding(file.ino, copied.pages, PRIVATE_STATES))
        self._hold(Holding(file.ino, guest_of(file).quarantine, (FrameState.QUARANTINED,), "R6"))
        self._hold(Holding(file.ino, guest_of(file).moving, (FrameState.MOVING, FrameState.QUARANTINED), "R6"))


def moment_of(service: Service) -> Moment:
    """In one step, of a store that nobody else is changing."""
    moment = Moment(service, {file.ino for file in service.inodes.sealed_files()})
    while moment.copy_some():
        pass
    return moment
