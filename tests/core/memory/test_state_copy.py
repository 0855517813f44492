"""A copy of all states answers as the pool did when it was made."""

import numpy as np

from memfsd.core.memory.frames import FramePool
from memfsd.uapi.frame_state import FrameState


def test_a_copy_of_the_states_answers_as_the_pool_did() -> None:
    """Blocks of one state, blocks of several, and frames in any order."""
    pool = FramePool(5 * 512 + 7)
    for count, state in ((700, FrameState.SHARED), (30, FrameState.PENDING), (600, FrameState.PRIVATE)):
        pool.alloc(count, state)
    copied, states = pool.copy_states(), pool.states(0, pool.frame_count)
    pool.alloc(pool.free_count, FrameState.SHARED)
    pool.set_state(0, 700, FrameState.CLOSING)
    order = np.random.default_rng(1).permutation(pool.frame_count)
    assert (copied.of(order) == states[order]).all()
    assert copied.count(FrameState.PENDING) == 30
    assert copied.count(FrameState.SHARED) == 700


def test_a_copy_of_a_pool_whose_blocks_are_of_one_state_each() -> None:
    pool = FramePool(1024)
    pool.alloc(512, FrameState.SHARED)
    assert pool.copy_states().of(np.array([0, 511, 512, 1023])).tolist() == [1, 1, 0, 0]


def test_runs_cover_the_pool_without_a_gap() -> None:
    """Runs of one state, also across blocks, each as long as it can be; frames past the end are no frames."""
    pool = FramePool(5 * 512 + 7)
    for count, state in ((700, FrameState.SHARED), (30, FrameState.PENDING), (600, FrameState.PRIVATE)):
        pool.alloc(count, state)
    pool.set_state(100, 1, FrameState.CLOSING)
    states = pool.states(0, pool.frame_count).tolist()
    runs = list(pool.copy_states().runs(pool.frame_count))
    assert [state for _, count, state in runs for _ in range(count)] == states
    assert [0, *(start + count for start, count, _ in runs)] == [*(start for start, _, _ in runs), pool.frame_count]
    assert all(runs[n][2] != runs[n + 1][2] for n in range(len(runs) - 1))


def test_a_pool_of_one_state_is_one_run() -> None:
    assert list(FramePool(3 << 20).copy_states().runs(3 << 20)) == [(0, 3 << 20, FrameState.FREE)]
