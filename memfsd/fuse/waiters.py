"""Whose turn it is to wait for a VM: each such system call holds a worker thread, of which each user has some."""

import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from memfsd.core.files.shares import ROOT_UID
from memfsd.uapi.errors import Refused
from memfsd.uapi.limits import MAX_WAITERS, MAX_WAITERS_PER_UID, TURN_DEADLINE_S


class Waiters:
    """Silent VMs hold up those who wait for them, and others of the same user: nobody else.

    All users but root and the owner of the mount share MAX_WAITERS; each has MAX_WAITERS_PER_UID.
    """

    def __init__(self, owner_uid: int) -> None:
        self._privileged = frozenset({ROOT_UID, owner_uid})
        self._everyone = trio.CapacityLimiter(MAX_WAITERS)
        self._users: dict[int, trio.CapacityLimiter] = {}

    @asynccontextmanager
    async def turn(self, uid: int) -> AsyncIterator[None]:
        """The body may wait for a VM on a thread. EBUSY when no turn comes in time."""
        user = self._users.setdefault(uid, trio.CapacityLimiter(MAX_WAITERS_PER_UID))
        wanted = [user] if uid in self._privileged else [user, self._everyone]
        held: list[trio.CapacityLimiter] = []
        borrower = object()
        try:
            with trio.move_on_after(TURN_DEADLINE_S):
                for limiter in wanted:
                    await limiter.acquire_on_behalf_of(borrower)
                    held.append(limiter)
            if held != wanted:
                raise Refused(
                    errno.EBUSY, f"too many calls wait for VMs ({user.borrowed_tokens} of uid {uid}): try again"
                )
            yield
        finally:
            for limiter in held:
                limiter.release_on_behalf_of(borrower)
            if not user.borrowed_tokens and not user.statistics().tasks_waiting:
                self._users.pop(uid, None)
