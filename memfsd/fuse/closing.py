"""Handles that were closed, and whose RELEASE is still on its way, hold up no seal, and their inodes no new file.

close(2) does not wait for RELEASE. The kernel queues it at once as a rule, but behind reads ahead and writes back of
the same handle, and behind other background requests when there are many; each answer of ours queues what waited
for it. An inode without names ends with FORGET, which the kernel sends after other requests. So what was closed before
is released when the queue is empty.
"""

import time
from collections.abc import Callable
from typing import TypeVar

import trio

from memfsd.uapi.errors import Refused

_SERVING_S = 1.0
"""On a mount that is never idle: how long the loop may serve others first, in its own CPU time. On the wall's clock a
busy machine, where the loop does not get to run, would pass for a handle that stays open."""
_DEADLINE_S = 30.0
_LOOK_S = 0.05
"""How long who only looks waits."""
_STEP_S = 0.0005

R = TypeVar("R")


async def after_closing(
    call: Callable[[], R],
    refusal: int,
    pending: Callable[[], bool],
    serving_time: Callable[[], float] = time.thread_time,
) -> R:
    """What the call returns; refused with this errno only for what is still open.

    pending: whether requests are queued or under way that may be a RELEASE or a FORGET, or end in one.
    """
    enough, deadline = serving_time() + _SERVING_S, trio.current_time() + _DEADLINE_S
    while True:
        try:
            return call()
        except Refused as refused:
            late = serving_time() > enough or trio.current_time() > deadline
            if refused.errno != refusal or not pending() or late:
                raise
        await trio.sleep(_STEP_S)


async def until_closed(pending: Callable[[], bool]) -> None:
    """For who shows what is free: it counts what was closed before, unless that takes long."""
    with trio.move_on_after(_LOOK_S):
        while pending():
            await trio.sleep(_STEP_S)
