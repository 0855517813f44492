"""What has to move for a page, where it may go, and what is left over."""

import errno

import pytest

from memfsd.core.files.inodes import Regular
from memfsd.core.gmem import guest_of
from memfsd.core.private.moving import MovingPages
from memfsd.uapi.frame_state import FrameState
from memfsd.uapi.units import Pgoff
from tests.support.core_store import CoreStore


@pytest.fixture
def store() -> CoreStore:
    """Two nodes of 32 frames."""
    return CoreStore(64, nodes=2)


def moving_of(store: CoreStore, file: Regular) -> MovingPages:
    return MovingPages(store.pool, file.pages, guest_of(file))


def pages(*numbers: int) -> list[Pgoff]:
    return [*map(Pgoff, numbers)]


def test_runs_are_chosen_and_holes_and_what_is_not_bound_refused(store: CoreStore) -> None:
    file = store.guest_file("file", 16)
    store.paired(file).bind(1, 0x100, 0, 8)
    for pgoff in (0, 1, 2, 5):
        store.fault(file, pgoff)
    store.fallocate(file, 1, 9 << 12, 1 << 12)
    runs, refused = moving_of(store, file).choose(pages(5, 2, 1, 3, 9, 1), 0, split=False)
    assert [(pgoff, count) for pgoff, _, count in runs] == [(1, 2), (5, 1)]
    assert refused == {3: errno.ENOENT, 9: errno.EBUSY}


def test_frames_are_reserved_as_far_as_they_go(store: CoreStore) -> None:
    file, guest = store.bound_file("file", 40)
    for pgoff in range(40):
        store.fault(file, pgoff)
    moving = moving_of(store, file)
    runs, _ = moving.choose(pages(*range(32)), 0, split=False)
    moves, without = moving.reserve(runs, 0, (1,))
    assert sum(move.page_count for move in moves) == store.pool.count(FrameState.MOVING) == 24
    assert [(pgoff, count) for pgoff, _, count in without] == [(24, 8)]
    assert guest.moving.page_count == 24
    assert store.audit() == []
    leftover = moving.settle(0, 40, [(0, 2), (10, 11)])
    assert sum(count for _, count in leftover) == store.pool.count(FrameState.CLOSING) == 24
    assert [store.pool.node_of(file.pages.lookup(page) or 0) for page in (0, 1, 2, 9, 10, 11)] == [0, 0, 1, 1, 0, 1]
    assert guest.moving.page_count == 0
