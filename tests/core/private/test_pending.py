"""Frames granted ahead, of one file."""

import pytest

from memfsd.core.memory.frames import FramePool
from memfsd.core.memory.page_table import FilePages
from memfsd.core.private.gmem_file import GmemFile
from memfsd.core.private.pending import PendingFrames
from memfsd.uapi.frame_state import FrameState
from memfsd.uapi.units import Pgoff

PRIVATE, PENDING = FrameState.PRIVATE, FrameState.PENDING


class World:
    """Pages 0-15 are frames 0-15: the first of each four PRIVATE, the others PENDING."""

    def __init__(self) -> None:
        self.pool, self.pages, self.guest = FramePool(64), FilePages(), GmemFile()
        for at in range(0, 16, 4):
            self.pool.alloc_run(1, PRIVATE)
            self.pool.alloc_run(3, PENDING)
            self.pages.map_run(at, at, 4)
        self.guest.pending = 12
        self.pending = PendingFrames(self.pool, self.pages, self.guest)

    def private(self) -> list[int]:
        """Frames that are; the count agrees with the states."""
        assert self.guest.pending == self.pool.count(PENDING)
        return [pfn for pfn in range(16) if self.pool.state(pfn) is PRIVATE]


@pytest.fixture
def world() -> World:
    return World()


def test_extents_are_the_pending_runs_of_the_range_alone(world: World) -> None:
    assert world.pending.extents(2, 10) == [(2, 2, 2), (5, 5, 3), (9, 9, 1)]


def test_what_was_touched_is_private(world: World) -> None:
    world.pending.settle_touched([(2, 6), (11, 12), (20, 40)], 0, 16)
    assert world.private() == [0, 2, 3, 4, 5, 8, 11, 12]


def test_touches_outside_the_pages_that_are_looked_at_settle_nothing(world: World) -> None:
    world.pending.settle_touched([(0, 16)], 4, 8)
    assert world.private() == [0, 4, 5, 6, 7, 8, 12]
    world.pending.settle_touched([], 0, 16)
    assert world.private() == [0, 4, 5, 6, 7, 8, 12]


def test_what_the_vm_keeps_is_private(world: World) -> None:
    world.pending.settle_kept([(Pgoff(1), Pgoff(3)), (Pgoff(14), Pgoff(99))], 0, 15)
    assert world.private() == [0, 1, 2, 4, 8, 12, 14]


def test_frames_that_leave_are_pending_no_more(world: World) -> None:
    for _, pfn, count in world.pages.unmap(0, 6):
        world.pending.leave(pfn, count)
    assert world.guest.pending == 8
