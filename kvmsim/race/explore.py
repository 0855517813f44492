"""Which schedules are run: seeded random ones, all of them up to equivalence, or one again.

*Exhaustive* is dynamic partial-order reduction (Flanagan and Godefroid, 2005) with sleep sets (Godefroid, 1996): of
the schedules that differ only in the order of independent steps (accesses.py) one is run. After each run every pair
of steps that could have gone the other way round, and that nothing else orders, is turned in a later run.

With a *bound* it runs every schedule with at most so many preemptions (a task is left at a point where it could have
gone on), and leaves out prefixes that have the order of dependent steps, the running task and the preemptions left
of one that was run before.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from .accesses import Access, Key, Kind, can_race, commute, independent
from .runner import Result, run_once
from .scenario import Scenario
from .scheduler import Chooser, Step, Task

Accesses = dict[Access, None]
_MASK = (1 << 64) - 1


def default(enabled: list[Task], current: Task | None) -> Task:
    """Whoever runs goes on; else the first that can."""
    return current if current is not None and current in enabled else enabled[0]


class Random:
    """Even numbers choose at each point anew; odd ones change the order of the tasks' priorities a few times (PCT:
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
    """A recorded schedule. Where it can not be followed the default is taken, or with `strict` the run is wrong."""

    def __init__(self, schedule: list[str], *, strict: bool = False) -> None:
        self._schedule = schedule
        self._strict = strict
        self.diverged = ""

    def choose(self, steps: list[Step], enabled: list[Task], current: Task | None) -> Task:
        at = len(steps)
        if at < len(self._schedule):
            for task in enabled:
                if task.name == self._schedule[at]:
                    return task
            if not self.diverged:
                self.diverged = f"at step {at + 1} {self._schedule[at]} can not go on"
        elif self._strict and not self.diverged:
            self.diverged = f"the run goes on after step {at}"
        return default(enabled, current)


def seeded(scenario: Scenario, seed: int, count: int) -> Iterator[Result]:
    for number in range(count):
        yield run_once(scenario, Random(seed, number))


# -- the order of dependent steps


Clock = dict[str, int]


class Order:
    """Happens-before of one run: for each step what came before it in every equivalent schedule."""

    def __init__(self) -> None:
        self._tasks: dict[str, Clock] = {}
        self._last: dict[Key, dict[Kind, Clock]] = {}
        self._sent: dict[Key, list[tuple[int, Clock]]] = {}
        self._cleared: dict[Key, int] = {}
        self._received: dict[Key, int] = {}
        self._racing: dict[Key, list[tuple[int, str, Kind]]] = {}
        self._numbers: list[int] = []
        """Of each step: the how many-th of its task it is."""
        self._counts: dict[str, int] = {}
        self.state = 0
        """The same after all schedules of the same steps in the same order of the dependent ones."""

    def races_with(self, name: str, accesses: Accesses) -> set[int]:
        """Steps that are dependent, could have come after this one, and are not ordered before its task."""
        clock = self._tasks.get(name, {})
        found = set()
        for key, kind in accesses:
            for index, other, other_kind in reversed(self._racing.get(key, [])):
                if other == name:
                    continue
                if can_race(other_kind, kind):
                    if clock.get(other, -1) < index:
                        found.add(index)
                    if other_kind is Kind.TAKE:
                        break  # all that took it before are ordered before this one
        return found

    def _join_sender(self, clock: Clock, key: Key, began: int) -> None:
        """Before what is received is what was sent: that packet, or the first notice since the wait began."""
        sent = self._sent.get(key, [])
        if key[0] == "queue":
            number = self._received.get(key, 0)
            if number < len(sent):
                _join(clock, sent[number][1])
            return
        since = self._cleared.get(key, began)
        for at, other in sent:
            if at > since:
                _join(clock, other)
                return
        if sent and key[0] != "event":
            _join(clock, sent[0][1])

    def add(self, index: int, step: Step) -> Clock:
        """The step's clock: for each task, its last step that is before this one (its own: itself)."""
        name = step.task.name
        clock = dict(self._tasks.get(name, {}))
        if step.fired:
            for other in self._tasks.values():
                _join(clock, other)
        for key, kind in step.accesses:
            for other_kind, other in self._last.get(key, {}).items():
                if not commute(other_kind, kind):
                    _join(clock, other)
            if kind is Kind.RECEIVE:
                self._join_sender(clock, key, clock.get(name, -1))
        clock[name] = index
        for key, kind in step.accesses:
            if kind is Kind.SEND:
                self._sent.setdefault(key, []).append((index, clock))
            elif kind is Kind.SHUT:
                self._cleared[key] = index
            elif kind is Kind.RECEIVE:
                self._received[key] = self._received.get(key, 0) + 1
            kinds = self._last.setdefault(key, {})
            merged = dict(kinds.get(kind, {}))
            _join(merged, clock)
            kinds[kind] = merged
            if kind not in (Kind.RELEASE, Kind.UNLOOK):
                self._racing.setdefault(key, []).append((index, name, kind))
        self._tasks[name] = clock
        number = self._counts[name] = self._counts.get(name, 0) + 1
        self._numbers.append(number)
        past = frozenset((task, self._numbers[at]) for task, at in clock.items())
        self.state = (self.state + hash((name, step.name, past))) & _MASK
        return clock


def class_of(steps: list[Step]) -> int:
    """The same number for equivalent schedules (of one process: strings hash otherwise in the next)."""
    order = Order()
    for index, step in enumerate(steps):
        order.add(index, step)
    return order.state


def _join(clock: Clock, other: Clock) -> None:
    for name, index in other.items():
        if clock.get(name, -1) < index:
            clock[name] = index


# -- exhaustive


@dataclass(slots=True)
class _Node:
    """A state on the path that is explored."""

    enabled: list[str]
    asleep: dict[str, Accesses]
    """Tasks whose next step was explored from an equivalent state."""
    chosen: str
    done: dict[str, Accesses] = field(default_factory=dict)
    todo: set[str] = field(default_factory=set)


class _Guide:
    """Follows the path, and beyond it the default among those that are not asleep."""

    def __init__(self, path: list[_Node]) -> None:
        self._path = path

    def choose(self, steps: list[Step], enabled: list[Task], current: Task | None) -> Task | None:
        at = len(steps)
        path = self._path
        by_name = {task.name: task for task in enabled}
        if at < len(path):
            assert path[at].chosen in by_name, f"step {at}: {path[at].chosen} of {list(by_name)}: not deterministic"
            return by_name[path[at].chosen]
        asleep: dict[str, Accesses] = {}
        if at:
            before, step = path[at - 1], steps[at - 1]
            if not step.fired:
                for name, accesses in (before.asleep | before.done).items():
                    if name != step.task.name and independent(accesses, step.accesses):
                        asleep[name] = accesses
        awake = [task for task in enabled if task.name not in asleep]
        if not awake:
            return None
        chosen = default(awake, current)
        path.append(_Node(list(by_name), asleep, chosen.name))
        return chosen


def exhaustive(scenario: Scenario, run: Callable[[Scenario, Chooser], Result] = run_once) -> Iterator[Result]:
    """Every order of dependent steps. Results that are `cut_short` were seen before, under another order."""
    path: list[_Node] = []
    while True:
        result = run(scenario, _Guide(path))
        yield result
        steps = list(result.steps)
        _turn(path, result)
        del path[len(steps) :]
        while path:
            node = path[-1]
            node.done[node.chosen] = steps[len(path) - 1].accesses if len(path) <= len(steps) else {}
            node.todo.discard(node.chosen)
            rest = [name for name in node.enabled if name in node.todo and name not in node.asleep | node.done]
            if rest:
                node.chosen = rest[0]
                break
            path.pop()
            del steps[len(path) :]
        if not path:
            return


def _turn(path: list[_Node], result: Result) -> None:
    """For each race of the run: the other order is to be explored, from the state before the earlier step."""
    order = Order()
    clocks: list[Clock] = []
    steps = result.steps

    def turn(index: int, name: str, upto: int) -> None:
        node = path[index]
        first = {name} & set(node.enabled)
        if not first:
            before = order._tasks.get(name, {})
            first = {
                steps[k].task.name
                for k in range(index + 1, upto)
                if steps[k].task.name in node.enabled and before.get(steps[k].task.name, -1) >= k
            }
        if first:
            if not first & (node.todo | node.done.keys() | {node.chosen}):
                node.todo.add(min(first))
        else:
            node.todo |= set(node.enabled)

    for index, step in enumerate(steps):
        for earlier in order.races_with(step.task.name, step.accesses):
            turn(earlier, step.task.name, index)
        clocks.append(order.add(index, step))
    for name, access in result.pending:
        process = next((s.task.process for s in reversed(steps) if s.task.name == name), None)
        touched: Accesses = {access: None}
        if process is not None:
            touched[("process", process), Kind.READ] = None
        for earlier in order.races_with(name, touched):
            turn(earlier, name, len(steps))


# -- with a bound


class _Recorder:
    """Follows a prefix, then the default; tells of each later state where else it could go."""

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
