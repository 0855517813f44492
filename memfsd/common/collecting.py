"""Python's garbage collector in a process that keeps very much: what survived is not looked through again and again.

A full collection stops every thread for as long as it takes to visit all that lives, 0.2 s with 100,000 files. Hardly
anything of that is ever garbage in a ring, which is all that a collection is for.
"""

import gc
import time

_LONG_NS = 2_000_000
_THRESHOLDS = 700, 5, 1
"""A full collection may come after 7,000 objects more, instead of 77,000: until then nobody knows that it is long."""


class _Freezer:
    """After a full collection that took long, what survived it is left out of later ones. What of it becomes a ring of
    garbage nevertheless, a few requests that were under way, is never collected."""

    def __init__(self) -> None:
        self._began_ns = 0

    def __call__(self, phase: str, info: dict[str, int]) -> None:
        if info["generation"] < 2:
            return
        if phase == "start":
            self._began_ns = time.thread_time_ns()
        elif time.thread_time_ns() - self._began_ns > _LONG_NS:
            gc.freeze()


def freeze_survivors() -> None:
    """From now on, and what is there already."""
    gc.set_threshold(*_THRESHOLDS)
    gc.freeze()
    gc.collect()  # of next to nothing: the next full one comes once there is a quarter more than at the last
    gc.callbacks.append(_Freezer())
