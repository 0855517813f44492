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
    for result in explore(scenario, Part([], last=killer)):
        yield result
        if killer and not result.cut_short:
            for class_, schedule in deaths.kill_prefixes(result.steps):
                kill_prefixes.setdefault(class_, schedule)
    for schedule in kill_prefixes.values():
        yield from explore(scenario, Part(schedule))


@dataclass(slots=True)
class Node:
    """A state on the path that is explored."""

    enabled: list[str]
    asleep: dict[str, Accesses]
    """Tasks whose next step was explored from an equivalent state."""
    plan: list[str]
    """Tasks to go on with from here, in this order: it only grows, at its end."""
    at: int = 0
    """Which of them is being explored."""
    done: dict[str, Accesses] = field(default_factory=dict)
    accesses: Accesses | None = None
    """Of the step that is being explored; None until it was taken."""

    @property
    def chosen(self) -> str:
        return self.plan[self.at]

    def turn(self, initial: frozenset[str]) -> None:
        """One of these tasks is to be explored from here, too."""
        fit = initial.intersection(self.enabled)
        if not fit:
            self.plan += [name for name in self.enabled if name not in self.plan]
        elif fit.isdisjoint(self.plan):
            self.plan.append(min(fit))

    def following(self) -> Iterator[int]:
        """Of the plan, what is to be explored after the chosen one."""
        return (at for at in range(self.at + 1, len(self.plan)) if self.plan[at] not in self.asleep)

    def advance(self) -> bool:
        """The chosen task is explored: on to the next, if there is one."""
        assert self.accesses is not None
        self.done[self.chosen] = self.accesses
        at = next(self.following(), None)
        if at is None:
            return False
        self.at, self.accesses = at, None
        return True


@dataclass(slots=True)
class Part:
    """A part of the search, and how far it is: what can come after `beginning`. It can be explored in any process."""

    beginning: list[str]
    path: list[Node] = field(default_factory=list)
    last: str = ""
    """This task goes on when nobody else can."""
    borrowed: int = 0
    """So many nodes of the path, 0 or 1, have other parts too, which are somebody else's."""
    turned: dict[tuple[int, frozenset[str]], None] = field(default_factory=dict)
    """What is to be explored, besides, from states that are not of this part: after how many steps, and which tasks."""
    then: list[list[str]] = field(default_factory=list)
    """Beginnings of the parts that come after it."""
    is_over: bool = False


def explore(scenario: Scenario, part: Part) -> Iterator[Result]:
    """The part is up to date with each result: whoever ends here can go on later."""
    path = part.path
    while not part.is_over:
        first = len(part.beginning)
        result = run_once(scenario, _Guide(part.beginning, path, part.last))
        steps = result.steps[: first + len(path)]
        del path[len(steps) - first :]
        for node, step in zip(path, steps[first:], strict=True):
            node.accesses = step.accesses
        _turn(part, steps, [(name, access) for name, access in result.pending if name != part.last])
        while len(path) > part.borrowed and not path[-1].advance():
            path.pop()
        if len(path) == part.borrowed:
            if part.then:
                part.beginning = part.then.pop(0)
            else:
                part.is_over = True
        yield result


class _Guide:
    """Follows `beginning`, then the path, and beyond it the default among those that are not asleep. Once nobody but
    `last` could go on, what comes is no more part of the path."""

    def __init__(self, beginning: list[str], path: list[Node], last: str) -> None:
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
        path.append(Node(list(by_name), asleep, [chosen.name]))
        return chosen


def _named(name: str, by_name: dict[str, Task], at: int) -> Task:
    assert name in by_name, f"step {at}: {name} of {list(by_name)}: not deterministic"
    return by_name[name]


def _still_asleep(before: Node, step: Step) -> dict[str, Accesses]:
    if step.fired:
        return {}
    return {
        name: accesses
        for name, accesses in (before.asleep | before.done).items()
        if name != step.task.name and independent(accesses, step.accesses)
    }


def _turn(part: Part, steps: list[Step], pending: list[tuple[str, Access]]) -> None:
    """For each race of the run: the other order is to be explored, from the state before the earlier step."""
    order = Order()
    clocks: list[Clock] = []
    own = len(part.beginning) + part.borrowed

    def turn(earlier: int, name: str, after: Clock) -> None:
        """Some task that can begin what is not after the earlier step, and then takes the later one's task there."""
        moved = [k for k in range(earlier + 1, len(clocks)) if not _is_after(clocks[k], steps, earlier)]
        initial = {steps[k].task.name for k in moved if not any(_is_after(clocks[k], steps, m) for m in moved if m < k)}
        if not any(_is_after(after, steps, m) for m in moved):
            initial.add(name)
        if earlier >= own:
            part.path[earlier - len(part.beginning)].turn(frozenset(initial))
        elif part.borrowed:
            part.turned[earlier, frozenset(initial)] = None

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
