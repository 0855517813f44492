"""Buddy and FramePool against a plain set and a plain list, under random operations."""

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from memfsd.core.memory.buddy import Buddy
from memfsd.core.memory.frames import FramePool
from memfsd.core.memory.nodes import Zones
from memfsd.core.memory.page_life import LEGAL
from memfsd.uapi.errors import Refused
from memfsd.uapi.frame_state import FrameState
from memfsd.uapi.units import ORDER_2M, Pfn

BLOCK = 512
COUNTS = st.one_of(st.integers(1, 12), st.integers(1, 1400), st.sampled_from([511, 512, 513, 1024, 1536]))
ALLOCATED = [FrameState.SHARED, FrameState.PRIVATE, FrameState.PENDING]


class BuddyMachine(RuleBasedStateMachine):
    """Allocated runs are a bundle; `free` is the set of free frames."""

    runs: Bundle[tuple[int, int]] = Bundle("runs")

    @initialize(first=st.sampled_from([0, 3, 512, (1 << 18) - 900]), count=st.integers(1, 3000))
    def start(self, first: int, count: int) -> None:
        self.first = first
        self.buddy = Buddy(first, count)
        self.free = set(range(first, first + count))

    def take(self, pfn: int, count: int) -> None:
        frames = set(range(pfn, pfn + count))
        assert frames <= self.free
        self.free -= frames

    def free_blocks(self) -> int:
        starts = (pfn for pfn in self.free if pfn % BLOCK == 0)
        return sum(all(pfn + i in self.free for i in range(BLOCK)) for pfn in starts)

    @rule(target=runs, count=COUNTS)
    def alloc(self, count: int) -> Any:
        try:
            runs = self.buddy.alloc(count)
        except Refused:
            assert count > len(self.free)
            return multiple()
        assert sum(run for _, run in runs) == count
        for pfn, run in runs:
            self.take(pfn, run)
        return multiple(*runs)

    @rule(target=runs, blocks=st.integers(1, 4))
    def alloc_blocks(self, blocks: int) -> Any:
        try:
            runs = self.buddy.alloc(blocks * BLOCK, ORDER_2M)
        except Refused:
            assert blocks > self.free_blocks()
            return multiple()
        assert sum(run for _, run in runs) == blocks * BLOCK
        for pfn, run in runs:
            assert pfn % BLOCK == run % BLOCK == 0
            self.take(pfn, run)
        return multiple(*runs)

    @rule(target=runs)
    def alloc_one(self) -> Any:
        if not self.free:
            return multiple()
        pfn = self.buddy.alloc_one()
        self.take(pfn, 1)
        return pfn, 1

    @rule(target=runs, most=COUNTS)
    def alloc_run(self, most: int) -> Any:
        if not self.free:
            return multiple()
        pfn, count = self.buddy.alloc_run(most)
        assert 1 <= count <= most
        self.take(pfn, count)
        return pfn, count

    @rule(target=runs, offset=st.integers(-2, 3002), most=COUNTS)
    def alloc_at(self, offset: int, most: int) -> Any:
        pfn = self.first + offset
        expected = 0
        while expected < most and pfn + expected in self.free:
            expected += 1
        assert self.buddy.alloc_at(pfn, most) == expected
        if not expected:
            return multiple()
        self.take(pfn, expected)
        return pfn, expected

    @rule(target=runs, run=consumes(runs), cut=st.tuples(COUNTS, COUNTS))
    def give_back(self, run: tuple[int, int], cut: tuple[int, int]) -> Any:
        """The middle of a run comes back; its ends stay in use."""
        pfn, count = run
        low = min(cut[0] - 1, count - 1)
        high = min(low + cut[1], count)
        self.buddy.free(pfn + low, high - low)
        self.free |= set(range(pfn + low, pfn + high))
        rest = [(pfn, low), (pfn + high, count - high)]
        return multiple(*(part for part in rest if part[1]))

    @invariant()
    def agrees(self) -> None:
        if hasattr(self, "buddy"):
            assert self.buddy.free_count == len(self.free)
            assert self.buddy.available(ORDER_2M) == self.free_blocks() * BLOCK
            probes = {self.first + at for at in range(-1, 3001, 97)} | set(list(self.free)[:5])
            assert all(self.buddy.is_free(pfn) == (pfn in self.free) for pfn in probes)


class PoolMachine(RuleBasedStateMachine):
    """The model is a list: the state of each frame."""

    @initialize(count=st.integers(1, 2600), nodes=st.integers(1, 4))
    def start(self, count: int, nodes: int) -> None:
        self.pool = FramePool(count, min(nodes, count))
        self.model = [FrameState.FREE] * count

    def enter(self, pfn: int, count: int, state: FrameState) -> None:
        assert self.model[pfn : pfn + count] == [FrameState.FREE] * count
        self.model[pfn : pfn + count] = [state] * count

    def has_free(self) -> bool:
        return FrameState.FREE in self.model

    @rule(count=COUNTS, state=st.sampled_from(ALLOCATED), node=st.none() | st.integers(0, 3))
    def alloc(self, count: int, state: FrameState, node: int | None) -> None:
        zones = None if node is None else Zones(self.pool.distances.zonelist(node % self.pool.node_count))
        try:
            runs = self.pool.alloc(count, state, zones=zones)
        except Refused:
            assert count > self.model.count(FrameState.FREE)
            return
        assert sum(run for _, run in runs) == count
        for pfn, run in runs:
            self.enter(pfn, run, state)

    @rule(most=COUNTS, state=st.sampled_from(ALLOCATED), after=st.none() | st.integers(0, 2600))
    def alloc_run(self, most: int, state: FrameState, after: int | None) -> None:
        if self.has_free():
            pfn, count = self.pool.alloc_run(most, state, after=None if after is None else Pfn(after))
            assert 1 <= count <= most
            if (
                after is not None
                and after < len(self.model)
                and self.pool.node_of(after) == 0
                and self.model[after] is FrameState.FREE
            ):
                assert pfn == after
            self.enter(pfn, count, state)

    @rule(state=st.sampled_from(ALLOCATED))
    def alloc_one(self, state: FrameState) -> None:
        if self.has_free():
            self.enter(self.pool.alloc_one(state), 1, state)

    @rule(at=st.integers(0, 2599), count=COUNTS, new=st.sampled_from(list(FrameState)[1:]))
    def set_state(self, at: int, count: int, new: FrameState) -> None:
        at %= len(self.model)
        end = at
        while end < min(at + count, len(self.model)):
            old = self.model[end]
            if old is FrameState.FREE or new not in LEGAL[old]:
                break
            end += 1
        if at < end:
            self.pool.set_state(at, end - at, new)
            self.model[at:end] = [new] * (end - at)

    @rule(at=st.integers(0, 2599), count=COUNTS)
    def free(self, at: int, count: int) -> None:
        at %= len(self.model)
        end = at
        while end < min(at + count, len(self.model)) and self.model[end] is FrameState.CLOSING:
            end += 1
        if at < end:
            self.pool.free(at, end - at)
            self.model[at:end] = [FrameState.FREE] * (end - at)

    @rule(at=st.integers(0, 2599), count=COUNTS)
    def look(self, at: int, count: int) -> None:
        at %= len(self.model)
        part = self.model[at : at + count]
        assert self.pool.states(at, len(part)).tolist() == part
        assert self.pool.tally(at, len(part)) == [part.count(state) for state in FrameState]
        assert self.pool.state(at) is part[0]

    @invariant()
    def agrees(self) -> None:
        if hasattr(self, "pool"):
            assert [self.pool.count(state) for state in FrameState] == [self.model.count(state) for state in FrameState]
            assert sum(self.pool.node_free_counts()) == self.pool.free_count
            assert self.pool.states(0, len(self.model)).tolist() == self.model


TestBuddy = BuddyMachine.TestCase
TestPool = PoolMachine.TestCase
TestBuddy.settings = TestPool.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, derandomize=True
)
