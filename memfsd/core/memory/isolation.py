"""Frames that are set aside, so that nobody gets them: a node that is offline, a block that is being emptied.

begin -> drain, in steps: what is free there is OFFLINE, and so is what becomes free later -> end, in steps.
"""

from memfsd.uapi.frame_state import FrameState
from memfsd.uapi.units import ORDERS, Pfn

from .frames import FramePool
from .nodes import Zones
from .state_copy import runs_in

STEP_FRAMES = 1 << 18
"""Looked at in one step."""
_STEP_RUNS = 256


class Isolation:
    """Of one pool; Service.lock is held. Frame ranges are of one node."""

    def __init__(self, pool: FramePool) -> None:
        self._pool = pool

    def begin(self, start: Pfn, end: Pfn) -> None:
        self._pool.aside.add(start, end)

    def drain_node(self, node: int) -> bool:
        """True when nothing of the node is free any more."""
        pool = self._pool
        for order in reversed(ORDERS):
            count = pool.available(node, order)
            if count:
                runs = pool.alloc(count, FrameState.OFFLINE, order=order, zones=Zones((node,)), max_runs=_STEP_RUNS)
                pool.disregard(node, sum(taken for _, taken in runs))
                return not pool.available(node, ORDERS[0])
        return True

    def drain(self, start: Pfn, end: Pfn) -> None:
        """At most STEP_FRAMES."""
        pool, node = self._pool, self._pool.node_of(start)
        for low, high in self._in_state(start, end, FrameState.FREE):
            while low < high:
                pfn, count = pool.alloc_run(high - low, FrameState.OFFLINE, zones=Zones((node,)), after=low)
                assert pfn == low
                pool.disregard(node, count)
                low += count

    def end(self, start: Pfn, end: Pfn) -> None:
        """At most STEP_FRAMES of them."""
        self._pool.aside.discard(start, end)
        for low, high in self._in_state(start, end, FrameState.OFFLINE):
            self._pool.free(low, high - low)

    def _in_state(self, start: Pfn, end: Pfn, wanted: FrameState) -> list[tuple[Pfn, Pfn]]:
        assert end - start <= STEP_FRAMES
        return [(start + low, start + high) for low, high in runs_in(self._pool.states(start, end - start), wanted)]
