"""One task at a time, in virtual time, and stuck tasks are seen; on small tasks of their own."""

import threading
from collections.abc import Callable
from functools import partial

import pytest

from kvmsim.instruments.race.explore import Replay, default
from kvmsim.instruments.race.primitives import Connections, Makers
from kvmsim.instruments.race.scheduler import Scheduler, Step, Stuck, Task
from memfsd.common import sync


class First:
    def choose(self, steps: list[Step], enabled: list[Task], current: Task | None) -> Task:
        return default(enabled, current)


def raced(*bodies: Callable[[Scheduler], object], schedule: list[str] | None = None) -> Scheduler:
    """Tasks a, b, c... that run these."""
    scheduler = Scheduler(Replay(schedule) if schedule else First())
    for name, body in zip("abc", bodies, strict=False):
        scheduler.start(scheduler.add(name, name, actor=True), partial(body, scheduler))
    scheduler.race()
    return scheduler


def makers(scheduler: Scheduler) -> Makers:
    return Makers(scheduler, Connections(scheduler))


def test_tasks_take_turns_as_the_schedule_says() -> None:
    report: list[str] = []

    def body(name: str) -> Callable[[Scheduler], None]:
        def run(scheduler: Scheduler) -> None:
            for number in (1, 2):
                scheduler.reach(f"point {number}")
                report.append(f"{name}{number}")

        return run

    scheduler = raced(body("a"), body("b"), schedule=["a", "b", "b", "a", "a", "b"])
    scheduler.end()
    assert report == ["b1", "a1", "a2", "b2"]
    assert [step.name for step in scheduler.steps][:2] == ["starts", "starts"]


def test_memory_of_this_process_that_is_short_is_no_failure_of_a_task() -> None:
    def short(_: Scheduler) -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        raced(short)


def test_a_lock_that_is_held_is_waited_for() -> None:
    report: list[str] = []
    scheduler = Scheduler(Replay(["a", "a", "b", "a"]))
    with sync.use(makers(scheduler)):
        lock = sync.lock("L")

    def run(name: str) -> None:
        with lock:
            report.append(f"{name} in")
            scheduler.reach("inside")
            report.append(f"{name} out")

    for name in "ab":
        scheduler.start(scheduler.add(name, name, actor=True), partial(run, name))
    scheduler.race()
    scheduler.end()
    assert report == ["a in", "a out", "b in", "b out"]


def test_two_locks_in_opposite_orders_are_a_deadlock_under_one_schedule() -> None:
    scheduler = Scheduler(Replay(["a", "b", "a", "b"]))
    with sync.use(makers(scheduler)):
        one, two = sync.lock("one"), sync.lock("two")

    def run(first: threading.Lock, second: threading.Lock) -> None:
        with first, second:
            pass

    scheduler.start(scheduler.add("a", "a", actor=True), lambda: run(one, two))
    scheduler.start(scheduler.add("b", "b", actor=True), lambda: run(two, one))
    scheduler.race()
    assert [task.point for task in scheduler.tasks if task.is_actor and not task.done] == ["two taken", "one taken"]
    scheduler.end()


def test_time_passes_only_when_nobody_can_go_on() -> None:
    report: list[object] = []

    def sleeps(scheduler: Scheduler) -> None:
        report.append(scheduler.reach("sleeps", lambda: False, 3600.0))

    def works(scheduler: Scheduler) -> None:
        for _ in range(5):
            scheduler.reach("works")
        report.append("worked")

    scheduler = raced(sleeps, works)
    scheduler.end()
    assert report == ["worked", False]
    assert scheduler.now == 3600.0
    assert [step.fired for step in scheduler.steps][-1]


def test_a_killed_task_goes_no_further_and_gives_nothing_back() -> None:
    report: list[str] = []
    scheduler = Scheduler(Replay(["a", "a", "b"]))
    with sync.use(makers(scheduler)):
        lock = sync.lock("L")

    def victim() -> None:
        with lock:
            scheduler.reach("inside")
            report.append("after its death")

    scheduler.start(scheduler.add("a", "doomed", actor=True), victim)
    scheduler.start(scheduler.add("b", "other", actor=True), lambda: scheduler.kill("doomed"))
    scheduler.race()
    assert [step.killed for step in scheduler.steps if step.killed] == ["doomed"]
    assert report == []
    assert lock.locked()
    scheduler.end()
    assert report == []


def test_the_main_task_does_not_wait_for_what_nobody_does() -> None:
    scheduler = Scheduler(First())
    with pytest.raises(Stuck, match="a wait"):
        scheduler.reach("a wait", lambda: False)
    scheduler.end()


def test_names_do_not_depend_on_who_was_first() -> None:
    def makes(scheduler: Scheduler) -> None:
        scheduler.reach("point")
        scheduler.add("child", "p")

    names = []
    for schedule in (["a", "b", "a", "b"], ["a", "b", "b", "a"]):
        scheduler = raced(makes, makes, schedule=schedule)
        names.append(sorted(task.name for task in scheduler.tasks))
        scheduler.end()
    assert names[0] == names[1]


def test_ctrl_c_while_a_task_runs_is_the_main_tasks() -> None:
    """The signal is Python's to deliver, wherever its thread is just then."""
    unwound: list[str] = []

    def waits(scheduler: Scheduler) -> None:
        try:
            scheduler.reach("point", lambda: False)
        finally:
            unwound.append("who waited")

    def interrupted(scheduler: Scheduler) -> None:
        scheduler.reach("point")
        raise KeyboardInterrupt

    scheduler = Scheduler(First())
    for name, body in (("a", waits), ("b", interrupted)):
        scheduler.start(scheduler.add(name, name, actor=True), partial(body, scheduler))
    with pytest.raises(KeyboardInterrupt):
        scheduler.race()
    assert unwound == []
    scheduler.end()
    assert unwound == ["who waited"]
    assert scheduler.failures == []


def test_each_task_is_a_thread_of_its_own_to_the_code_that_runs() -> None:
    seen: list[int] = []
    scheduler = Scheduler(First())
    with sync.use(makers(scheduler)):
        for name in "ab":
            scheduler.start(scheduler.add(name, name, actor=True), lambda: seen.append(sync.current()))
        scheduler.race()
        scheduler.end()
        seen.append(sync.current())
    assert len(set(seen)) == 3
