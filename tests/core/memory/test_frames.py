"""The pool: states, legal transitions, counts and nodes."""

import errno

import pytest

from memfsd.core.memory.frames import FramePool
from memfsd.core.memory.nodes import Zones
from memfsd.core.memory.page_life import LEGAL
from memfsd.uapi.errors import Refused
from memfsd.uapi.frame_state import FrameState
from memfsd.uapi.limits import MAX_NODES
from memfsd.uapi.units import ORDER_2M, Pfn

FREE, SHARED, PRIVATE, PENDING = FrameState.FREE, FrameState.SHARED, FrameState.PRIVATE, FrameState.PENDING
CLOSING, QUARANTINED = FrameState.CLOSING, FrameState.QUARANTINED
BLOCK = 512


def routes() -> dict[FrameState, list[FrameState]]:
    """The shortest way from FREE to each state that a frame can be in."""
    found: dict[FrameState, list[FrameState]] = {FREE: []}
    for state in (states := [FREE]):
        for new in sorted(LEGAL[state] - found.keys()):
            found[new] = [*found[state], new]
            states.append(new)
    return found


ROUTES = routes()
IN_USE = [state for state in ROUTES if state is not FREE]


def on(pool: FramePool, node: int) -> Zones:
    """This node first, then the nearest."""
    return Zones(pool.distances.zonelist(node))


def run_in(pool: FramePool, state: FrameState, count: int) -> Pfn:
    """A run that has reached this state by legal steps."""
    first, *steps = ROUTES[state]
    ((pfn, _),) = pool.alloc(count, first)
    for step in steps:
        pool.set_state(pfn, count, step)
    return pfn


@pytest.mark.parametrize("count", [1, 7, 2 * BLOCK + 9])
@pytest.mark.parametrize("old", IN_USE)
@pytest.mark.parametrize("new", [state for state in FrameState if state != FREE])
def test_only_legal_transitions_pass(old: FrameState, new: FrameState, count: int) -> None:
    pool = FramePool(8 * BLOCK)
    pfn = run_in(pool, old, count)
    if new in LEGAL[old]:
        pool.set_state(pfn, count, new)
        assert pool.count(new) == count
        assert pool.state(pfn + count - 1) is new
    else:
        with pytest.raises(AssertionError):
            pool.set_state(pfn, count, new)


def test_frames_leave_free_only_by_allocation() -> None:
    pool = FramePool(BLOCK)
    for new in FrameState:
        with pytest.raises(AssertionError):
            pool.set_state(0, 1, new)
        with pytest.raises(AssertionError):
            pool.set_state(0, BLOCK, new)
    with pytest.raises(AssertionError):
        pool.alloc(1, CLOSING)
    with pytest.raises(AssertionError):
        pool.alloc_one(QUARANTINED)


@pytest.mark.parametrize("state", [state for state in IN_USE if FREE not in LEGAL[state]])
@pytest.mark.parametrize("count", [1, BLOCK])
def test_only_frames_without_contents_become_free(state: FrameState, count: int) -> None:
    pool = FramePool(4 * BLOCK)
    pfn = run_in(pool, state, count)
    with pytest.raises(AssertionError):
        pool.free(pfn, count)
    with pytest.raises(AssertionError):
        pool.set_state(pfn, count, FREE)


def test_a_frame_is_born_used_and_freed() -> None:
    pool = FramePool(10)
    pfn = pool.alloc_one(PENDING)
    pool.set_state(pfn, 1, PRIVATE)
    pool.set_state(pfn, 1, CLOSING)
    assert pool.counts() == {
        "free": 9, "shared": 0, "private": 0, "pending": 0,
        "closing": 1, "quarantined": 0, "poisoned": 0, "device": 0, "moving": 0, "leaked": 0, "offline": 0,
    }  # fmt: skip
    pool.free(pfn, 1)
    assert pool.free_count == pool.frame_count == 10
    assert pool.state(pfn) is FREE


def test_a_run_of_several_states_moves_together() -> None:
    pool = FramePool(4 * BLOCK)
    ((pfn, count),) = pool.alloc(3 * BLOCK, PENDING)
    pool.set_state(Pfn(pfn + 700), 1, PRIVATE)
    pool.set_state(Pfn(pfn + 1000), 300, PRIVATE)
    assert pool.tally(pfn, count)[PRIVATE] == 301
    pool.set_state(pfn, count, CLOSING)
    assert pool.count(CLOSING) == count
    assert pool.count(PENDING) == pool.count(PRIVATE) == 0


def test_one_frame_of_an_illegal_origin_is_a_bug() -> None:
    pool = FramePool(4 * BLOCK)
    ((pfn, count),) = pool.alloc(3 * BLOCK, PENDING)
    pool.set_state(Pfn(pfn + 700), 1, CLOSING)
    with pytest.raises(AssertionError, match="CLOSING"):
        pool.set_state(pfn, count, CLOSING)


def test_states_is_a_copy_of_the_range() -> None:
    pool = FramePool(4 * BLOCK + 100)
    pool.alloc(3 * BLOCK, PENDING)
    pool.set_state(600, 2, PRIVATE)
    states = pool.states(598, 2000 - 598)
    expected = [PENDING] * 2 + [PRIVATE] * 2 + [PENDING] * (1536 - 602) + [FREE] * (2000 - 1536)
    assert states.tolist() == expected
    states[:] = 7
    assert pool.state(600) is PRIVATE
    assert len(pool.states(0, pool.frame_count)) == pool.frame_count
    assert pool.states(5, 0).size == 0


@pytest.mark.parametrize("frame_count", [1, 5, 511, 5 * BLOCK, 5 * BLOCK + 17])
def test_nodes_split_the_pool(frame_count: int) -> None:
    for node_count in (1, 2, 3, 5):
        if node_count > frame_count:
            continue
        pool = FramePool(frame_count, node_count)
        sizes = pool.node_free_counts()
        assert len(sizes) == node_count == pool.node_count
        assert sum(sizes) == frame_count
        assert max(sizes) - min(sizes) <= BLOCK + 17
        nodes = [pool.node_of(pfn) for pfn in range(frame_count)]
        assert [nodes.count(node) for node in range(node_count)] == sizes
        assert nodes == sorted(nodes)


def test_large_nodes_begin_at_2m() -> None:
    pool = FramePool(7 * BLOCK + 3, 3)
    edges = [pfn for pfn in range(1, pool.frame_count) if pool.node_of(pfn) != pool.node_of(pfn - 1)]
    assert edges == [2 * BLOCK, 4 * BLOCK]


def test_the_preferred_node_goes_first_and_the_others_help() -> None:
    pool = FramePool(4 * BLOCK, 4)
    assert pool.node_of(pool.alloc_one(SHARED, zones=on(pool, 2))) == 2
    assert pool.node_of(pool.alloc_run(10, SHARED, zones=on(pool, 3))[0]) == 3
    runs = pool.alloc(BLOCK + 100, SHARED, zones=on(pool, 3))
    assert sum(count for _, count in runs) == BLOCK + 100
    assert [pool.node_of(pfn) for pfn, _ in runs] == [3, 0]
    assert pool.node_of(pool.alloc_one(SHARED, zones=on(pool, 3))) == 0
    assert pool.node_free_counts() == [BLOCK - 111, BLOCK, BLOCK - 1, 0]


def test_without_a_preference_nodes_fill_in_order() -> None:
    pool = FramePool(4, 4)
    assert [pool.alloc_one(SHARED) for _ in range(3)] == [0, 1, 2]
    assert pool.alloc_run(5, SHARED) == (3, 1)
    for refused in (
        lambda: pool.alloc_one(SHARED),
        lambda: pool.alloc_run(1, SHARED),
        lambda: pool.alloc(1, SHARED),
    ):
        with pytest.raises(Refused) as refusal:
            refused()
        assert refusal.value.errno == errno.ENOSPC
        assert refusal.value.reason.startswith("no room for another frame: 0 of 4 are free;")


@pytest.mark.parametrize("nodes", [1, 2, 4])
def test_a_run_goes_on_where_it_is_wanted_if_that_is_the_node_it_is_for(nodes: int) -> None:
    pool = FramePool(4 * BLOCK, nodes)
    for after in range(0, 4 * BLOCK, BLOCK):
        there = on(pool, pool.node_of(after))
        assert pool.alloc_run(3, SHARED, zones=there, after=Pfn(after + 5)) == (after + 5, 3)
    if nodes > 1:
        assert pool.node_of(pool.alloc_run(3, SHARED, zones=on(pool, 0), after=Pfn(4 * BLOCK - 9))[0]) == 0


def test_the_nearest_node_helps_first() -> None:
    rows = ((10, 30, 20), (30, 10, 20), (20, 30, 10))
    pool = FramePool(3 * BLOCK, 3, rows)
    assert [pool.node_of(pfn) for pfn, _ in pool.alloc(3 * BLOCK, SHARED)] == [0, 2, 1]
    with pytest.raises(Refused, match="table of 3 nodes and nodes= is 2"):
        FramePool(2 * BLOCK, 2, rows)


def test_zones_that_are_all_there_are_get_nothing_of_other_nodes() -> None:
    pool = FramePool(2 * BLOCK, 2)
    bound = Zones((1,), policy="bind:1")
    pool.alloc(BLOCK - 1, PRIVATE, zones=bound)
    before = pool.counts(), pool.node_free_counts()
    with pytest.raises(Refused, match="where policy bind:1 has them: 513 of 1024 are free elsewhere") as refusal:
        pool.alloc(2, PRIVATE, zones=bound)
    assert refusal.value.errno == errno.ENOSPC
    assert (pool.counts(), pool.node_free_counts()) == before
    assert pool.node_of(pool.alloc_one(PRIVATE, bound)) == 1
    for full in (lambda: pool.alloc_one(PRIVATE, bound), lambda: pool.alloc_run(3, PRIVATE, zones=bound)):
        with pytest.raises(Refused, match="bind:1"):
            full()


def test_a_run_is_cut_where_its_node_ends() -> None:
    assert FramePool(2 * BLOCK, 2).node_at(7) == (0, BLOCK)


def test_too_much_is_refused_and_changes_nothing() -> None:
    pool = FramePool(4 * BLOCK, 2)
    pool.alloc_one(SHARED, zones=on(pool, 0))
    pool.alloc_one(SHARED, zones=on(pool, 1))
    for count, order in ((4 * BLOCK, 0), (3 * BLOCK, ORDER_2M)):
        before = pool.counts(), pool.node_free_counts()
        with pytest.raises(Refused):
            pool.alloc(count, PRIVATE, order=order)
        assert (pool.counts(), pool.node_free_counts()) == before
    assert len(pool.alloc(2 * BLOCK, PRIVATE, order=ORDER_2M)) == 2


def test_a_run_continues_where_the_file_ended() -> None:
    pool = FramePool(4 * BLOCK)
    pfn, count = pool.alloc_run(4, PENDING)
    other, _ = pool.alloc_run(1, SHARED, after=Pfn(1000))
    assert other == 1000
    assert pool.alloc_run(8, PENDING, after=Pfn(pfn + count)) == (4, 8)
    assert pool.alloc_run(8, PENDING, after=Pfn(995)) == (995, 5)
    elsewhere, _ = pool.alloc_run(8, PENDING, after=Pfn(1000))
    assert pool.state(elsewhere) is PENDING
    assert pool.alloc_run(1, PENDING, after=Pfn(pool.frame_count))[1] == 1


def test_a_run_to_free_may_span_nodes() -> None:
    pool = FramePool(4 * BLOCK, 4)
    pool.alloc(4 * BLOCK, SHARED)
    pool.set_state(100, 3 * BLOCK, CLOSING)
    pool.free(100, 3 * BLOCK)
    assert pool.node_free_counts() == [BLOCK - 100, BLOCK, BLOCK, 100]
    assert pool.count(SHARED) == BLOCK


@pytest.mark.parametrize(
    ("frame_count", "node_count"),
    [(0, 1), (-1, 1), ((1 << 31) + 1, 1), (10, 0), (3, 4), (1 << 20, MAX_NODES + 1)],
)
def test_a_pool_that_cannot_be(frame_count: int, node_count: int) -> None:
    with pytest.raises(Refused) as refusal:
        FramePool(frame_count, node_count)
    assert refusal.value.errno == errno.EINVAL


def test_the_largest_pool() -> None:
    pool = FramePool(1 << 31, MAX_NODES)
    ((pfn, count),) = pool.alloc(1 << 25, PRIVATE, zones=on(pool, 63))
    assert pool.node_of(pfn) == 63
    assert pool.tally(pfn, count)[PRIVATE] == count
    assert pool.alloc_run(1, PRIVATE, zones=on(pool, 62), after=Pfn(pfn - 1)) == (pfn - 1, 1)


def test_a_state_run_goes_on_over_blocks_of_one_state_and_mixed_ones() -> None:
    pool = FramePool(8 * BLOCK)
    ((first, _),) = pool.alloc(5 * BLOCK + 7, SHARED)
    assert pool.state_run(first, 8 * BLOCK) == (SHARED, 5 * BLOCK + 7)
    assert pool.state_run(first + 3, 2 * BLOCK) == (SHARED, 2 * BLOCK)
    assert pool.state_run(5 * BLOCK + 7, 8) == (FrameState.FREE, 8)
    pool.set_state(2 * BLOCK + 5, 1, CLOSING)
    assert pool.state_run(9, 5 * BLOCK) == (SHARED, 2 * BLOCK + 5 - 9)
    assert pool.state_run(2 * BLOCK + 5, 5) == (CLOSING, 1)
    assert pool.state_run(2 * BLOCK + 6, 9 * BLOCK - 7 * BLOCK) == (SHARED, 2 * BLOCK)
