"""What an invalidation does with its pages, once the VM has acknowledged and before END.

A strategy says what the VM is asked, which pages leave the file, what is in their place, and what becomes of their
frames. Most have no state: what differs from one invalidation to the next is in the Taking.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from memfsd.common import trace
from memfsd.common.intervals import subtract, within
from memfsd.core.effects import DropDevice, Effect, Export, ForgetCache, Runs, Scrub
from memfsd.core.memory.frames import FramePool
from memfsd.core.memory.page_table import FilePages, Run
from memfsd.uapi import messages
from memfsd.uapi.frame_state import FrameState
from memfsd.uapi.messages import Body, InvalidateBegin, InvalidateBeginReply, Kind, MoveReply, Reason
from memfsd.uapi.units import Ino, Pfn, Pgoff

from .moving import MovingPages, PageMove
from .pending import PendingFrames, Touched, touched_reach

if TYPE_CHECKING:
    from .gmem_file import GmemFile, Invalidation

_STEP_KEPT = 64
"""Ranges that a VM keeps, for one step: what is between them leaves."""


class UpCall(NamedTuple):
    """What opens the bracket in the VM: its answer is the acknowledgement."""

    kind: Kind
    body: Body
    reply: type[Body]


@dataclass(frozen=True, slots=True)
class Taking:
    """One step of an invalidation: pages [start, end) of a file. extents: those of them that have frames.

    answer: the VM's acknowledgement; None when no VM had to acknowledge, when it is dead, or when it refused.
    touched: what holds memory in the window, for who asks (`needs_touched`).
    """

    ino: Ino
    pool: FramePool
    pages: FilePages
    guest: GmemFile
    start: Pgoff
    end: Pgoff
    extents: list[Run]
    answer: Body | None
    touched: Touched

    def close(self, start: int, end: int) -> Runs:
        """Pages [start, end) are holes now; their frames are CLOSING."""
        pending = PendingFrames(self.pool, self.pages, self.guest)
        runs = [(pfn, count) for _, pfn, count in self.pages.unmap(start, end)]
        for pfn, count in runs:
            pending.leave(pfn, count)
            self.pool.set_state(pfn, count, FrameState.CLOSING)
        return runs


class Strategy(ABC):
    """reason: as reported to the VM. needs_touched: Taking.touched must be known. may_cut: it may take a part of a
    large page. takes_holes: `take` is called for ranges without any frame, too."""

    reason: Reason
    needs_touched = False
    may_cut = False
    takes_holes = False

    def call(self, closing: Invalidation) -> UpCall:
        """What the VM is asked when the range is bound. INVALIDATE_BEGIN may be refused only where it cuts a large
        page, for want of memory (ENOMEM): then nothing is taken. A VM that refuses another call has done nothing, knows
        of no bracket, and `take` gets no answer."""
        body = InvalidateBegin(closing.start, closing.end, closing.seq, self.reason)
        return UpCall(Kind.INVALIDATE_BEGIN, body, InvalidateBeginReply)

    def narrow(self, taking: Taking) -> Taking:
        """What of it one step should `take`."""
        return taking

    @abstractmethod
    def take(self, taking: Taking) -> list[Effect]:
        """Before the next step begins its effects have been performed."""


class Unmap(Strategy):
    """All of the range is a hole; its frames are scrubbed and free."""

    may_cut = True

    def __init__(self, reason: Reason) -> None:
        self.reason = reason

    def take(self, taking: Taking) -> list[Effect]:
        taking.guest.absent.take(taking.start, taking.end)
        scrub = Scrub(taking.ino, taking.close(taking.start, taking.end))
        if self.reason is Reason.PUNCH:
            taking.guest.punched_count += scrub.frame_count
        return [scrub]


class Reclaim(Strategy):
    """What was granted and never touched is a hole; all else stays."""

    reason = Reason.RECLAIM
    needs_touched = True

    def narrow(self, taking: Taking) -> Taking:
        kept, end = _kept(taking), touched_reach(taking.extents, taking.end, taking.touched)
        if len(kept) > _STEP_KEPT:
            end = min(end, Pgoff(kept[_STEP_KEPT][0]))
        return replace(taking, end=end)

    def take(self, taking: Taking) -> list[Effect]:
        pending = PendingFrames(taking.pool, taking.pages, taking.guest)
        pending.settle_kept(_kept(taking), taking.start, taking.end)
        pending.settle_touched(taking.touched, taking.start, taking.end)
        runs: Runs = []
        for pgoff, _, count in pending.extents(taking.start, taking.end):
            runs += taking.close(pgoff, pgoff + count)
        return [Scrub(taking.ino, runs)]


def _kept(taking: Taking) -> list[tuple[int, int]]:
    """What the VM keeps of the pages that are taken, in order; it may say it in any order, and more than once."""
    if not taking.extents or not isinstance(taking.answer, InvalidateBeginReply):
        return []
    start, end = int(taking.start), int(taking.end)
    return subtract(start, end, subtract(start, end, taking.answer.kept))


class SwapOut(Strategy):
    """What the VM has blocked goes to the swap file; its frames are scrubbed once it is there. What it keeps, what was
    never touched, and what is not bound, stays."""

    needs_touched = True

    def __init__(self, reason: Reason) -> None:
        self.reason = reason

    def take(self, taking: Taking) -> list[Effect]:
        if not isinstance(taking.answer, InvalidateBeginReply):
            return []
        pool, pending = taking.pool, PendingFrames(taking.pool, taking.pages, taking.guest)
        pending.settle_touched(taking.touched, taking.start, taking.end)
        leaving: list[tuple[Pgoff, Pfn]] = []
        blocked = subtract(taking.start, taking.end, taking.answer.kept)
        for pgoff, pfn, count in taking.extents:
            end = Pgoff(pgoff + count)
            bound = [(binding.start, binding.end) for binding in taking.guest.bindings.overlapping(pgoff, end)]
            leaves = pool.states(pfn, count) == FrameState.PRIVATE
            leaves &= _members(bound, pgoff, end) & _members(within(blocked, pgoff, end), pgoff, end)
            leaving += [(Pgoff(pgoff + index), Pfn(pfn + index)) for index in leaves.nonzero()[0].tolist()]
        return [Export(taking.ino, leaving)] if leaving else []


def _members(intervals: Iterable[tuple[int, int]], start: int, end: int) -> NDArray[np.bool_]:
    """Which pages of [start, end) are in one of them."""
    found = np.zeros(end - start, np.bool_)
    for low, high in intervals:
        found[max(low - start, 0) : high - start] = True
    return found


class Poison(Strategy):
    """The frames failed: they are scrubbed, since their contents are nobody's, and never used again. Who touches the
    pages learns it."""

    reason = Reason.POISON
    may_cut = True

    def take(self, taking: Taking) -> list[Effect]:
        runs = taking.close(taking.start, taking.end)
        for first, _, count in taking.extents:
            taking.guest.absent.put_poisoned(first, first + count)
        scrub = Scrub(taking.ino, runs, FrameState.POISONED)
        if taking.guest.memfd is None:
            return [scrub]
        return [ForgetCache(taking.ino, taking.start, taking.end), scrub]


class Revoke(Strategy):
    """The device is gone: its pages are dead. Its memory is there until the last VM that has the window has ended."""

    reason = Reason.REVOKE

    def take(self, taking: Taking) -> list[Effect]:
        assert taking.guest.device is not None
        taking.guest.device.is_gone = True
        return [DropDevice(taking.ino)]


class Move(Strategy):
    """What KVM has copied is in its new frame; what it has kept, and all of it if it did not answer, stays."""

    reason = Reason.MOVE

    def __init__(self, moves: Sequence[PageMove]) -> None:
        self._moves = moves

    def call(self, closing: Invalidation) -> UpCall:
        return UpCall(Kind.MOVE, messages.Move(closing.start, closing.end, closing.seq, [*self._moves]), MoveReply)

    def take(self, taking: Taking) -> list[Effect]:
        kept = taking.answer.kept if isinstance(taking.answer, MoveReply) else [(taking.start, taking.end)]
        moving = MovingPages(taking.pool, taking.pages, taking.guest)
        return [Scrub(taking.ino, moving.settle(taking.start, taking.end, kept))]


class Convert(Strategy):
    """The pages of a guest_memfd become shared, or private; those that become private leave the host's page tables and
    its page cache, which writes back what was stored. With destroys their contents are gone."""

    reason = Reason.CONVERT
    takes_holes = True

    def __init__(self, *, to_shared: bool, destroys: bool) -> None:
        self._to_shared = to_shared
        self._destroys = destroys

    def take(self, taking: Taking) -> list[Effect]:
        assert taking.guest.memfd is not None
        if trace.store is not None:
            trace.store.pages_converted(taking.ino, taking.start, taking.end, self._to_shared)
        taking.guest.memfd.convert(taking.start, taking.end, to_shared=self._to_shared)
        effects: list[Effect] = []
        if self._destroys:
            effects += UNMAP.take(taking)
        if not self._to_shared:
            effects.insert(0, ForgetCache(taking.ino, taking.start, taking.end))
        return effects


UNMAP = Unmap(Reason.CONVERT)
PUNCH, TRUNCATE = Unmap(Reason.PUNCH), Unmap(Reason.TRUNCATE)
RECLAIM, POISON, REVOKE = Reclaim(), Poison(), Revoke()
SWAP_OUT, EVICT = SwapOut(Reason.SWAP_OUT), SwapOut(Reason.EVICT)
