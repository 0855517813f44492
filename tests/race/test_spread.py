"""Several processes run what one runs, in the same order; also when workers die, and where the search fails."""

import contextlib
import itertools
import os
import signal
from collections.abc import Iterator

import pytest

from kvmsim.instruments.race import exhaustive, explore, order, spread, workers
from kvmsim.instruments.race.runner import Result
from kvmsim.instruments.race.scenario import load, parse
from tests.race.mutants import MUTANTS, planted
from tests.race.test_explore import SMALL

BOUND = next(mutant for mutant in MUTANTS if mutant.name == "bindings changed between BEGIN and END: unbind")
"""Caught, but not at once."""
LIMIT = 60
ONE_RUN_S = 0.0
"""A worker reports after each run, so that every part is split."""


@pytest.fixture(scope="module")
def pool() -> Iterator[workers.Pool]:
    with workers.of_this_machine(2) as pool:
        yield pool


def alone(results: Iterator[Result]) -> list[spread.Ran]:
    runs: list[spread.Ran] = []
    for result in results:
        if result.failures:
            return [*runs, (None, result.schedule)]
        runs.append((None if result.cut_short else order.class_of(result.steps), None))
    return runs


def first(runs: Iterator[spread.Ran], count: int) -> list[spread.Ran]:
    return list(itertools.islice(runs, count))


@pytest.mark.parametrize("name", ["fault-x-fault", "pair-x-unlink", "fault-x-death", "bind-x-death", "small"])
@pytest.mark.parametrize("slice_s", [ONE_RUN_S, 0.05])
def test_the_runs_of_two_workers_are_those_of_one(name: str, slice_s: float, pool: workers.Pool) -> None:
    scenario = parse("small", SMALL) if name == "small" else load(name)
    runs = list(spread.every(scenario, pool, slice_s))
    assert runs == alone(exhaustive.every(scenario))
    assert len(runs) > 1


@pytest.mark.parametrize("name", ["fault-x-punch", "punch-x-death"])
def test_they_are_the_same_where_states_are_turned_that_another_part_found(name: str, pool: workers.Pool) -> None:
    scenario = load(name)
    assert first(spread.every(scenario, pool, ONE_RUN_S), LIMIT) == alone(
        itertools.islice(exhaustive.every(scenario), LIMIT)
    )


def test_random_runs_are_the_same(pool: workers.Pool) -> None:
    scenario = load("fault-x-punch")
    count = 2 * spread.RANDOM_RUNS + 1
    assert list(spread.seeded(scenario, pool, 4, count)) == alone(explore.seeded(scenario, 4, count))


LASTING = contextlib.ExitStack()


def plant() -> None:
    """In a worker, as long as it lives."""
    LASTING.enter_context(planted(BOUND))


def test_the_first_failure_is_the_same() -> None:
    scenario = load("punch-x-unbind")
    with planted(BOUND):
        one = alone(exhaustive.every(scenario))
        ahead: list[list[str]] = []
        with workers.of_this_machine(2, plant) as pool:
            two = list(spread.every(scenario, pool, ONE_RUN_S, ahead.append))
            random = list(spread.seeded(scenario, pool, 0, 20 * spread.RANDOM_RUNS, ahead.append))
        assert len(one) > 2 and one == two
        failed = two[-1][1]
        assert failed is not None and failed in ahead
        assert random[-1][1] is not None and random[-1][1] in ahead
        assert spread.again(scenario, failed).failures
    with pytest.raises(workers.WorkersLost, match="same code"):
        spread.again(scenario, failed)


def test_what_a_dead_worker_had_is_done_again(pool: workers.Pool) -> None:
    scenario = load("fault-x-death")
    runs = spread.every(scenario, pool, ONE_RUN_S)
    begun = first(runs, 3)
    pid = pool.begin(os.getpid).result()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert begun + list(runs) == alone(exhaustive.every(scenario))
