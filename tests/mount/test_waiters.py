"""Turns to wait for a VM, by a clock that jumps."""

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from memfsd.fuse.waiters import Waiters
from memfsd.uapi.errors import Refused, errno_name
from memfsd.uapi.limits import MAX_WAITERS, MAX_WAITERS_PER_UID, TURN_DEADLINE_S

OWNER, FIRST_USER = 7, 1000


def play(scene: Callable[[Waiters, trio.Nursery], Awaitable[None]]) -> Waiters:
    """A scene; what still waits at its end is cancelled."""
    waiters = Waiters(OWNER)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await scene(waiters, nursery)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    return waiters


async def wait_for_ever(
    waiters: Waiters, uid: int, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    async with waiters.turn(uid):
        task_status.started()
        await trio.sleep_forever()


async def gets_a_turn(waiters: Waiters, uid: int) -> None:
    begun = trio.current_time()
    async with waiters.turn(uid):
        assert trio.current_time() == begun, "at once"


async def is_refused(waiters: Waiters, uid: int) -> None:
    begun = trio.current_time()
    with pytest.raises(Refused) as refused:
        async with waiters.turn(uid):
            pass
    assert errno_name(refused.value.errno) == "EBUSY"
    assert trio.current_time() - begun == pytest.approx(TURN_DEADLINE_S)


def test_a_user_who_waits_for_many_vms_holds_up_himself_and_not_for_longer_than_a_deadline() -> None:
    async def scene(waiters: Waiters, nursery: trio.Nursery) -> None:
        for _ in range(MAX_WAITERS_PER_UID):
            await nursery.start(wait_for_ever, waiters, FIRST_USER)
        await is_refused(waiters, FIRST_USER)
        for uid in (FIRST_USER + 1, OWNER, 0):
            await gets_a_turn(waiters, uid)

    assert not play(scene)._users, "nothing is kept of users who do not wait"


def test_all_users_together_do_not_hold_up_root_and_the_owner() -> None:
    async def scene(waiters: Waiters, nursery: trio.Nursery) -> None:
        for number in range(MAX_WAITERS):
            await nursery.start(wait_for_ever, waiters, FIRST_USER + number // MAX_WAITERS_PER_UID)
        await is_refused(waiters, FIRST_USER + MAX_WAITERS)
        for uid in (OWNER, 0):
            for _ in range(MAX_WAITERS_PER_UID):
                await nursery.start(wait_for_ever, waiters, uid)
            await is_refused(waiters, uid)

    play(scene)


def test_turns_come_as_others_end() -> None:
    async def scene(waiters: Waiters, nursery: trio.Nursery) -> None:
        order: list[int] = []

        async def take(number: int) -> None:
            async with waiters.turn(FIRST_USER):
                order.append(number)
                await trio.sleep(1)

        for number in range(MAX_WAITERS_PER_UID + 3):
            nursery.start_soon(take, number)
            await trio.testing.wait_all_tasks_blocked()
        assert order == list(range(MAX_WAITERS_PER_UID)), "the first wait, and hold their turns"
        await trio.sleep(1.5)
        assert sorted(order) == list(range(MAX_WAITERS_PER_UID + 3))

    play(scene)
