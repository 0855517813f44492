"""Where a process can die, as far as the survivors can see.

A kill commutes with all that its process does unseen. So what makes a difference is which of the steps that do not
commute with it came before: a *beginning* is some of them, with all that had to happen before those, and then the
kill. Everything else can as well come after it, if it comes at all.
"""

from collections.abc import Iterator

from .accesses import Kind, independent
from .order import MASK, Clock, Order, as_seen, join, part_of
from .scenario import Scenario
from .scheduler import Step


def killer(scenario: Scenario) -> str:
    """The actor whose kill is the only thing that happens to any process in the scenario; "" when there is none."""
    outside = [actor for actor in scenario.actors if actor.role == "outside"]
    if len(outside) == 1 and [command.verb for command in outside[0].commands] == ["kill"]:
        return outside[0].name
    return ""


def kill_prefixes(steps: list[Step]) -> Iterator[tuple[int, list[str]]]:
    """From a run in which the kill comes last: each schedule of some of its steps that ends with the kill, and the
    number of its class."""
    at = next((index for index, step in enumerate(steps) if step.killed), None)
    if at is None:
        return  # it did not come to its end
    kill = steps[at]
    others = [step for step in steps[:at] if step.task is not kill.task]
    kills = [step for step in steps[: at + 1] if step.task is kill.task]
    order = Order()
    pasts = []
    for index, step in enumerate(others):
        clock = order.add(index, step)
        if not independent(step.accesses, kill.accesses):
            pasts.append(sum(1 << k for k in range(index + 1) if clock.get(others[k].task.name, -1) >= k))
    classes = _Classes(others, kills, kill.killed)
    names = [step.task.name for step in others]
    for past in _unions(pasts):
        schedule = [name for index, name in enumerate(names) if past >> index & 1]
        yield classes.of(past), schedule + [step.task.name for step in kills]


class _Classes:
    """`order.class_of` of kill_prefixes of one run. What a step adds to it depends on what came before, and a beginning
    has all of that; so it is the same in each, but for what the killer does last."""

    def __init__(self, others: list[Step], kills: list[Step], dead: str) -> None:
        assert all(not step.fired and Kind.RECEIVE not in {kind for _, kind in step.accesses} for step in kills)
        self._order = Order()
        self._parts = [0] * len(others)
        self._clocks: dict[int, Clock] = {}
        seen: dict[int, Step] = {}
        for index, step in enumerate(others):
            if (shown := as_seen(step, (dead,))) is not None:
                before = self._order.state
                self._clocks[index] = self._order.add(len(seen), shown)
                self._parts[index] = self._order.state - before
                seen[index] = shown
        self._kills = [
            (kill, [index for index, step in seen.items() if not independent(step.accesses, kill.accesses)])
            for kill in kills
        ]

    def of(self, past: int) -> int:
        state = sum(part for index, part in enumerate(self._parts) if past >> index & 1)
        clock: Clock = {}
        for number, (kill, dependent) in enumerate(self._kills, 1):
            for index in dependent:
                if past >> index & 1:
                    join(clock, self._clocks[index])
            state += part_of(kill, [*self._order.numbered(clock), (kill.task.name, number)])
        return state & MASK


def _unions(sets: list[int]) -> set[int]:
    """Sets as bits: the union of each choice of them, each once."""
    found = {0}
    for one in sets:
        found |= {one | other for other in found}
    return found
