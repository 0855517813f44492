"""Frames that are set aside: nobody gets them, and they come back."""

import pytest

from memfsd.core.memory.frames import FramePool
from memfsd.core.memory.isolation import Isolation
from memfsd.core.memory.nodes import Zones
from memfsd.uapi.errors import Refused
from memfsd.uapi.frame_state import FrameState
from memfsd.uapi.units import ORDER_2M, Pfn

BLOCK = 1 << ORDER_2M


@pytest.fixture
def pool() -> FramePool:
    """Two nodes of two blocks."""
    return FramePool(4 * BLOCK, 2)


def give_back(pool: FramePool, pfn: int, count: int) -> None:
    pool.set_state(pfn, count, FrameState.CLOSING)
    pool.free(pfn, count)


def test_what_is_set_aside_is_given_to_nobody(pool: FramePool) -> None:
    isolation = Isolation(pool)
    isolation.begin(*pool.node_range(1))
    while not isolation.drain_node(1):
        pass
    assert (pool.free_count, pool.count(FrameState.OFFLINE), pool.is_online(1)) == (2 * BLOCK, 2 * BLOCK, False)
    with pytest.raises(Refused, match="no room"):
        pool.alloc_run(1, FrameState.MOVING, zones=Zones((1,)))
    assert pool.alloc_one(FrameState.PRIVATE, Zones((1, 0))) < 2 * BLOCK
    isolation.end(*pool.node_range(1))
    assert (pool.count(FrameState.OFFLINE), pool.available(1, ORDER_2M), pool.is_online(1)) == (0, 2 * BLOCK, True)


def test_what_becomes_free_where_frames_are_set_aside_joins_them(pool: FramePool) -> None:
    isolation = Isolation(pool)
    ((pfn, _),) = pool.alloc(BLOCK, FrameState.PRIVATE, order=ORDER_2M)
    give_back(pool, pfn, 10)
    isolation.begin(pfn, pfn + 100)
    isolation.drain(pfn, pfn + 100)
    assert pool.count(FrameState.OFFLINE) == 10
    give_back(pool, pfn + 50, 100)
    assert (pool.count(FrameState.OFFLINE), pool.tally(pfn, 100)[FrameState.OFFLINE]) == (60, 60)
    assert pool.state(pfn + 100) is FrameState.FREE
    isolation.end(pfn, Pfn(pfn + 100))
    assert pool.count(FrameState.OFFLINE) == 0
    assert pool.free_count == 4 * BLOCK - BLOCK + 110


def test_a_fragmented_node_goes_in_steps(pool: FramePool) -> None:
    isolation = Isolation(pool)
    frames = [pool.alloc_one(FrameState.PRIVATE, Zones((1,))) for _ in range(2 * BLOCK)]
    for pfn in frames[::2]:
        give_back(pool, pfn, 1)
    before = pool.numastat()
    isolation.begin(*pool.node_range(1))
    steps = 1
    while not isolation.drain_node(1):
        steps += 1
    assert steps == 2
    assert pool.count(FrameState.OFFLINE) == BLOCK
    isolation.end(*pool.node_range(1))
    assert pool.free_count == 3 * BLOCK
    assert pool.numastat() == before, "nobody got them"
    assert pool.is_online(0)
    assert not pool.is_online(2)
