"""An exploration by several processes: the same runs in the same order as by one.

What a run does depends on its schedule and on who is asleep, and on nothing else; so parts of the search
(exhaustive.Part) are explored anywhere, for a moment at a time, and again if that process dies. The order of the
search is kept here:

    front     the part that is next in that order: its runs are reported next
    levels    states on the path to it, outermost first, each with its plan
    branches  of a level: parts that come later, and are explored ahead, since their tasks are planned already

A plan only grows at its end, so what is explored ahead is always what one process would have come to. A run that
wants a state above its part turned is noted, and that plan grows when the part is the front.
"""

import threading
import time
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from . import deaths, exhaustive, explore, order
from .exhaustive import Node, Part
from .runner import Result, run_once
from .scenario import Scenario
from .workers import Pool, Work, WorkersLost

SLICE_S = 0.2
"""So long a worker explores a part before it reports."""
MAX_AHEAD = 100_000
"""Runs of one part that are kept until its turn comes."""
MAX_BRANCHES = 64
RANDOM_RUNS = 32
"""Random schedules in one piece of work."""
KILL_PREFIXES = 16
"""In one part: they are many, and little follows each."""

_CUT_SHORT = order.MASK
"""In the place of a class."""
_one_at_a_time = threading.Lock()
"""A worker of a cluster may have several threads."""

Ran = tuple[int | None, list[str] | None]
"""A run: its class, None when it was cut short; and its schedule if it failed."""


@dataclass(slots=True)
class Outcome:
    """Of a piece of work: its runs, in order; the last one if that failed; and the kill prefixes that they showed."""

    classes: "array[int]" = field(default_factory=lambda: array("Q"))
    failed: list[str] | None = None
    kill_prefixes: dict[int, list[str]] = field(default_factory=dict)

    def add(self, result: Result) -> bool:
        """Whether to go on."""
        if result.failures:
            self.failed = result.schedule
        else:
            self.classes.append(_CUT_SHORT if result.cut_short else min(order.class_of(result.steps), _CUT_SHORT - 1))
        return self.failed is None

    def runs(self) -> Iterator[Ran]:
        for class_ in self.classes:
            yield None if class_ == _CUT_SHORT else class_, None
        if self.failed is not None:
            yield None, self.failed


def explore_part(scenario: Scenario, part: Part, slice_s: float) -> tuple[Part, Outcome]:
    """What a worker does: for a moment, or until the part is over. The part that is left, and what was run."""
    with _one_at_a_time:
        outcome = Outcome()
        until = time.monotonic() + slice_s
        for result in exhaustive.explore(scenario, part):
            if not outcome.add(result):
                break
            if part.last and not result.cut_short:
                for class_, schedule in deaths.kill_prefixes(result.steps):
                    outcome.kill_prefixes.setdefault(class_, schedule)
            if time.monotonic() > until:
                break
        return part, outcome


def explore_random(scenario: Scenario, seed: int, numbers: range) -> Outcome:
    """What a worker does of the random schedules."""
    with _one_at_a_time:
        outcome = Outcome()
        for result in explore.seeded(scenario, seed, numbers):
            if not outcome.add(result):
                break
        return outcome


def again(scenario: Scenario, schedule: list[str]) -> Result:
    """A run that failed elsewhere, or was cut short, with its steps up to its end."""
    result = run_once(scenario, explore.Replay(schedule))
    if not result.failures:
        raise WorkersLost("a run that failed on a worker holds here: do all of them have the same code?")
    return result


Ahead = Callable[[list[str]], None]
"""Called with a schedule that failed ahead of its turn."""


def seeded(scenario: Scenario, pool: Pool, seed: int, count: int, ahead: Ahead = lambda _: None) -> Iterator[Ran]:
    """As explore.seeded(), until one fails."""
    pieces = (range(first, min(first + RANDOM_RUNS, count)) for first in range(0, count, RANDOM_RUNS))
    waiting: list[Work[Outcome]] = []
    while True:
        while len(waiting) <= 2 * pool.size and (numbers := next(pieces, None)) is not None:
            waiting.append(pool.begin(explore_random, scenario, seed, numbers))
        if not waiting:
            return
        outcome = waiting[0].result()
        if outcome is None:
            continue
        if outcome.failed is not None:
            ahead(outcome.failed)
        yield from outcome.runs()
        if outcome.failed is not None:
            return
        del waiting[0]


def every(scenario: Scenario, pool: Pool, slice_s: float = SLICE_S, ahead: Ahead = lambda _: None) -> Iterator[Ran]:
    """As exhaustive.every(), until one fails."""
    killer = deaths.killer(scenario)
    first = _Search(scenario, pool, slice_s, ahead, [Part([], last=killer)])
    yield from first.runs()
    if first.failed:
        return
    schedules = list(first.kill_prefixes.values())
    groups = (schedules[at : at + KILL_PREFIXES] for at in range(0, len(schedules), KILL_PREFIXES))
    yield from _Search(scenario, pool, slice_s, ahead, (Part(group[0], then=group[1:]) for group in groups)).runs()


@dataclass(slots=True)
class _Branch:
    """A part, and what was run of it until its turn comes."""

    part: Part
    ran: Outcome = field(default_factory=Outcome)
    work: Work[tuple[Part, Outcome]] | None = None

    @property
    def can_go_on(self) -> bool:
        is_over = self.part.is_over or self.ran.failed is not None
        return self.work is None and not is_over and len(self.ran.classes) < MAX_AHEAD

    def take(self) -> None:
        """A piece of work has ended, or its worker has died."""
        assert self.work is not None
        report = self.work.result()
        if report is None:
            return
        self.work = None
        self.part, ran = report
        self.ran.classes.extend(ran.classes)
        self.ran.failed = ran.failed
        for class_, schedule in ran.kill_prefixes.items():
            self.ran.kill_prefixes.setdefault(class_, schedule)


@dataclass(slots=True)
class _Level:
    """A state above the front, the schedule that leads there, and those branches of it that are explored ahead."""

    node: Node
    beginning: list[str]
    last: str
    branches: list[_Branch] = field(default_factory=list)

    def another(self) -> _Branch | None:
        """The next branch of the plan, None as long as there is none, or what comes before it has not begun."""
        node = self.node
        following = list(node.following())
        if len(self.branches) == len(following):
            return None
        asleep = node.asleep | node.done
        before = [(node.chosen, node.accesses)]
        before += [(branch.part.path[0].chosen, branch.part.path[0].accesses) for branch in self.branches]
        for name, accesses in before:
            if accesses is None:
                return None
            asleep[name] = accesses
        return self._branch(node.plan[following[len(self.branches)]], asleep)

    def chosen(self) -> _Branch:
        """The branch that is next in order, when the plan is at its task."""
        if not self.branches:
            self._branch(self.node.chosen, self.node.asleep | self.node.done)
        return self.branches.pop(0)

    def _branch(self, name: str, asleep: dict[str, order.Accesses]) -> _Branch:
        path = [Node(self.node.enabled, asleep, [name])]
        self.branches.append(_Branch(Part(self.beginning, path, self.last, borrowed=1)))
        return self.branches[-1]


class _Search:
    """The parts, one after the other."""

    def __init__(
        self,
        scenario: Scenario,
        pool: Pool,
        slice_s: float,
        ahead: Ahead,
        parts: Iterable[Part],
    ) -> None:
        self.kill_prefixes: dict[int, list[str]] = {}
        self.failed = False
        self._scenario = scenario
        self._pool = pool
        self._slice_s = slice_s
        self._ahead = ahead
        self._parts = iter(parts)
        self._roots: list[_Branch] = []
        """Those that come when all levels are explored, as far as they are begun."""
        self._levels: list[_Level] = []
        self._front: _Branch | None = None

    def runs(self) -> Iterator[Ran]:
        while (front := self._next()) is not None:
            self._work(front)
            ran, front.ran = front.ran, Outcome()
            for class_, schedule in ran.kill_prefixes.items():
                self.kill_prefixes.setdefault(class_, schedule)
            self._turn(front.part)
            yield from ran.runs()
            if ran.failed is not None:
                self.failed = True
                return

    def _next(self) -> _Branch | None:
        """The front; when it is over the branch that is next in order. None: all is explored."""
        front = self._front
        if front is not None and (front.work is not None or front.ran.classes or not front.part.is_over):
            return front
        while self._levels:
            if self._levels[-1].node.advance():
                self._front = self._levels[-1].chosen()
                return self._front
            self._levels.pop()
        if not self._roots and self._another_root() is None:
            return None
        self._front = self._roots.pop(0)
        return self._front

    def _another_root(self) -> _Branch | None:
        part = next(self._parts, None)
        if part is None:
            return None
        self._roots.append(_Branch(part))
        return self._roots[-1]

    def _turn(self, part: Part) -> None:
        """The part is the front: what it wants of the states above it is planned."""
        if not self._levels:
            return
        self._levels[-1].node.accesses = part.path[0].accesses
        first = len(self._levels[0].beginning)
        for earlier, initial in part.turned:
            if earlier >= first:
                self._levels[earlier - first].node.turn(initial)
        part.turned = {}

    # -- the workers

    def _work(self, front: _Branch) -> None:
        """Keeps them busy until there is something of the front to report, or it is over."""
        while not (front.ran.classes or front.ran.failed) or front.work is not None:
            busy = self._busy()
            while len(busy) < self._pool.size and (branch := self._another(front)) is not None:
                self._begin(branch)
                busy.append(branch)
            if front.work is None:
                if front.part.is_over:
                    return
                self._begin(front)
                busy.append(front)
            self._pool.wait(branch.work.future for branch in busy if branch.work is not None)
            for branch in busy:
                if branch.work is not None and branch.work.future.done():
                    branch.take()
                    if branch.ran.failed is not None:
                        self._ahead(branch.ran.failed)

    def _busy(self) -> list[_Branch]:
        return [branch for branch in [self._front, *self._branches()] if branch is not None and branch.work is not None]

    def _branches(self) -> Iterator[_Branch]:
        """Those after the front, in order."""
        for level in reversed(self._levels):
            yield from level.branches
        yield from self._roots

    def _begin(self, branch: _Branch) -> None:
        branch.work = self._pool.begin(explore_part, self._scenario, branch.part, self._slice_s)

    def _another(self, front: _Branch) -> _Branch | None:
        """A branch that a worker can go on with: the nearest."""
        branches = list(self._branches())
        for branch in branches:
            if branch.can_go_on:
                return branch
        if len(branches) >= MAX_BRANCHES:
            return None
        while True:
            for level in reversed(self._levels):
                if (planned := level.another()) is not None:
                    return planned
            if front.work is not None or not self._split(front):
                return self._another_root()

    def _split(self, front: _Branch) -> bool:
        """The outermost state of the front's path with more than one branch becomes a level, as does all above it."""
        part = front.part
        path = part.path
        at = next(
            (at for at in range(part.borrowed, len(path) - 1) if next(path[at].following(), None) is not None), None
        )
        if at is None:
            return False
        schedule = part.beginning + [node.chosen for node in path[:at]]
        for index in range(part.borrowed, at + 1):
            self._levels.append(_Level(path[index], schedule[: len(part.beginning) + index], part.last))
        node = path[at]
        copy = Node(node.enabled, node.asleep | node.done, [node.chosen], accesses=node.accesses)
        if part.then:
            self._roots.insert(0, _Branch(Part(part.then[0], then=part.then[1:])))
        front.part = Part(schedule, [copy, *path[at + 1 :]], part.last, borrowed=1)
        return True
