"""P8: an exploration by two worker processes beside the same by one process. It needs two idle cores."""

import itertools
import os
from statistics import median
from time import perf_counter

from kvmsim.instruments.race import exhaustive, order, spread, workers
from kvmsim.instruments.race.scenario import load

from .figure import Figure, Progress

_SCENARIO = "fault-x-bind"
_WORKERS = 2


def measure(progress: Progress, *, rounds: int = 5, runs: int = 5000) -> Figure:
    """In turns, after a round that is not counted, in which the workers start and everything is imported."""
    scenario = load(_SCENARIO)
    one_s: list[float] = []
    two_s: list[float] = []
    explored = 0
    with workers.of_this_machine(_WORKERS) as pool:
        for number in range(rounds + 1):
            progress.round(number + 1, rounds + 1)
            began = perf_counter()
            one = [
                None if result.cut_short else order.class_of(result.steps)
                for result in itertools.islice(exhaustive.every(scenario), runs)
            ]
            between = perf_counter()
            two = [class_ for class_, _ in itertools.islice(spread.every(scenario, pool), runs)]
            ended = perf_counter()
            if one != two:
                raise RuntimeError(f"{_SCENARIO}: two workers ran something else than one process")
            explored = len(one)
            if number:
                one_s.append(between - began)
                two_s.append(ended - between)
    return Figure(
        what=f"kvmsim race {_SCENARIO} --exhaustive by one process / by two workers, time",
        unit="x",
        target=1.8,
        at_most=False,
        value=median(one / two for one, two in zip(one_s, two_s, strict=True)),
        parts={"runs": explored, "one_s": median(one_s), "two_s": median(two_s), "cores": os.cpu_count() or 1},
    )
