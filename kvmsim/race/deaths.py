"""Where a process can die, as far as those who live on can tell.

A kill commutes with all that its process does unseen. So what makes a difference is which of the steps that do not
commute with it came before: a *beginning* is some of them, with all that had to happen before those, and then the
kill. Everything else can as well come after it, if it comes at all.
"""

from collections.abc import Iterator

from .accesses import independent
from .order import Order, class_of
from .scenario import Scenario
from .scheduler import Step


def killer(scenario: Scenario) -> str:
    """The actor whose kill is the only thing that happens to any process in the scenario; "" when there is none."""
    outside = [actor for actor in scenario.actors if actor.role == "outside"]
    if len(outside) == 1 and [command.verb for command in outside[0].commands] == ["kill"]:
        return outside[0].name
    return ""


def beginnings(steps: list[Step]) -> Iterator[tuple[int, list[str]]]:
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
    for past in _unions(pasts):
        chosen = [step for index, step in enumerate(others) if past >> index & 1] + kills
        yield class_of(chosen), [step.task.name for step in chosen]


def _unions(sets: list[int]) -> set[int]:
    """Sets as bits: the union of each choice of them, each once."""
    found = {0}
    for one in sets:
        found |= {one | other for other in found}
    return found
