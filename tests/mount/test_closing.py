"""Sealing waits for the RELEASE of what was closed, however busy the machine is, and not for what stays open. So does
who needs an inode, for FORGET."""

import errno
import itertools
import os
import threading

import pytest
import trio
import trio.testing

from memfsd.core.effects import Runs
from memfsd.core.files.inodes import ROOT_INO
from memfsd.fuse.closing import after_closing, until_closed
from memfsd.fuse.operations import Operations
from memfsd.store.work import Work
from memfsd.uapi.errors import Refused
from memfsd.uapi.names import XATTR_NUMA
from memfsd.uapi.units import PAGE_SIZE, Ino
from tests.support.core_store import ME, PUNCH, CoreStore
from tests.support.threads import DEADLINE_S


class Sealing:
    """EBUSY until it was asked `busy` times; each time the daemon then gets no CPU for `stall_s`."""

    def __init__(self, busy: int, stall_s: float = 0, number: int = errno.EBUSY) -> None:
        self.clock = trio.testing.MockClock(autojump_threshold=0)
        self.asked = 0
        self._busy, self._stall_s, self._number = busy, stall_s, number

    def __call__(self) -> str:
        self.asked += 1
        if self.asked > self._busy:
            return "sealed"
        self.clock.jump(self._stall_s)
        raise Refused(self._number, "the file is open for reading")


def seal(sealing: Sealing, *, pending: bool = True, step_s: float = 0.0) -> str:
    served = itertools.count()
    return trio.run(
        lambda: after_closing(sealing, errno.EBUSY, lambda: pending, lambda: next(served) * step_s),
        clock=sealing.clock,
    )


def test_a_daemon_that_did_not_get_to_run_has_not_waited() -> None:
    """On the wall's clock a single stall of a second was the whole wait: 39 of 1,024 files, on a busy machine."""
    assert seal(Sealing(busy=5, stall_s=3), step_s=0.001) == "sealed"


def test_a_handle_that_stays_open_is_busy_when_the_queue_is_empty() -> None:
    sealing = Sealing(busy=1000)
    with pytest.raises(Refused):
        seal(sealing, pending=False)
    assert sealing.asked == 1


@pytest.mark.parametrize("how", [{"stall_s": 0, "step_s": 0.01}, {"stall_s": 1, "step_s": 0}])
def test_on_a_mount_that_is_never_idle_the_wait_ends(how: dict[str, float]) -> None:
    sealing = Sealing(busy=1000, stall_s=how["stall_s"])
    with pytest.raises(Refused) as refused:
        seal(sealing, step_s=how["step_s"])
    assert refused.value.errno == errno.EBUSY
    assert 20 < sealing.asked < 200


def test_other_refusals_are_answered_at_once() -> None:
    sealing = Sealing(busy=1000, number=errno.EPERM)
    with pytest.raises(Refused):
        seal(sealing)
    assert sealing.asked == 1


@pytest.mark.parametrize(("looks", "waited_s"), [(0, 0.0), (3, 0.0015), (10_000, 0.05)])
def test_who_only_looks_waits_for_a_moment(looks: int, waited_s: float) -> None:
    left = iter(range(looks))

    async def wait() -> float:
        began = trio.current_time()
        await until_closed(lambda: next(left, None) is not None)
        return trio.current_time() - began

    assert trio.run(wait, clock=trio.testing.MockClock(autojump_threshold=0)) == pytest.approx(waited_s)


def test_a_release_goes_on_while_every_worker_waits_for_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel writes back for them, and in a full pool those writes wait for what is being released."""
    store = CoreStore(pages=(16 << 20) // PAGE_SIZE).store
    operations = Operations(store, 0)
    written_back = threading.Event()
    monkeypatch.setattr("trio._core._thread_cache.IDLE_TIMEOUT", 0.02)  # else they stay for ten seconds
    monkeypatch.setattr("memfsd.fuse.operations.write_back", lambda *_: written_back.wait(DEADLINE_S))
    sparse = [store.files.create(ROOT_INO, b"%d" % number, 0o644, os.O_RDWR, ME)[1].ino for number in range(40)]
    for ino in sparse:
        store.files.truncate(ino, PAGE_SIZE).run()
    large, shown = store.files.create(ROOT_INO, b"large", 0o644, os.O_RDWR, ME)
    store.files.fallocate(shown.ino, 0, 0, 8 << 20).run()
    store.names.unlink(ROOT_INO, b"large").run()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for ino in sparse:
                nursery.start_soon(operations.getattr, ino)
            await trio.testing.wait_all_tasks_blocked()
            with trio.fail_after(DEADLINE_S):
                await operations.release(large.handle)
                await operations.forget([(shown.ino, 1)])
            assert store.service.pool.free_count == store.service.pool.frame_count
            written_back.set()

    try:
        trio.run(main)
    finally:
        written_back.set()


def test_an_allocation_that_was_refused_late_waits_for_what_was_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a policy each run of frames is looked for by itself, and the first steps find theirs."""
    made = CoreStore(pages=8192, nodes=2)
    store, operations, punched = made.store, Operations(made.store, 0), threading.Event()
    monkeypatch.setattr("trio._core._thread_cache.IDLE_TIMEOUT", 0.02)
    old = made.make("old")
    handle = made.open(old, os.O_RDWR)
    made.fallocate(old, 0, 0, 8000 * PAGE_SIZE)
    made.unlink("old")
    new = made.make("new")
    writer = made.open(new, os.O_RDWR)
    store.files.setxattr(new.ino, XATTR_NUMA, b"interleave:0-1").run()
    punch = made.windows.punch

    def held(window: Ino | None, runs: Runs) -> None:
        if sum(count for _, count in runs) == 8000:
            punched.wait(DEADLINE_S)
        punch(window, runs)

    tries, fallocate = 0, store.files.fallocate

    def counted(ino: int, mode: int, offset: int, length: int) -> Work:
        nonlocal tries
        tries += 1
        if tries > 1:
            punched.set()
        return fallocate(ino, mode, offset, length)

    monkeypatch.setattr(made.windows, "punch", held)
    monkeypatch.setattr(store.files, "fallocate", counted)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(operations.release, handle)
            await trio.testing.wait_all_tasks_blocked()
            await operations.fallocate(new.ino, writer, 0, 0, 4096 * PAGE_SIZE, False)

    try:
        trio.run(main)
    finally:
        punched.set()
    assert new.pages.page_count == 4096


def test_what_comes_free_between_a_try_and_the_look_for_it_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is under way any more then."""
    made = CoreStore(pages=64)
    operations = Operations(made.store, 0)
    old, new = made.make("old"), made.make("new")
    made.fallocate(old, 0, 0, 60 * PAGE_SIZE)
    handle = made.open(new, os.O_RDWR)

    def is_over(*, queued: bool = False) -> bool:
        made.fallocate(old, PUNCH, 0, 60 * PAGE_SIZE)
        return False

    monkeypatch.setattr(made.store.reclaimer, "has_endings", is_over)
    trio.run(operations.fallocate, new.ino, handle, 0, 0, 32 * PAGE_SIZE, False)
    assert new.pages.page_count == 32
