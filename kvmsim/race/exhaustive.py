"""Every schedule of a scenario, up to equivalence.

Dynamic partial-order reduction (Flanagan and Godefroid, 2005) with sleep sets (Godefroid, 1996): of the schedules
that differ only in the order of independent steps (accesses.py) one is run. After each run every pair of steps that
could have gone the other way round, and that nothing else orders, is turned in a later run.

A scenario with one kill is explored in two parts, since nobody can see what a process did before it died but by what
it sent, and where it wrote. First all schedules in which the kill comes last. They begin in every way in which a
schedule can begin; of the kill prefixes (deaths.py) that the survivors cannot distinguish one is taken, the process
is killed there, and all is run that can come of it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from . import deaths
from .accesses import Access, Kind, independent
from .explore import default
from .order import Accesses, Clock, Order
from .runner import Result, run_once
from .scenario import Scenario
from .scheduler import Step, Task


def every(scenario: Scenario) -> Iterator[Result]:
    """Every order of dependent steps. Results that are `cut_short` were seen before, under another order."""
    killer = deaths.killer(scenario)
    kill_prefixes: dict[int, list[str]] = {}
    for result in _search(scenario, [], killer):
        yield result
        if killer and not result.cut_short:
            for class_, schedule in deaths.kill_prefixes(result.steps):
                kill_prefixes.setdefault(class_, schedule)
    for schedule in kill_prefixes.values():
        yield from _search(scenario, schedule, "")


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
    """Follows `beginning`, then the path, and beyond it the default among those that are not asleep. Once nobody but
    `last` could go on, what comes is no more part of the path."""

    def __init__(self, beginning: list[str], path: list[_Node], last: str) -> None:
        self._beginning = beginning
        self._path = path
        self._last = last
        self._is_over = False

    def choose(self, steps: list[Step], enabled: list[Task], current: Task | None) -> Task | None:
        by_name = {task.name: task for task in enabled}
        at = len(steps)
        if at < len(self._beginning):
            return _named(self._beginning[at], by_name, at)
        at -= len(self._beginning)
        path = self._path
        if at < len(path):
            return _named(path[at].chosen, by_name, len(steps))
        asleep = _still_asleep(path[at - 1], steps[-1]) if 0 < at == len(path) else {}
        by_name.pop(self._last, None)
        if self._is_over or not by_name:
            self._is_over = True
            return default(enabled, current)
        awake = [task for name, task in by_name.items() if name not in asleep]
        if not awake:
            return None
        chosen = default(awake, current)
        path.append(_Node(list(by_name), asleep, chosen.name))
        return chosen


def _named(name: str, by_name: dict[str, Task], at: int) -> Task:
    assert name in by_name, f"step {at}: {name} of {list(by_name)}: not deterministic"
    return by_name[name]


def _still_asleep(before: _Node, step: Step) -> dict[str, Accesses]:
    if step.fired:
        return {}
    return {
        name: accesses
        for name, accesses in (before.asleep | before.done).items()
        if name != step.task.name and independent(accesses, step.accesses)
    }


def _search(scenario: Scenario, beginning: list[str], last: str) -> Iterator[Result]:
    """What can come after the beginning. The task `last` goes on when nobody else can."""
    path: list[_Node] = []
    while True:
        result = run_once(scenario, _Guide(beginning, path, last))
        yield result
        first = len(beginning)
        steps = result.steps[: first + len(path)]
        del path[len(steps) - first :]
        _turn(path, first, steps, [(name, access) for name, access in result.pending if name != last])
        while path:
            node = path[-1]
            node.done[node.chosen] = steps[first + len(path) - 1].accesses
            node.todo.discard(node.chosen)
            rest = [name for name in node.enabled if name in node.todo and name not in node.asleep | node.done]
            if rest:
                node.chosen = rest[0]
                break
            path.pop()
        if not path:
            return


def _turn(path: list[_Node], first: int, steps: list[Step], pending: list[tuple[str, Access]]) -> None:
    """For each race of the run: the other order is to be explored, from the state before the earlier step."""
    order = Order()
    clocks: list[Clock] = []

    def turn(earlier: int, name: str, after: Clock) -> None:
        """Some task that can begin what is not after the earlier step, and then takes the later one's task there."""
        if earlier < first:
            return
        node = path[earlier - first]
        moved = [k for k in range(earlier + 1, len(clocks)) if not _is_after(clocks[k], steps, earlier)]
        initial = {steps[k].task.name for k in moved if not any(_is_after(clocks[k], steps, m) for m in moved if m < k)}
        if not any(_is_after(after, steps, m) for m in moved):
            initial.add(name)
        initial &= set(node.enabled)
        if not initial:
            node.todo |= set(node.enabled)
        elif not initial & (node.todo | node.done.keys() | {node.chosen}):
            node.todo.add(min(initial))

    for index, step in enumerate(steps):
        races = order.races_with(step.task.name, step.accesses)
        clock = order.add(index, step)
        for earlier in races:
            turn(earlier, step.task.name, clock)
        clocks.append(clock)
    for name, access in pending:
        process = next((s.task.process for s in reversed(steps) if s.task.name == name), None)
        touched: Accesses = {access: None}
        if process is not None:
            touched[("process", process), Kind.READ] = None
        for earlier in order.races_with(name, touched):
            turn(earlier, name, order.clock_of(name))


def _is_after(clock: Clock, steps: list[Step], index: int) -> bool:
    return clock.get(steps[index].task.name, -1) >= index
