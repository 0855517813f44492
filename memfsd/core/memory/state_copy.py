"""The states of all frames at one moment, for who looks at them later and without the lock."""

import itertools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from memfsd.uapi.frame_state import FrameState
from memfsd.uapi.units import ORDER_2M

Run = tuple[int, int, int]
"""First frame, frames, state."""
Pfns = NDArray[np.int64]

_BLOCK = 1 << ORDER_2M
_MIXED = 255
_STEP_ROWS = 1024
"""Of 512 bytes, copied at once."""


class StateCopy:
    """Copied as the pool keeps them: a byte for each block, and the frames of those blocks whose frames differ.

    Make it with Service.lock held, and with that held again `copy_some` until there is no more. Then it needs none.
    """

    def __init__(
        self, blocks: NDArray[np.uint8], frames: NDArray[np.uint8], mixed: NDArray[np.int64], counts: list[int]
    ) -> None:
        """blocks, frames: the pool's arrays; mixed: the numbers of the blocks whose states are in `frames`."""
        self._blocks = blocks.copy()
        self._blocks[mixed] = _MIXED
        self._mixed = mixed
        self._source: NDArray[np.uint8] | None = frames.reshape(-1, _BLOCK)
        """Until all is copied."""
        self._frames = np.empty((len(mixed), _BLOCK), np.uint8)
        self._is_copied = np.zeros(len(mixed), np.bool_)
        self._row = 0
        self._counts = list(counts)

    def copy_some(self) -> bool:
        """Some more blocks; False when that were all."""
        rows = slice(self._row, self._row + _STEP_ROWS)
        lacking = self._row + np.flatnonzero(~self._is_copied[rows])
        if len(lacking):
            assert self._source is not None
            self._frames[lacking] = self._source[self._mixed[lacking]]
            self._is_copied[lacking] = True
        self._row = rows.stop
        if self._row < len(self._mixed):
            return True
        self._source = None
        return False

    def keep(self, block: int) -> None:
        """This block is about to change."""
        if self._source is not None:
            row = int(np.searchsorted(self._mixed, block))
            if row < len(self._mixed) and self._mixed[row] == block and not self._is_copied[row]:
                self._frames[row] = self._source[block]
                self._is_copied[row] = True

    def count(self, state: FrameState) -> int:
        """As the pool counts them."""
        return self._counts[state]

    def mixed(self) -> tuple[Pfns, NDArray[np.uint8]]:
        """Blocks of 512 frames in several states, by number, and the states of their frames, a row each."""
        return self._mixed, self._frames

    def of(self, pfns: Pfns) -> NDArray[np.uint8]:
        """The states of these frames."""
        numbers = pfns >> ORDER_2M
        found: NDArray[np.uint8] = self._blocks[numbers]
        if len(self._mixed):
            rows = np.searchsorted(self._mixed, numbers)
            in_row = np.flatnonzero(self._mixed[np.minimum(rows, len(self._mixed) - 1)] == numbers)
            found[in_row] = self._frames[rows[in_row], pfns[in_row] & (_BLOCK - 1)]
        return found

    def runs(self, frame_count: int) -> Iterator[Run]:
        """Frames 0 to frame_count in order, without a gap, as runs of one state."""
        start, state = 0, -1
        for at, found in self._changes():
            if found != state and at < frame_count:
                if at > start:
                    yield start, at - start, state
                start, state = at, found
        yield start, frame_count - start, state

    def _changes(self) -> Iterator[tuple[int, int]]:
        """Where another state may begin, and which."""
        edges = [0, *(np.flatnonzero(np.diff(self._blocks)) + 1).tolist(), len(self._blocks)]
        row = 0
        for first, last in itertools.pairwise(edges):
            if int(self._blocks[first]) != _MIXED:
                yield first << ORDER_2M, int(self._blocks[first])
                continue
            for block in range(first, last):
                frames = self._frames[row]
                row += 1
                for at in [0, *(np.flatnonzero(np.diff(frames)) + 1).tolist()]:
                    yield (block << ORDER_2M) + at, int(frames[at])


def runs_in(states: NDArray[np.uint8], wanted: FrameState) -> list[tuple[int, int]]:
    """Where consecutive states are the wanted one: [low, high) indices."""
    found = states.tobytes().count(wanted)
    if found in (0, len(states)):  # as a rule
        return [(0, found)] if found else []
    match = np.concatenate(([False], states == wanted, [False]))
    edges = (match[1:] != match[:-1]).nonzero()[0].tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))
