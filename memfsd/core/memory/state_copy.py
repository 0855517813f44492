"""The states of all frames at one moment, for who looks at them later and without the lock."""

import numpy as np
from numpy.typing import NDArray

from memfsd.uapi.frame_state import FrameState
from memfsd.uapi.units import ORDER_2M

Pfns = NDArray[np.int64]

_BLOCK = 1 << ORDER_2M


class StateCopy:
    """Copied as the pool keeps them: a byte for each block, and the frames of those blocks whose frames differ."""

    def __init__(self, blocks: NDArray[np.uint8], frames: NDArray[np.uint8], mixed: int, counts: list[int]) -> None:
        """blocks, frames: the pool's arrays; mixed: what a block is whose states are in `frames`."""
        self._blocks = blocks.copy()
        self._mixed = np.flatnonzero(self._blocks == mixed)
        self._frames = frames.reshape(-1, _BLOCK)[self._mixed]
        self._counts = list(counts)

    def count(self, state: FrameState) -> int:
        """As the pool counts them."""
        return self._counts[state]

    def of(self, pfns: Pfns) -> NDArray[np.uint8]:
        """The states of these frames."""
        numbers = pfns >> ORDER_2M
        found: NDArray[np.uint8] = self._blocks[numbers]
        if len(self._mixed):
            rows = np.searchsorted(self._mixed, numbers)
            in_row = np.flatnonzero(self._mixed[np.minimum(rows, len(self._mixed) - 1)] == numbers)
            found[in_row] = self._frames[rows[in_row], pfns[in_row] & (_BLOCK - 1)]
        return found
