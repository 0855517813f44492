"""NUMA nodes that go offline and come back, and compaction: private pages that move out of the way, as many as can.

Each call ends in time and says whether there is more to do. One at a time.
"""

import contextlib
import errno
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from memfsd.common.intervals import IntervalSet
from memfsd.core.files.inodes import Regular
from memfsd.core.memory.isolation import STEP_FRAMES, Isolation
from memfsd.core.service import Service
from memfsd.host.effect_runner import PAUSE_S
from memfsd.uapi.errors import Refused
from memfsd.uapi.frame_state import FrameState, state_name
from memfsd.uapi.limits import MAX_COMPACTED_BLOCKS, MAX_MOVE_PAGES
from memfsd.uapi.messages import CompactReply, SetNodeReply
from memfsd.uapi.units import ORDER_1G, ORDER_2M, PGOFF_END, Ino, Pfn, Pgoff

from .deadlines import Deadlines
from .dumps import states_of
from .mover import Mover

_BLOCK = 1 << ORDER_2M
_GONE = (FrameState.FREE, FrameState.OFFLINE)


class _Evacuated(NamedTuple):
    page_count: int
    goes_on: bool


class Nodes:
    """`_is_busy` is guarded by Service.lock; `_last` belongs to the call that set `_is_busy`."""

    def __init__(self, service: Service, mover: Mover, deadlines: Deadlines) -> None:
        self._service = service
        self._mover = mover
        self._deadlines = deadlines
        self._isolation = Isolation(service.pool)
        self._is_busy = False
        self._last = Ino(0)
        """The file at which the last step stopped: the next step starts after it, so that one slow VM does not block
        the others."""

    def offline(self, node: int) -> SetNodeReply:
        """No more frames of it, and the pages that can leave it do. ENODEV: no such node; EBUSY: the last one that is
        online, or another call runs. What stays is counted by state."""
        pool = self._service.pool
        with self._turn():
            with self._service.lock:
                start, end = self._range_of(node)
                others = tuple(other for other in pool.distances.zonelist(node) if other != node)
                if not any(pool.is_online(other) for other in others):
                    raise Refused(errno.EBUSY, f"node {node} is the last one that is online: take another one online")
                if pool.is_online(node):
                    self._isolation.begin(start, end)
            is_drained = False
            while not is_drained:
                with self._service.lock:
                    is_drained = self._isolation.drain_node(node)
                time.sleep(0 if is_drained else PAUSE_S)
            done = self._evacuate(IntervalSet([(start, end)]), others)
            with self._service.lock:
                tally = pool.tally(start, end - start)
        left = {state_name(state): count for state, count in enumerate(tally) if count and state not in _GONE}
        return SetNodeReply(done.page_count, left, int(done.goes_on))

    def online(self, node: int) -> SetNodeReply:
        """It gives frames again. ENODEV."""
        with self._turn():
            with self._service.lock:
                start, end = self._range_of(node)
            for low in range(start, end, STEP_FRAMES):
                with self._service.lock:
                    self._isolation.end(Pfn(low), Pfn(min(low + STEP_FRAMES, end)))
                time.sleep(PAUSE_S if low + STEP_FRAMES < end else 0)
        return SetNodeReply(0, {}, goes_on=0)

    def compact(self) -> CompactReply:
        """Pages leave blocks of 2 MiB that they hardly use for others of their node that have room, so that the blocks
        are free as a whole."""
        pool, page_count, goes_on = self._service.pool, 0, False
        with self._turn():
            with self._service.lock:
                before = self._free_blocks()
            for node in range(pool.node_count):
                done = self._compact_node(node)
                page_count, goes_on = page_count + done.page_count, goes_on or done.goes_on
            with self._service.lock:
                after = self._free_blocks()
        return CompactReply(page_count, *before, *after, int(goes_on))

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        with self._service.lock:
            if self._is_busy:
                raise Refused(errno.EBUSY, "another memfs offline, online or compact is running: try again")
            self._is_busy = True
        try:
            yield
        finally:
            with self._service.lock:
                self._is_busy = False

    def _range_of(self, node: int) -> tuple[Pfn, Pfn]:
        pool = self._service.pool
        if not 0 <= node < pool.node_count:
            raise Refused(errno.ENODEV, f"node {node} does not exist: choose 0 to {pool.node_count - 1}")
        return pool.node_range(node)

    def _free_blocks(self) -> tuple[int, int]:
        """Of 2 MiB, and those of 1 GiB among them."""
        pool = self._service.pool
        small, large = (
            sum(pool.available(node, order) >> order for node in range(pool.node_count))
            for order in (ORDER_2M, ORDER_1G)
        )
        return small, large

    # -- compaction

    def _compact_node(self, node: int) -> _Evacuated:
        with self._service.lock:
            if not self._service.pool.is_online(node):
                return _Evacuated(0, goes_on=False)
        blocks = self._sparse_blocks(node)
        chosen = IntervalSet((block, block + _BLOCK) for block in blocks[:MAX_COMPACTED_BLOCKS])
        if not blocks:
            return _Evacuated(0, goes_on=False)
        spans = chosen.within(Pfn(0), Pfn(1 << 62))
        parts = [(Pfn(at), Pfn(at + _BLOCK)) for low, high in spans for at in range(low, high, _BLOCK)]
        try:
            for part in parts:
                with self._service.lock:
                    self._isolation.begin(*part)
                    self._isolation.drain(*part)
            done = self._evacuate(chosen, (node,), one_by_one=True)
        finally:
            for part in parts:
                with self._service.lock:
                    self._isolation.end(*part)
        return _Evacuated(done.page_count, done.goes_on or len(blocks) > MAX_COMPACTED_BLOCKS)

    def _sparse_blocks(self, node: int) -> list[int]:
        """First frames of blocks whose pages may all move and fit into what is free in the others, emptiest first."""
        with self._service.lock:
            start, end = self._service.pool.node_range(node)
        blocks, frames = states_of(self._service).mixed()
        inside = (blocks * _BLOCK >= start) & (blocks * _BLOCK + _BLOCK <= end)
        blocks, frames = blocks[inside], frames[inside]
        free = np.count_nonzero(frames == FrameState.FREE, axis=1)
        used = np.count_nonzero(np.isin(frames, (FrameState.PRIVATE, FrameState.PENDING)), axis=1)
        order = np.argsort(used, kind="stable")
        order = order[(free + used == _BLOCK)[order] & (used > 0)[order]]
        room = int(free.sum()) - np.cumsum(free[order]) - np.cumsum(used[order])
        return [int(block) * _BLOCK for block in blocks[order[room >= 0]]]

    # -- both

    def _evacuate(self, frames: IntervalSet, nodes: tuple[int, ...], *, one_by_one: bool = False) -> _Evacuated:
        """Private pages leave these frames, each run of them at once or one by one, for others of the nodes."""
        until = time.monotonic() + self._deadlines.nodes_s
        page_count = 0
        with self._service.lock:
            files = self._service.inodes.sealed_files()
        for file in sorted(files, key=lambda file: (file.ino <= self._last, file.ino)):
            at: Pgoff | None = Pgoff(0)
            while at is not None:
                with self._service.lock:
                    pages, at = _pages_in(file, frames, at)
                if pages:
                    page_count += self._mover.relocate(file, pages, nodes, until, one_by_one=one_by_one).page_count
                    if time.monotonic() > until:
                        self._last = file.ino
                        return _Evacuated(page_count, goes_on=True)
        return _Evacuated(page_count, goes_on=False)


def _pages_in(file: Regular, frames: IntervalSet, at: Pgoff) -> tuple[list[Pgoff], Pgoff | None]:
    """The next pages of the file from `at` on that are in these frames, within MAX_MOVE_PAGES of each other; and where
    to go on."""
    found: list[Pgoff] = []
    part, reached = file.pages.part(at, PGOFF_END)
    for pgoff, pfn, count in part:
        for low, high in frames.within(pfn, pfn + count):
            for page in map(Pgoff, range(pgoff + (low - pfn), pgoff + (high - pfn))):
                if found and page - found[0] >= MAX_MOVE_PAGES:
                    return found, page
                found.append(page)
    return found, reached if reached < PGOFF_END else None
