"""Handles that were closed, and whose RELEASE is still on its way, hold up no seal.

close(2) does not wait for RELEASE. The kernel queues it at once as a rule, but behind reads ahead and writes back of
the same handle, and behind other background requests when there are many; each answer of ours queues what waited
for it. So what was closed before is released when the queue is empty.
"""

import errno
import time
from collections.abc import Callable
from typing import TypeVar

import trio

from memfsd.uapi.errors import Refused

_SERVING_S = 1.0
"""On a mount that is never idle: how long the loop may serve others first, in its own CPU time. On the wall's clock a
busy machine, where the loop does not get to run, would pass for a handle that stays open."""
_DEADLINE_S = 30.0
_STEP_S = 0.0005

R = TypeVar("R")


async def after_closing(
    add_seals: Callable[[], R], pending: Callable[[], bool], serving_time: Callable[[], float] = time.thread_time
) -> R:
    """What add_seals returns; EBUSY only for handles that are still open.

    pending: whether requests are queued or under way that may end in a RELEASE.
    """
    enough, deadline = serving_time() + _SERVING_S, trio.current_time() + _DEADLINE_S
    while True:
        try:
            return add_seals()
        except Refused as refused:
            late = serving_time() > enough or trio.current_time() > deadline
            if refused.errno != errno.EBUSY or not pending() or late:
                raise
        await trio.sleep(_STEP_S)
