"""The pool of frames: what state each one is in, and which NUMA node it is on.

A frame moves between states as page_life allows. It leaves FREE only through `alloc*` and comes back only through
`free`, so that it is FREE exactly when its node's buddy may hand it out (R6: nothing is free before it is acknowledged
and scrubbed).
The states and the arrays that hold them are one thing: hence the length.
"""

import errno
import sys
import weakref
from bisect import bisect_right

import numpy as np
from numpy.typing import NDArray

from memfsd.common.intervals import IntervalSet, subtract
from memfsd.uapi.distances import Rows
from memfsd.uapi.errors import Refused
from memfsd.uapi.frame_state import FrameState
from memfsd.uapi.limits import MAX_NODES, MAX_POOL_BYTES
from memfsd.uapi.units import ORDER_2M, ORDER_4K, PAGE_SHIFT, Pfn, format_size

from .buddy import Buddy
from .nodes import LOCAL_NODE, Distances, Zones
from .numastat import NodeReport, NumaStat
from .page_life import LEGAL
from .state_copy import StateCopy

_STATES = tuple(FrameState)
_ORIGINS = [sum(1 << old for old in _STATES if new in LEGAL[old]) for new in _STATES]
"""For each new state, the bit set of the states it may come from."""
_FREE = int(FrameState.FREE)
_FREE_BIT = 1 << _FREE
_BLOCK = 1 << ORDER_2M
_MIXED = 255
_UNCOPIED = 254
"""As MIXED, but a StateCopy may still lack it: before it changes, it goes through `_break`."""
_UNIFORM = [bytes([state]) * _BLOCK for state in _STATES]
_BLOCKS_AT_ONCE = 256
"""Mixed blocks counted in one step: numpy makes eight bytes of each frame's one."""
_MAX_FRAMES = MAX_POOL_BYTES >> PAGE_SHIFT


class FramePool:
    """Frames 0 to frame_count, split evenly over the nodes, at 2 MiB boundaries if they are large enough.

    EINVAL for a size, a number of nodes or a table of distances that is out of bounds. Counts are frames. An allocation
    without zones tries the local node first, then the nearest.
    """

    # States are kept per block of 512 frames while they agree; a block that is MIXED has them in _frames.
    # Both arrays start as zero, which is FREE, and are committed by the kernel as they are touched.

    def __init__(self, frame_count: int, node_count: int = 1, distances: Rows = ()) -> None:
        if not 1 <= frame_count <= _MAX_FRAMES:
            raise Refused(
                errno.EINVAL,
                f"a pool of {frame_count} frames: choose size= from 4K to {format_size(MAX_POOL_BYTES)}",
            )
        if not 1 <= node_count <= min(MAX_NODES, frame_count):
            raise Refused(
                errno.EINVAL,
                f"{node_count} nodes for {frame_count} frames: choose nodes= from 1 to {min(MAX_NODES, frame_count)}",
            )
        self.frame_count = frame_count
        self.node_count = node_count
        self.distances = Distances(node_count, distances)
        self._anywhere = Zones(self.distances.zonelist(LOCAL_NODE))
        self._stat = NumaStat(node_count)
        self.split_count = self.merge_count = 0
        """Of large pages of all files, since the mount."""
        unit = _BLOCK if frame_count >= _BLOCK * node_count else 1
        edges = [frame_count // unit * node // node_count * unit for node in range(node_count)]
        self._starts = edges
        self._buddies = [Buddy(start, end - start) for start, end in zip(edges, [*edges[1:], frame_count], strict=True)]
        self._local = self._buddies[LOCAL_NODE]
        block_count = -(-frame_count // _BLOCK)
        self._block_array = np.zeros(block_count, np.uint8)
        self._frame_array = np.zeros(block_count * _BLOCK, np.uint8)
        self._blocks = self._block_array.data
        self._frames = self._frame_array.data
        self.aside = IntervalSet()
        """Frames that go OFFLINE where they would be free: core.memory.isolation."""
        self._copies: list[weakref.ref[StateCopy]] = []
        self._counts = [0] * len(_STATES)
        self._counts[FrameState.FREE] = frame_count

    @property
    def free_count(self) -> int:
        return self._counts[FrameState.FREE]

    def count(self, state: FrameState) -> int:
        return self._counts[state]

    @property
    def by_state(self) -> tuple[int, ...]:
        """Frames in each state, by its number."""
        return tuple(self._counts)

    def counts(self) -> dict[str, int]:
        """Frames in each state, by its name in lower case."""
        return {state.name.lower(): self._counts[state] for state in _STATES}

    def node_of(self, pfn: int) -> int:
        assert 0 <= pfn < self.frame_count
        return bisect_right(self._starts, pfn) - 1

    def node_at(self, pfn: int) -> tuple[int, int]:
        """The node of a frame, and where that node ends."""
        node = self.node_of(pfn)
        return node, self._buddies[node].end

    def node_free_counts(self) -> list[int]:
        return [buddy.free_count for buddy in self._buddies]

    def available(self, node: int, order: int) -> int:
        """Free frames of a node in blocks of this order."""
        return self._buddies[node].available(order)

    def node_range(self, node: int) -> tuple[Pfn, Pfn]:
        """Frames [start, end)."""
        return Pfn(self._starts[node]), Pfn(self._buddies[node].end)

    def is_online(self, node: int) -> bool:
        """It exists, and gives frames."""
        if not 0 <= node < self.node_count:
            return False
        start, end = self.node_range(node)
        return self.aside.within(start, end) != [(start, end)]

    def disregard(self, node: int, count: int) -> None:
        """Nobody got these frames that were allocated just now: numastat(8) does not count them."""
        self._stat.took_back(node, -count)

    def numastat(self) -> list[NodeReport]:
        return [
            self._stat.report(node, buddy.end - buddy.first, buddy.free_count)
            for node, buddy in enumerate(self._buddies)
        ]

    def alloc(
        self,
        count: int,
        state: FrameState,
        *,
        order: int = ORDER_4K,
        zones: Zones | None = None,
        max_runs: int = sys.maxsize,
    ) -> list[tuple[Pfn, int]]:
        """Runs (pfn, frames) that add up to count, a multiple of 1 << order, as each run is; to less with max_runs.

        From the first of the zones as far as it goes, then from the others in order. ENOSPC, and nothing changed, when
        all together have not enough.
        """
        zones = zones or self._anywhere
        room = [(node, self._buddies[node].available(order)) for node in zones.nodes]
        if count > sum(free for _, free in room):
            raise self._full(count, order, zones)
        runs: list[tuple[Pfn, int]] = []
        left = count
        for node, free in room:
            part = min(left, free)
            if part:
                taken = self._buddies[node].alloc(part, order, max_runs - len(runs))
                self._count(node, sum(run for _, run in taken), zones)
                runs += taken
                left -= part
                if not left or len(runs) >= max_runs:
                    break
        for pfn, run in runs:
            self._enter(pfn, run, state)
        return runs

    def alloc_one(self, state: FrameState, zones: Zones | None = None) -> int:
        """One frame. ENOSPC. A plain int: to call Pfn() is felt in a fault."""
        buddy = self._local
        if zones is not None or not buddy.free_count:
            zones = zones or self._anywhere
            node = self._with_room(zones)
            buddy = self._buddies[node]
            self._count(node, 1, zones)
        pfn, frames, counts = buddy.alloc_one(), self._frames, self._counts
        if self._blocks[pfn >> ORDER_2M] != _MIXED:
            self._break(pfn >> ORDER_2M)
        assert not frames[pfn] and _ORIGINS[state] & _FREE_BIT, f"frame {pfn:#x} to {state.name}"
        frames[pfn] = state
        counts[_FREE] -= 1
        counts[state] += 1
        return pfn

    def alloc_run(
        self, max_count: int, state: FrameState, *, zones: Zones | None = None, after: Pfn | None = None
    ) -> tuple[Pfn, int]:
        """One contiguous run (pfn, frames) of 1 to max_count frames, starting at `after` if that is free and where the
        run is meant to be. ENOSPC when no zone has a frame.
        """
        zones = zones or self._anywhere
        meant = zones.nodes[0]
        if after is not None and after < self.frame_count and (self.node_count == 1 or self.node_of(after) == meant):
            count = self._buddies[meant].alloc_at(after, max_count)
            if count:
                self._count(meant, count, zones)
                self._enter(after, count, state)
                return after, count
        node = self._with_room(zones)
        pfn, count = self._buddies[node].alloc_run(max_count)
        self._count(node, count, zones)
        self._enter(pfn, count, state)
        return pfn, count

    def set_state(self, pfn: int, count: int, new: FrameState) -> None:
        """Move frames that are in use to another state; each must be in a state from which that is LEGAL."""
        assert new != FrameState.FREE, "frames become free through free()"
        origins = _ORIGINS[new] & ~_FREE_BIT
        if count == 1:
            self._move_one(pfn, new, origins)
        else:
            self._move(pfn, count, new, origins)

    def free(self, pfn: int, count: int) -> None:
        """Give frames back that are CLOSING, acknowledged and scrubbed, or OFFLINE; those `aside` go OFFLINE."""
        if self.aside:
            aside = self.aside.within(pfn, pfn + count)
            for low, high in aside:
                self.set_state(low, high - low, FrameState.OFFLINE)
            for low, high in subtract(pfn, pfn + count, aside):
                self._free(low, high - low)
        else:
            self._free(pfn, count)

    def _free(self, pfn: int, count: int) -> None:
        if count == 1:
            self._move_one(pfn, FrameState.FREE, _ORIGINS[FrameState.FREE])
        else:
            self._move(pfn, count, FrameState.FREE, _ORIGINS[FrameState.FREE])
        at, end = pfn, pfn + count
        while at < end:
            node = self.node_of(at)
            stop = min(self._buddies[node].end, end)
            self._buddies[node].free(at, stop - at)
            self._stat.took_back(node, stop - at)
            at = stop

    def state(self, pfn: int) -> FrameState:
        assert 0 <= pfn < self.frame_count
        state = self._blocks[pfn >> ORDER_2M]
        return _STATES[self._frames[pfn] if state >= _UNCOPIED else state]

    def states(self, pfn: int, count: int) -> NDArray[np.uint8]:
        """A copy of the states, one byte a frame: ask for long runs in parts, or ask `tally`."""
        assert pfn >= 0
        assert count >= 0
        assert pfn + count <= self.frame_count
        first = pfn >> ORDER_2M
        last = -(-(pfn + count) >> ORDER_2M)
        if last - first == 1 and self._blocks[first] == _MIXED:  # as a rule, and cheap
            return self._frame_array[pfn : pfn + count].copy()
        blocks = self._block_array[first:last]
        found = np.repeat(blocks, _BLOCK)
        mixed = np.flatnonzero(blocks >= _UNCOPIED)
        if len(mixed):
            frames = self._frame_array[first << ORDER_2M : last << ORDER_2M]
            found.reshape(-1, _BLOCK)[mixed] = frames.reshape(-1, _BLOCK)[mixed]
        start = pfn - (first << ORDER_2M)
        return found[start : start + count]

    def state_run(self, pfn: int, max_count: int) -> tuple[FrameState, int]:
        """The state of a frame, and how many from it on are in it, at most max_count."""
        state, at, end = self.state(pfn), pfn, pfn + max_count
        while at < end:
            block = at >> ORDER_2M
            if not at & _BLOCK - 1 and self._blocks[block] == state:
                blocks = (self._block_array[block : -(-end >> ORDER_2M)] != state).nonzero()[0]
                at = min(end, block + int(blocks[0]) << ORDER_2M) if len(blocks) else end
                continue
            stop = min(end, (at | _BLOCK * _BLOCKS_AT_ONCE - 1) + 1)
            other = (self.states(at, stop - at) != state).nonzero()[0]
            if len(other):
                return state, at + int(other[0]) - pfn
            at = stop
        return state, end - pfn

    def copy_states(self) -> StateCopy:
        """Of now. It is complete once its `copy_some` says so."""
        mixed = np.flatnonzero(self._block_array >= _UNCOPIED)
        copied = StateCopy(self._block_array, self._frame_array, mixed, self._counts)
        self._block_array[mixed] = _UNCOPIED
        self._copies = [other for other in self._copies if other() is not None] + [weakref.ref(copied)]
        return copied

    def tally(self, pfn: int, count: int) -> list[int]:
        """How many of the frames are in each state, indexed by state. Cheap for runs of any length."""
        assert pfn >= 0
        assert count > 0
        assert pfn + count <= self.frame_count
        end = pfn + count
        inner_start, inner_end = _whole_blocks(pfn, end)
        tally = [0] * len(_STATES)
        for start, stop in ((pfn, inner_start), (inner_end, end)):
            if start < stop:
                state = self._blocks[start >> ORDER_2M]
                if state >= _UNCOPIED:
                    _add(tally, self._frame_array[start:stop])
                else:
                    tally[state] += stop - start
        if inner_start < inner_end:
            blocks = self._block_array[inner_start >> ORDER_2M : inner_end >> ORDER_2M]
            values = np.bincount(blocks, minlength=_MIXED + 1)
            for known in _STATES:
                tally[known] += int(values[known]) << ORDER_2M
            if values[_MIXED] or values[_UNCOPIED]:
                frames = self._frame_array[inner_start:inner_end].reshape(-1, _BLOCK)
                mixed = np.flatnonzero(blocks >= _UNCOPIED)
                for part in range(0, len(mixed), _BLOCKS_AT_ONCE):
                    _add(tally, frames[mixed[part : part + _BLOCKS_AT_ONCE]].reshape(-1))
        return tally

    def _move_one(self, pfn: int, new: FrameState, origins: int) -> None:
        assert 0 <= pfn < self.frame_count
        block = pfn >> ORDER_2M
        if self._blocks[block] != _MIXED:
            self._break(block)
        frames, counts = self._frames, self._counts
        old = frames[pfn]
        assert origins >> old & 1, f"frame {pfn:#x} from {FrameState(old).name} to {new.name}"
        frames[pfn] = new
        counts[old] -= 1
        counts[new] += 1

    def _move(self, pfn: int, count: int, new: FrameState, origins: int) -> None:
        for old, found in enumerate(self.tally(pfn, count)):
            if found:
                assert origins >> old & 1, (
                    f"{found} frames of {pfn:#x}+{count:#x} from {FrameState(old).name} to {new.name}"
                )
                self._counts[old] -= found
                self._counts[new] += found
        self._fill(pfn, count, new)

    def _enter(self, pfn: int, count: int, state: FrameState) -> None:
        """Frames that the buddy just gave."""
        assert _ORIGINS[state] & _FREE_BIT, f"from FREE to {state.name}"
        self._counts[FrameState.FREE] -= count
        self._counts[state] += count
        if (pfn & (_BLOCK - 1)) + count < _BLOCK:
            self._fill_part(pfn, pfn + count, state)
        else:
            self._fill(pfn, count, state)

    def _fill(self, pfn: int, count: int, state: FrameState) -> None:
        end = pfn + count
        inner_start, inner_end = _whole_blocks(pfn, end)
        if pfn < inner_start:
            self._fill_part(pfn, inner_start, state)
        if inner_end < end:
            self._fill_part(inner_end, end, state)
        if inner_start < inner_end:
            self._block_array[inner_start >> ORDER_2M : inner_end >> ORDER_2M] = state

    def _fill_part(self, start: int, end: int, state: FrameState) -> None:
        """Frames within one block, and not the whole of it."""
        block = start >> ORDER_2M
        if self._blocks[block] != _MIXED:
            self._break(block)
        self._frames[start:end] = _UNIFORM[state][: end - start]

    def _break(self, block: int) -> None:
        for copied in self._copies:
            if (lacking := copied()) is not None:
                lacking.keep(block)
        if self._blocks[block] != _UNCOPIED:
            start = block << ORDER_2M
            self._frames[start : start + _BLOCK] = _UNIFORM[self._blocks[block]]
        self._blocks[block] = _MIXED

    def _count(self, node: int, count: int, zones: Zones) -> None:
        self._stat.gave(node, count, zones.nodes[0], is_interleaved=zones.is_interleaved)

    def _with_room(self, zones: Zones) -> int:
        """The first of the nodes that has a free frame."""
        for node in zones.nodes:
            if self._buddies[node].free_count:
                return node
        raise self._full(1, ORDER_4K, zones)

    def _full(self, count: int, order: int, zones: Zones) -> Refused:
        wanted = "another frame" if count == 1 else f"{count} frames"
        if order:
            wanted += f" in blocks of {1 << order}"
        if zones.policy and self.free_count:
            return Refused(
                errno.ENOSPC,
                f"no room for {wanted} where policy {zones.policy} has them: {self.free_count} of "
                f"{self.frame_count} are free elsewhere; bind to more nodes, or punch or remove files there",
            )
        return Refused(
            errno.ENOSPC,
            f"no room for {wanted}: {self.free_count} of {self.frame_count} are free; "
            "punch or remove files, or mount with a larger size=",
        )


def _whole_blocks(start: int, end: int) -> tuple[int, int]:
    """The part of [start, end) that is whole blocks; before and after it lies less than a block each.

    Empty if there is none: then it is where a block begins within the range, or the range's end.
    """
    inner_start = min((start + _BLOCK - 1) & -_BLOCK, end)
    return inner_start, max(end & -_BLOCK, inner_start)


def _add(tally: list[int], states: NDArray[np.uint8]) -> None:
    for state, found in enumerate(np.bincount(states, minlength=len(_STATES)).tolist()):
        tally[state] += found
