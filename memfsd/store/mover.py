"""Pages of sealed files that move to other frames: bounded MOVEs, one after the other, each with its deadline."""

import contextlib
import errno
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from memfsd.common.intervals import IntervalSet
from memfsd.core.effects import Effect, Scrub
from memfsd.core.files.inodes import Regular
from memfsd.core.memory.large import whole_order
from memfsd.core.private.gmem_file import GmemFile
from memfsd.core.private.moving import MovingPages, PageMove
from memfsd.core.private.strategies import Move
from memfsd.core.service import Service
from memfsd.host.effect_runner import EffectRunner
from memfsd.uapi.errors import Refused
from memfsd.uapi.limits import MAX_MOVE_PAGES
from memfsd.uapi.messages import Kind
from memfsd.uapi.names import ANY_NODE
from memfsd.uapi.units import ORDER_1G, PAGE_SHIFT, PGOFF_END, Ino, Pgoff, PgoffRange

from .deadlines import Deadlines
from .invalidator import InvalidateRange, Invalidator

_STEP_PAGES = 64
"""For which frames are found while Service.lock is held."""

Nodes = tuple[int, ...]
"""Where frames may be, the first preferred."""


class Moved(NamedTuple):
    """How many pages have moved, and why others have not, of those that were asked for: ENOENT, ENOMEM, EBUSY."""

    page_count: int
    failed: dict[Pgoff, int]


class Mover:
    """A page of an ordinary file, one that is not bound while a VM has the file, and one of a VM whose KVM has no MOVE
    stay where they are."""

    def __init__(self, service: Service, runner: EffectRunner, invalidator: Invalidator, deadlines: Deadlines) -> None:
        self._service = service
        self._runner = runner
        self._invalidator = invalidator
        self._deadlines = deadlines

    def where(self, ino: Ino, pages: Sequence[Pgoff]) -> list[int]:
        """move_pages(2) without nodes: the node of each page, -ENOENT of a hole, -EFAULT past the end of the file."""
        with self._service.lock:
            file = self._service.inodes.regular(ino)
            return [self._status(file, page) for page in pages]

    def move(self, ino: Ino, pages: Sequence[Pgoff], nodes: Sequence[int]) -> list[int]:
        """move_pages(2): for each page the node that it is on now, or a negative errno. -ENODEV: no such node, or it is
        offline; -ENOENT: a hole; -EFAULT: past the end; -ENOMEM: the node is full; -EBUSY: it cannot move, or not
        before the deadline. ANY_NODE only asks."""
        with self._service.lock:
            file = self._service.inodes.regular(ino)
        until = time.monotonic() + self._deadlines.move_s
        statuses: list[int] = []
        for node, batch in _batches(pages, nodes):
            statuses += self._move_batch(file, node, batch, until)
        return statuses

    def _move_batch(self, file: Regular, node: int, batch: list[Pgoff], until: float) -> list[int]:
        with self._service.lock:
            if node == ANY_NODE:
                return [self._status(file, page) for page in batch]
            if not self._service.pool.is_online(node):
                return [-errno.ENODEV] * len(batch)
            wanted = [page for page in batch if self._status(file, page) not in (node, -errno.EFAULT)]
        failed: dict[Pgoff, int] = {}
        if wanted:
            is_late = time.monotonic() > until
            failed = (
                dict.fromkeys(wanted, errno.EBUSY) if is_late else self.relocate(file, wanted, (node,), until).failed
            )
        with self._service.lock:
            found = {page: self._status(file, page) for page in batch}
        return [-failed[page] if page in failed and found[page] >= 0 else found[page] for page in batch]

    def _status(self, file: Regular, page: Pgoff) -> int:
        pfn = file.pages.lookup(page)
        if pfn is None:
            return -errno.ENOENT if page << PAGE_SHIFT < file.size else -errno.EFAULT
        return self._service.pool.node_of(pfn)

    def relocate(
        self,
        file: Regular,
        pages: Sequence[Pgoff],
        nodes: Nodes,
        until: float | None = None,
        *,
        one_by_one: bool = False,
    ) -> Moved:
        """Pages within MAX_MOVE_PAGES of each other go to other frames of these nodes, with those of the same frame.

        until: how long it waits for another invalidation of the file. one_by_one: into gaps between frames that are in
        use.
        """
        if file.guest is None or file.guest.memfd is not None:
            return Moved(0, dict.fromkeys(pages, errno.EBUSY))
        try:
            with self._invalidator.hold(file.guest, until):
                with self._service.lock:
                    whole = _whole_gigs(file, pages)
                moves, failed, effects = self._begin(file, file.guest, pages, nodes, one_by_one)
                self._runner.perform(effects)
                if moves and not effects:
                    self._ask_vm(file, moves)
                with self._service.lock:
                    arrived = _arrived(file, moves)
                    self._count_splits(file.guest, whole, _whole_gigs(file, pages))
        except Refused:  # another invalidation does not end
            return Moved(0, dict.fromkeys(pages, errno.EBUSY))
        stayed = {page for page in pages if page not in failed and not arrived.within(page, page + 1)}
        return Moved(
            sum(high - low for low, high in arrived.within(Pgoff(0), PGOFF_END)),
            failed | dict.fromkeys(stayed, errno.EBUSY),
        )

    def _begin(
        self, file: Regular, guest: GmemFile, pages: Sequence[Pgoff], nodes: Nodes, one_by_one: bool
    ) -> tuple[list[PageMove], dict[Pgoff, int], list[Effect]]:
        """Frames for them. The pages of a file without a VM change over at once: nobody has a window of it, and
        nothing is in them; then there is something to scrub."""
        moves, failed, effects = list[PageMove](), dict[Pgoff, int](), list[Effect]()
        ordered = sorted(pages)
        for at in range(0, len(ordered), _STEP_PAGES):
            step = ordered[at : at + _STEP_PAGES]
            with self._service.lock:
                if guest.active is not None and not guest.active.implements(Kind.MOVE):
                    failed |= dict.fromkeys(step, errno.EBUSY)
                    continue
                moving = MovingPages(self._service.pool, file.pages, guest)
                wanted = [page for page in step if not _covers(moves, page)]
                runs, refused = moving.choose(wanted, file.order, split=self._service.options.split)
                found, without = moving.reserve(runs, file.order, nodes, one_by_one=one_by_one)
                for first, _, count in without:
                    refused |= {page: errno.ENOMEM for page in step if first <= page < first + count}
                if found and guest.active is None:
                    effects.append(Scrub(file.ino, moving.settle(*_range(found), [])))
            moves, failed = moves + found, failed | refused
        return moves, failed, effects

    def _count_splits(self, guest: GmemFile, before: set[Pgoff], after: set[Pgoff]) -> None:
        """Pages of 1 GiB, of which a part has left the others, or the last one has come to them. Call with Service.lock
        held."""
        pool = self._service.pool
        guest.split_count += len(before - after)
        guest.merge_count += len(after - before)
        pool.split_count += len(before - after)
        pool.merge_count += len(after - before)

    def _ask_vm(self, file: Regular, moves: list[PageMove]) -> None:
        """MOVE. What the VM refuses to move, keeps, or does not acknowledge in time has not moved: no more is said."""
        with contextlib.suppress(Refused):
            self._invalidator.invalidate_held(file, InvalidateRange(file.ino, *_range(moves), Move(moves)))


def _covers(moves: list[PageMove], page: Pgoff) -> bool:
    """A step before this one has found frames for a large page that it is in."""
    return bool(moves) and page < moves[-1].pgoff + moves[-1].page_count


def _range(moves: list[PageMove]) -> PgoffRange:
    return moves[0].pgoff, moves[-1].pgoff + moves[-1].page_count


def _whole_gigs(file: Regular, pages: Sequence[Pgoff]) -> set[Pgoff]:
    """The first pages of the pages of 1 GiB around these that are whole."""
    if file.order < ORDER_1G:
        return set()
    firsts = {Pgoff(page >> ORDER_1G << ORDER_1G) for page in pages}
    return {first for first in firsts if whole_order(file.pages, first, ORDER_1G) == ORDER_1G}


def _arrived(file: Regular, moves: list[PageMove]) -> IntervalSet:
    """The pages that are where they were to go."""
    return IntervalSet(
        (first, first + count)
        for move in moves
        for first, pfn, count in file.pages.extents(move.pgoff, move.pgoff + move.page_count)
        if pfn - move.target == first - move.pgoff
    )


def _batches(pages: Sequence[Pgoff], nodes: Sequence[int]) -> Iterator[tuple[int, list[Pgoff]]]:
    """Neighbours in the list that go to the same node and are within MAX_MOVE_PAGES of each other."""
    batch: list[Pgoff] = []
    to = 0
    for page, node in zip(pages, nodes, strict=True):
        if batch and (node != to or max(*batch, page) - min(*batch, page) >= MAX_MOVE_PAGES):
            yield to, batch
            batch = []
        batch.append(page)
        to = node
    if batch:
        yield to, batch
