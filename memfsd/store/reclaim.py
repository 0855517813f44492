"""The pool is full: pages that were granted ahead and never touched are taken back, from many VMs at a time.

Who needs them does not wait for one VM after the other: those that were quick last time, to the second, are asked
first, and after Deadlines.reclaim_s the asker goes on with what came free. What is under way goes on.
"""

import functools
import logging
import time
from collections.abc import Callable

from memfsd.core.private.strategies import RECLAIM
from memfsd.core.service import Service
from memfsd.uapi.errors import Refused
from memfsd.uapi.frame_state import FrameState
from memfsd.uapi.units import Ino, Pgoff

from .deadlines import Deadlines
from .invalidator import InvalidateRange, Invalidator
from .peer import Peer
from .questions import Questions
from .swapper import Swapper

log = logging.getLogger("memfsd.peers")

_Question = tuple[Peer, Pgoff, Pgoff]
"""Which VM is asked for which pages of its file."""
_Range = tuple[Ino, Pgoff, Pgoff]
"""Pages of a file."""


_ENDINGS_S = 1.0
"""On a mount that is never idle: how long who needs a frame waits for what has ended."""
_STEP_S = 0.0005


class Reclaimer:
    """Safe from any thread."""

    def __init__(
        self, service: Service, invalidator: Invalidator, swapper: Swapper, deadlines: Deadlines, owner_uid: int
    ) -> None:
        self._service = service
        self._swapper = swapper
        self._invalidator = invalidator
        self._deadlines = deadlines
        self._questions = Questions("reclaim", owner_uid)
        self.has_releases: Callable[[], bool] | None = None
        """Of who serves the kernel: whether requests are queued or under way that may end a file. None: nobody does."""

    def reclaim(self, ino: Ino | None = None, frame_count: int | None = None, *, swap: bool = True) -> bool:
        """True when any frame came free, before the deadline; no need to go on after frame_count of them. When none
        was granted and not touched, pages are swapped out (`swap`), if the mount says where to.

        ino: the file whose VM asks, and so surely lives.
        """
        with self._service.lock:
            before = self._service.pool.free_count
            questions, unpaired = self._to_take(ino)
        for range_ in unpaired:
            self._take(*range_)
        if questions or self._questions.asked:
            with self._questions.lock:
                self._ask_all(questions, before, frame_count)
        return self.free_count() > before or (swap and self._swapper.evict(frame_count))

    def await_endings(self, enough: int | None = None, *, queued: bool = False) -> bool:
        """After files that were closed and VMs that have ended have given their frames back, which neither close(2) nor
        wait(2) waits for, and allocations under way have theirs, or so many are free that it is enough: True when
        another try may do better. queued: also those whose request the kernel has still to hand over; one that was
        received and is not yet under way shows when it is looked for again.
        """
        until, idle, has_waited = time.monotonic() + _ENDINGS_S, 0, False
        looks = 2 if queued and self.has_releases is not None else 1
        while time.monotonic() < until and (enough is None or self.free_count() < enough):
            idle = 0 if self.has_endings(queued=queued) else idle + 1
            if idle == looks:
                break
            has_waited = has_waited or not idle
            with self._questions.lock:
                self._questions.wait(_STEP_S)
        return has_waited or self.free_count() >= (enough or 1)

    def has_endings(self, *, queued: bool = False) -> bool:
        """Frames are on their way: back, from files or from VMs that are no more, or to the pages of an allocation."""
        with self._service.lock:
            data = self._service.data
            is_moving = bool(data.discards or data.allocations or self._service.pool.count(FrameState.CLOSING))
            peers = list(self._invalidator.peers.values())
        if is_moving or any(peer.process.wait_dead(0) for peer in peers):
            return True
        return queued and self.has_releases is not None and self.has_releases()

    def may_help(self) -> bool:
        """Any page was granted and not touched yet, or may be swapped out."""
        with self._service.lock:
            return self._service.pool.count(FrameState.PENDING) > 0 or self._swapper.may_help()

    def free_count(self) -> int:
        """Frames that are free now."""
        with self._service.lock:
            return self._service.pool.free_count

    def _ask_all(self, questions: list[_Question], before: int, frame_count: int | None) -> None:
        """Call with the questions' lock held."""
        until = time.monotonic() + self._deadlines.reclaim_s
        while True:
            questions = [question for question in questions if not self._begin(*question)]
            enough = frame_count is not None and self.free_count() >= before + frame_count
            left = until - time.monotonic()
            if not self._questions.asked or enough or left <= 0:
                return
            self._questions.wait(left)

    def _to_take(self, ino: Ino | None) -> tuple[list[_Question], list[_Range]]:
        """Whom to ask, and what a guest_memfd keeps of a VM that has ended. Call with Service.lock held."""
        questions, unpaired = list[_Question](), list[_Range]()
        for range_ in self._service.gmem.reclaimable(self._service.inodes.sealed_files()):
            peer = self._invalidator.peers.get(range_[0])
            if peer is None:
                unpaired.append(range_)
            else:
                questions.append((peer, *range_[1:]))
        questions.sort(key=lambda question: (question[0].ino != ino, int(question[0].up.last_call_s)))
        return questions, unpaired

    def _begin(self, peer: Peer, start: Pgoff, end: Pgoff) -> bool:
        """False while there are too many under way."""
        if peer.ino in self._questions.asked:
            return True
        return self._questions.begin(peer, functools.partial(self._take, peer.ino, start, end))

    def _take(self, ino: Ino, start: Pgoff, end: Pgoff) -> None:
        try:
            self._invalidator.invalidate(InvalidateRange(ino, start, end, RECLAIM))
        except Refused as refused:
            log.warning("reclaim from inode %d: %s", ino, refused.reason)
