"""Which schedules are run: seeded random ones, those with few preemptions, or one again. All: see exhaustive.py.

With a *bound* it runs every schedule with at most so many preemptions (a task is left at a point where it could have
gone on), and leaves out prefixes that have the order of dependent steps, the running task and the preemptions left
of one that was run before.
"""

import random
from collections.abc import Iterator

from .order import Order
from .runner import Result, run_once
from .scenario import Scenario
from .scheduler import Step, Task


def default(enabled: list[Task], current: Task | None) -> Task:
    """Whoever runs goes on; else the first that can."""
    return current if current is not None and current in enabled else enabled[0]


class Random:
    """Even numbers choose again at each point; odd ones change the order of the tasks' priorities a few times (PCT:
    Burckhardt et al., 2010), which finds what needs few but rare switches."""

    def __init__(self, seed: int, number: int) -> None:
        self._random = random.Random(f"{seed}:{number}")
        self._uniform = number % 2 == 0
        self._priorities: dict[str, float] = {}
        self._changes = {self._random.randrange(1, 120) for _ in range(self._random.randrange(1, 4))}

    def choose(self, steps: list[Step], enabled: list[Task], current: Task | None) -> Task:
        if self._uniform:
            return self._random.choice(enabled)
        for task in enabled:
            self._priorities.setdefault(task.name, self._random.random())
        if current is not None and len(steps) in self._changes:
            self._priorities[current.name] = -self._random.random()
        return max(enabled, key=lambda task: self._priorities[task.name])


class Replay:
    """A recorded schedule. Where it cannot be followed the default is taken."""

    def __init__(self, schedule: list[str]) -> None:
        self._schedule = schedule
        self._diverged = ""

    def diverged(self, schedule: list[str]) -> str:
        """Why a run was another one than that of the record, "" when it was the same."""
        if self._diverged or schedule == self._schedule:
            return self._diverged
        at = min(len(schedule), len(self._schedule))
        return f"the run {'ends' if at < len(self._schedule) else 'goes on'} after step {at}"

    def choose(self, steps: list[Step], enabled: list[Task], current: Task | None) -> Task:
        at = len(steps)
        if at < len(self._schedule):
            for task in enabled:
                if task.name == self._schedule[at]:
                    return task
            if not self._diverged:
                self._diverged = f"at step {at + 1} {self._schedule[at]} cannot go on"
        return default(enabled, current)


def seeded(scenario: Scenario, seed: int, numbers: int | range) -> Iterator[Result]:
    """numbers: so many, or those."""
    for number in range(numbers) if isinstance(numbers, int) else numbers:
        yield run_once(scenario, Random(seed, number))


# -- with a bound


class _Recorder:
    """Follows a prefix, then the default; reports of each later state where else it could go."""

    def __init__(self, prefix: list[str]) -> None:
        self._prefix = prefix
        self.states: list[tuple[list[str], str | None]] = []

    def choose(self, steps: list[Step], enabled: list[Task], current: Task | None) -> Task:
        names = [task.name for task in enabled]
        at = len(steps)
        self.states.append((names, current.name if current is not None and current.name in names else None))
        if at < len(self._prefix):
            return enabled[names.index(self._prefix[at])]
        return default(enabled, current)


def bounded(scenario: Scenario, bound: int) -> Iterator[Result]:
    """Every schedule with at most so many preemptions, up to equal prefixes."""
    waiting: list[tuple[list[str], int]] = [([], bound)]
    seen: set[tuple[int, str | None, str, int]] = set()
    while waiting:
        prefix, left = waiting.pop()
        recorder = _Recorder(prefix)
        result = run_once(scenario, recorder)
        yield result
        schedule = result.schedule
        order = Order()
        for at, step in enumerate(result.steps):
            if at >= len(prefix):
                names, current = recorder.states[at]
                for name in names:
                    if name == schedule[at]:
                        continue
                    cost = 1 if current is not None else 0
                    mark = (order.state, current, name, left - cost)
                    if left >= cost and mark not in seen:
                        seen.add(mark)
                        waiting.append(([*schedule[:at], name], left - cost))
            order.add(at, step)
