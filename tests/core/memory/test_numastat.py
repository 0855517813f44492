"""What numastat(8) counts, of a pool of two nodes and of three."""

from memfsd.core.memory.frames import FramePool
from memfsd.core.memory.nodes import Zones
from memfsd.core.memory.numastat import NodeReport
from memfsd.uapi.frame_state import FrameState
from memfsd.uapi.units import Pfn

SHARED, CLOSING = FrameState.SHARED, FrameState.CLOSING


def on(pool: FramePool, node: int, *, is_interleaved: bool = False) -> Zones:
    return Zones(pool.distances.zonelist(node), is_interleaved)


def test_an_untouched_pool_has_counted_nothing() -> None:
    assert FramePool(64, 2).numastat() == [NodeReport(32, 32, 0, 0, 0, 0, 0, 0)] * 2


def test_the_usual_grants_are_hits_and_local() -> None:
    pool = FramePool(64, 2)
    pool.alloc_one(SHARED)
    pool.alloc(5, SHARED)
    pool.alloc_run(4, SHARED, after=Pfn(6))
    assert pool.numastat()[0] == NodeReport(32, 22, numa_hit=10, numa_miss=0, numa_foreign=0, interleave_hit=0,
                                            local_node=10, other_node=0)  # fmt: skip


def test_what_another_node_gave_is_a_miss_there_and_foreign_here() -> None:
    pool = FramePool(64, 2)
    pool.alloc(40, SHARED)
    pool.alloc_one(SHARED)
    pool.alloc_run(3, SHARED)
    here, there = pool.numastat()
    assert (here.numa_hit, here.numa_miss, here.numa_foreign) == (32, 0, 12)
    assert (there.numa_hit, there.numa_miss, there.numa_foreign) == (0, 12, 0)
    assert (there.local_node, there.other_node) == (0, 12)


def test_a_node_that_is_not_the_local_one_hits_too() -> None:
    pool = FramePool(64, 2)
    pool.alloc_one(SHARED, on(pool, 1))
    there = pool.numastat()[1]
    assert (there.numa_hit, there.local_node, there.other_node) == (1, 0, 1)


def test_interleaved_hits_are_counted_besides() -> None:
    pool = FramePool(96, 3)
    for page in range(6):
        pool.alloc_run(9, SHARED, zones=on(pool, page % 3, is_interleaved=True))
    assert [(node.numa_hit, node.interleave_hit) for node in pool.numastat()] == [(18, 18)] * 3
    pool.alloc(20, SHARED, zones=on(pool, 0, is_interleaved=True))
    assert [node.interleave_hit for node in pool.numastat()] == [32, 18, 18]


def test_frames_that_came_back_were_given_all_the_same() -> None:
    pool = FramePool(64, 2)
    ((pfn, count),) = pool.alloc(10, SHARED)
    pool.set_state(pfn, count, CLOSING)
    pool.free(pfn, count)
    pool.alloc_one(SHARED)
    assert pool.numastat()[0] == NodeReport(32, 31, 11, 0, 0, 0, 11, 0)
