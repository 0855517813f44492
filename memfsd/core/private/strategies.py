"""What an invalidation does with its pages, once the VM has acknowledged and before END.

A strategy says what the VM is asked, which pages leave the file, what is in their place, and what becomes of their
frames. Most have no state: what differs from one invalidation to the next is in the Taking.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from memfsd.core.effects import Effect, Runs, Scrub
from memfsd.core.memory.frames import FramePool
from memfsd.core.memory.page_table import FilePages, Run
from memfsd.uapi.frame_state import FrameState
from memfsd.uapi.messages import Body, InvalidateBegin, InvalidateBeginReply, Kind, Reason
from memfsd.uapi.units import Ino, Pgoff

from .absent import Lost
from .pending import PendingFrames, Touched

if TYPE_CHECKING:
    from .gmem_file import GmemFile, Invalidation


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


class Strategy(Protocol):
    """reason: as the VM is told. needs_touched: Taking.touched must be known."""

    reason: Reason
    needs_touched: bool

    def call(self, closing: Invalidation) -> UpCall:
        """What the VM is asked when the range is bound. Only INVALIDATE_BEGIN must not be refused: a VM that refuses
        another call has done nothing, knows of no bracket, and `take` gets no answer."""

    def take(self, taking: Taking) -> list[Effect]:
        """Before the next step begins its effects have been performed."""


def begin(closing: Invalidation) -> UpCall:
    """INVALIDATE_BEGIN."""
    body = InvalidateBegin(closing.start, closing.end, closing.seq, closing.strategy.reason)
    return UpCall(Kind.INVALIDATE_BEGIN, body, InvalidateBeginReply)


class Unmap:
    """All of the range is a hole; its frames are scrubbed and free."""

    needs_touched = False

    def __init__(self, reason: Reason) -> None:
        self.reason = reason

    def call(self, closing: Invalidation) -> UpCall:
        return begin(closing)

    def take(self, taking: Taking) -> list[Effect]:
        taking.guest.absent.take(taking.start, taking.end)
        return [Scrub(taking.ino, taking.close(taking.start, taking.end))]


class Reclaim:
    """What was granted and never touched is a hole; all else stays."""

    reason = Reason.RECLAIM
    needs_touched = True

    def call(self, closing: Invalidation) -> UpCall:
        return begin(closing)

    def take(self, taking: Taking) -> list[Effect]:
        pending = PendingFrames(taking.pool, taking.pages, taking.guest)
        if taking.extents and isinstance(taking.answer, InvalidateBeginReply):
            last, _, count = taking.extents[-1]
            pending.settle_kept(taking.answer.kept, taking.extents[0][0], last + count)
        pending.settle_touched(taking.touched, taking.start, taking.end)
        runs: Runs = []
        for pgoff, _, count in pending.extents(taking.start, taking.end):
            runs += taking.close(pgoff, pgoff + count)
        return [Scrub(taking.ino, runs)]


class Poison:
    """The frames failed: they are scrubbed, since their contents are nobody's, and never used again. Who touches the
    pages learns it."""

    reason = Reason.POISON
    needs_touched = False

    def call(self, closing: Invalidation) -> UpCall:
        return begin(closing)

    def take(self, taking: Taking) -> list[Effect]:
        runs = taking.close(taking.start, taking.end)
        for first, _, count in taking.extents:
            for pgoff in range(first, first + count):
                taking.guest.absent.put(pgoff, Lost.POISONED)
        return [Scrub(taking.ino, runs, FrameState.POISONED)]


PUNCH, TRUNCATE = Unmap(Reason.PUNCH), Unmap(Reason.TRUNCATE)
RECLAIM, POISON = Reclaim(), Poison()
