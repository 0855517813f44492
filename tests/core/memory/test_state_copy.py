"""A copy of all states answers as the pool did when it was made."""

import gc
import random

import numpy as np
import pytest

from memfsd.core.memory import state_copy
from memfsd.core.memory.frames import FramePool
from memfsd.core.memory.state_copy import StateCopy
from memfsd.uapi.frame_state import FrameState


def copy_of(pool: FramePool) -> StateCopy:
    copied = pool.copy_states()
    while copied.copy_some():
        pass
    return copied


def test_a_copy_of_the_states_answers_as_the_pool_did() -> None:
    """Blocks of one state, blocks of several, and frames in any order."""
    pool = FramePool(5 * 512 + 7)
    for count, state in ((700, FrameState.SHARED), (30, FrameState.PENDING), (600, FrameState.PRIVATE)):
        pool.alloc(count, state)
    copied, states = copy_of(pool), pool.states(0, pool.frame_count)
    pool.alloc(pool.free_count, FrameState.SHARED)
    pool.set_state(0, 700, FrameState.CLOSING)
    order = np.random.default_rng(1).permutation(pool.frame_count)
    assert (copied.of(order) == states[order]).all()
    assert copied.count(FrameState.PENDING) == 30
    assert copied.count(FrameState.SHARED) == 700


def test_a_copy_of_a_pool_whose_blocks_are_of_one_state_each() -> None:
    pool = FramePool(1024)
    pool.alloc(512, FrameState.SHARED)
    assert copy_of(pool).of(np.array([0, 511, 512, 1023])).tolist() == [1, 1, 0, 0]


def test_runs_cover_the_pool_without_a_gap() -> None:
    """Runs of one state, also across blocks, each as long as it can be; frames past the end are no frames."""
    pool = FramePool(5 * 512 + 7)
    for count, state in ((700, FrameState.SHARED), (30, FrameState.PENDING), (600, FrameState.PRIVATE)):
        pool.alloc(count, state)
    pool.set_state(100, 1, FrameState.CLOSING)
    states = pool.states(0, pool.frame_count).tolist()
    runs = list(copy_of(pool).runs(pool.frame_count))
    assert [state for _, count, state in runs for _ in range(count)] == states
    assert [0, *(start + count for start, count, _ in runs)] == [*(start for start, _, _ in runs), pool.frame_count]
    assert all(runs[n][2] != runs[n + 1][2] for n in range(len(runs) - 1))


def test_a_pool_of_one_state_is_one_run() -> None:
    assert list(copy_of(FramePool(3 << 20)).runs(3 << 20)) == [(0, 3 << 20, FrameState.FREE)]


@pytest.mark.parametrize("seed", range(8))
def test_a_copy_is_of_one_moment_whatever_happens_while_it_is_made(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Several copies, of different moments. Frames change alone, in runs and in blocks, before and after their turn."""
    monkeypatch.setattr(state_copy, "_STEP_ROWS", 2)
    dice = random.Random(seed)
    pool = FramePool(12 * 512)
    held = pool.alloc(9 * 512, FrameState.PRIVATE)
    for block in range(0, 9, 2):
        pool.set_state(block * 512 + 5, 1, FrameState.CLOSING)

    def change() -> None:
        pfn, count = dice.randrange(8 * 512), dice.choice((1, 1, 3, 512))
        pfn, state = (pfn & -512 if count == 512 else pfn), dice.choice((FrameState.CLOSING, FrameState.QUARANTINED))
        tally = pool.tally(pfn, count)
        if tally[FrameState.PRIVATE] == count:
            pool.set_state(pfn, count, state)
        elif tally[FrameState.CLOSING] == count:
            pool.free(pfn, count)
        elif pool.free_count:
            pool.alloc_one(FrameState.SHARED)

    open_copies: list[tuple[StateCopy, list[int]]] = []
    for step in range(60):
        if step % 7 == 0:
            open_copies.append((pool.copy_states(), pool.states(0, pool.frame_count).tolist()))
        change()
        for copied, _ in open_copies[-2:]:
            copied.copy_some()
        assert (
            pool.tally(0, pool.frame_count)
            == np.bincount(pool.states(0, pool.frame_count), minlength=len(FrameState)).tolist()
        )
    assert held
    for copied, states in open_copies:
        while copied.copy_some():
            pass
        assert copied.of(np.arange(pool.frame_count)).tolist() == states
        assert [state for _, count, state in copied.runs(pool.frame_count) for _ in range(count)] == states


def test_nobody_copies_for_one_that_was_given_up() -> None:
    pool = FramePool(1024)
    pool.alloc(100, FrameState.SHARED)
    pool.copy_states()
    gc.collect()
    kept = pool.copy_states()
    pool.alloc_one(FrameState.SHARED)
    assert len(pool._copies) == 1
    assert not kept.copy_some()
    assert kept.of(np.array([99, 100])).tolist() == [FrameState.SHARED, FrameState.FREE]
