"""From a schedule that fails to the shortest one that still does.

Shorter is: fewer switches from one task to another, then fewer steps. A schedule is tried by taking something out and
running it; what cannot be followed any more is made up by the default, and what really ran is the new schedule.
"""

from itertools import pairwise

from .explore import Replay
from .runner import Result, run_once
from .scenario import Scenario

MAX_TRIES = 400


def switches(schedule: list[str]) -> int:
    return sum(one != other for one, other in pairwise(schedule))


def rule_of(result: Result) -> str:
    """What makes two failures the same: the words before the first colon (a rule, "deadlock", an actor)."""
    return result.failures[0].partition(":")[0]


def minimise(scenario: Scenario, failed: Result, tries: int = MAX_TRIES) -> Result:
    best = failed
    left = tries

    def attempt(schedule: list[str]) -> bool:
        nonlocal best, left
        left -= 1
        result = run_once(scenario, Replay(schedule))
        if not result.failures or rule_of(result) != rule_of(failed) or _size(result) >= _size(best):
            return False
        best = result
        return True

    low, high = 0, len(best.schedule)
    while low < high and left > 0:  # the shortest prefix that a default end still makes fail
        middle = (low + high) // 2
        if attempt(best.schedule[:middle]):
            high = min(middle, len(best.schedule))
        else:
            low = middle + 1
    again = True
    while again and left > 0:
        again = False
        for shorter in _without(best.schedule):
            if left <= 0:
                break
            if attempt(shorter):
                again = True
                break
    return best


def _size(result: Result) -> tuple[int, int]:
    return switches(result.schedule), len(result.schedule)


def _without(schedule: list[str]) -> list[list[str]]:
    """Each turn of a task (its steps in a row) moved behind its next turn, put before it, or left out."""
    turns: list[list[str]] = []
    for name in schedule:
        if turns and turns[-1][0] == name:
            turns[-1].append(name)
        else:
            turns.append([name])
    shorter = []
    for index, turn in enumerate(turns):
        rest = turns[:index] + turns[index + 1 :]
        later = next((k for k in range(index, len(rest)) if rest[k][0] == turn[0]), None)
        earlier = next((k for k in range(index - 1, -1, -1) if rest[k][0] == turn[0]), None)
        if later is not None:
            shorter.append([*rest[:later], turn, *rest[later:]])
        if earlier is not None:
            shorter.append([*rest[: earlier + 1], turn, *rest[earlier + 1 :]])
        shorter.append(rest)
        shorter.append(turns[:index])
    return [[name for turn in candidate for name in turn] for candidate in shorter]
