"""Copies of what the audit looks at, all of one moment: the store goes on while they are compared.

It costs Service.lock about 10 microseconds for each file that holds memory, 2 for each 2 MiB of scattered frames.
"""

import copy
from typing import NamedTuple

from memfsd.uapi.frame_state import FrameState
from memfsd.uapi.units import Ino

from .files.inodes import Regular
from .memory.page_table import FilePages
from .service import Service

PRIVATE_STATES = (FrameState.PRIVATE, FrameState.PENDING, FrameState.CLOSING)


class Holding(NamedTuple):
    """Frames that belong to an inode, and the states that fit; `rule` is broken by any other."""

    ino: Ino
    pages: FilePages
    legal: tuple[FrameState, ...]
    rule: str = "R2"


class Moment:
    """Make it with the service's lock held; then it needs none."""

    def __init__(self, service: Service) -> None:
        self.options = service.options
        self.frame_count = service.pool.frame_count
        self.states = service.pool.copy_states()
        self.swap_used = service.slots.used
        self.sealed = [_copy(file) for file in service.inodes.sealed_files()]
        self.holdings: list[Holding] = [
            Holding(inode.ino, inode.pages.copy(), (FrameState.SHARED,))
            for inode in service.inodes
            if isinstance(inode, Regular) and inode.guest is None and inode.pages.page_count
        ]
        self.holdings += [Holding(file.ino, file.pages, PRIVATE_STATES) for file in self.sealed]
        self.discards: list[Holding] = []
        """Of sealed files, among the holdings."""
        for discard in service.data.discards:
            states = (FrameState.SHARED,) if discard.window is None else (*PRIVATE_STATES, FrameState.QUARANTINED)
            self.holdings.append(Holding(discard.ino, discard.pages.copy(), states))
            self.discards += self.holdings[-1:] if discard.window is not None else []
        for allocation in service.data.allocations.values():
            supply = allocation.supply.copy()
            self.holdings.append(Holding(allocation.file.ino, supply, (FrameState.SHARED, FrameState.PRIVATE)))
        for effect in service.gmem.quarantines:
            self.holdings.append(Holding(effect.ino, effect.pages.copy(), PRIVATE_STATES))
        for file in self.sealed:
            assert file.guest is not None
            if file.guest.quarantine.page_count:
                kept = file.guest.quarantine
                self.holdings.append(Holding(file.ino, kept, (FrameState.QUARANTINED,), "R6"))
            if file.guest.moving.page_count:
                moving = (FrameState.MOVING, FrameState.QUARANTINED)
                self.holdings.append(Holding(file.ino, file.guest.moving, moving, "R6"))


def _copy(file: Regular) -> Regular:
    copied = copy.copy(file)
    copied.pages = file.pages.copy()
    guest = copied.guest = copy.copy(file.guest)
    assert guest is not None
    guest.pairing = copy.copy(guest.pairing)
    guest.bindings = guest.bindings.copy()
    guest.absent = guest.absent.copy()
    guest.quarantine = guest.quarantine.copy()
    guest.moving = guest.moving.copy()
    return copied
