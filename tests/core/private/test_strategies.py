"""What each strategy of an invalidation leaves of the pages and of the frames."""

import pytest

from memfsd.core.private import strategies
from memfsd.core.private.absent import Lost
from memfsd.core.private.strategies import Strategy
from memfsd.uapi.frame_state import FrameState
from memfsd.uapi.messages import Reason
from tests.support.core_store import CoreStore, refused


@pytest.fixture
def store() -> CoreStore:
    return CoreStore()


@pytest.mark.parametrize(
    ("strategy", "reason"),
    [
        (strategies.PUNCH, Reason.PUNCH),
        (strategies.TRUNCATE, Reason.TRUNCATE),
        (strategies.RECLAIM, Reason.RECLAIM),
        (strategies.POISON, Reason.POISON),
    ],
)
def test_the_vm_is_told_why(strategy: Strategy, reason: Reason) -> None:
    assert strategy.reason is reason


def test_punch_leaves_holes_and_reclaim_what_was_touched(store: CoreStore) -> None:
    file, _ = store.bound_file("file", 16)
    for pgoff in range(8):
        store.fault(file, pgoff, 1)
    store.invalidate(file, 0, 16, strategies.RECLAIM)
    assert file.pages.page_count == 8
    store.invalidate(file, 2, 4, strategies.PUNCH)
    assert [count for _, _, count in file.pages.extents(0, 16)] == [2, 4]
    assert store.pool.free_count == store.pool.frame_count - 6


def test_poison_leaves_pages_that_a_punch_makes_holes_again(store: CoreStore) -> None:
    file, guest = store.bound_file("file", 16)
    store.fault(file, 3, 1)
    store.invalidate(file, 3, 4, strategies.POISON)
    assert dict(guest.absent) == {3: Lost.POISONED}
    with refused("EHWPOISON", match="page 0x3"):
        store.fault(file, 3)
    store.invalidate(file, 0, 16, strategies.PUNCH)
    assert not guest.absent
    store.fault(file, 3)
    assert store.pool.count(FrameState.POISONED) == 1
