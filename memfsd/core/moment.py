"""Copies of what the audit looks at, all of one moment: the store goes on while they are made and compared.

One hold of Service.lock for the frames' states and the list of files; then some files at a time. A page table that is
changed before its turn is kept first (TablesThen). What else there is of a sealed file changes with its
invalidate_lock held only, which is the caller's until all is there.
"""

import copy
import weakref
from collections.abc import Set as AbstractSet
from itertools import islice
from typing import NamedTuple

from memfsd.uapi.frame_state import FrameState
from memfsd.uapi.units import Ino

from .files.inodes import Regular
from .gmem import guest_of
from .memory.page_table import FilePages, TablesThen
from .service import Service

_STEP_INODES = 64
_STEP_SEALED = 8
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

    def __init__(self, service: Service, settled: AbstractSet[Ino] = frozenset()) -> None:
        """settled: sealed files whose invalidate_lock the caller holds. Of others all is copied at once."""
        self.options = service.options
        self.frame_count = service.pool.frame_count
        self.states = service.pool.copy_states()
        self.swap_used = service.slots.used
        self.inode_count = len(service.inodes)
        self.sealed: list[Regular] = []
        self.holdings: list[Holding] = []
        self.discards: list[Holding] = []
        """Of sealed files, among the holdings."""
        self._tables = TablesThen()
        weakref.finalize(self, self._tables.close)
        sealed = service.inodes.sealed_files()
        self._inos = {file.ino for file in sealed}
        self._inodes = iter(list(service.inodes))
        self._sealed = iter([(file, guest_of(file).pending) for file in sealed if file.ino in settled])
        for file in sealed:
            if file.ino not in settled:
                self._copy(file, guest_of(file).pending)
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

    def copy_some(self) -> bool:
        """Some more files; False when that were all."""
        sealed = list(islice(self._sealed, _STEP_SEALED))
        if sealed:
            for file, pending in sealed:
                self._copy(file, pending)
            return True
        inodes = list(islice(self._inodes, _STEP_INODES))
        for inode in inodes:
            if isinstance(inode, Regular) and inode.ino not in self._inos:
                self._hold(Holding(inode.ino, inode.pages, (FrameState.SHARED,)))
        if inodes:
            return True
        for other in self._others:
            self._hold(other)
        self._others = []
        return False

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
        guest.pairing = copy.copy(guest.pairing)
        guest.bindings = guest.bindings.copy()
        guest.absent = guest.absent.copy()
        guest.quarantine = self._tables.of(guest.quarantine)
        guest.moving = self._tables.of(guest.moving)
        self.sealed.append(copied)
        self.holdings.append(Holding(file.ino, copied.pages, PRIVATE_STATES))
        self._hold(Holding(file.ino, guest_of(file).quarantine, (FrameState.QUARANTINED,), "R6"))
        self._hold(Holding(file.ino, guest_of(file).moving, (FrameState.MOVING, FrameState.QUARANTINED), "R6"))


def moment_of(service: Service) -> Moment:
    """In one step."""
    moment = Moment(service)
    while moment.copy_some():
        pass
    return moment
