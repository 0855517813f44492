"""Exhaustive leaves out nothing but equal orders; random is seeded; a record replays."""

import itertools
import os

import pytest

from kvmsim.instruments.race import deaths, exhaustive, explore, order
from kvmsim.instruments.race.runner import run_once
from kvmsim.instruments.race.scenario import load, parse

LONG = bool(os.environ.get("MEMFSD_LONG"))
LONG_ONES = ("fault-x-bind", "fault-x-punch", "pair-x-pair", "punch-x-death")
SMALL = """\
store frames=16
file mem 2
vm vm0 vcpus=2
before vmm: slot 0 mem 0 0 2
vcpu0: read 0
vcpu1: write 0 "x"
"""


@pytest.mark.parametrize(
    "name",
    ["fault-x-fault", "pair-x-unlink", "bind-x-death", "fault-x-death", *(LONG_ONES if LONG else ())],
)
def test_no_random_schedule_is_new_to_the_exhaustive_mode(name: str) -> None:
    """It finds the order of dependent steps of each of them."""
    scenario = load(name)
    every = [order.class_of(result.steps) for result in exhaustive.every(scenario) if not result.cut_short]
    if not deaths.killer(scenario):
        assert len(set(every)) == len(every), "one schedule of each class is run"
    for result in explore.seeded(scenario, 3, 120):
        assert order.class_of(result.steps) in set(every)


def test_a_bound_of_none_is_what_a_scheduler_without_preemption_does() -> None:
    scenario = parse("small", SMALL)
    none = [tuple(result.schedule) for result in explore.bounded(scenario, 0)]
    one = [tuple(result.schedule) for result in explore.bounded(scenario, 1)]
    assert len(set(none)) == len(none) < len(set(one)) == len(one)
    assert set(none) <= set(one)
    every = {order.class_of(r.steps) for r in exhaustive.every(scenario) if not r.cut_short}
    assert {order.class_of(r.steps) for r in explore.bounded(scenario, 1)} <= every


def test_a_seed_gives_the_same_schedules_again() -> None:
    scenario = load("punch-x-punch")
    first = [result.schedule for result in explore.seeded(scenario, 9, 6)]
    assert first == [result.schedule for result in explore.seeded(scenario, 9, 6)]
    assert first != [result.schedule for result in explore.seeded(scenario, 10, 6)]


def test_a_schedule_replays_step_by_step() -> None:
    scenario = load("convert-x-punch")
    for result in explore.seeded(scenario, 4, 4):
        replay = explore.Replay(result.schedule)
        again = run_once(scenario, replay)
        assert replay.diverged(again.schedule) == ""
        assert [(s.task.name, s.name, s.note) for s in again.steps] == [
            (s.task.name, s.name, s.note) for s in result.steps
        ]


def test_a_schedule_of_other_code_is_told_from_one_that_replays() -> None:
    scenario = load("fault-x-punch")
    replay = explore.Replay(["nobody", "host"])
    assert "nobody" in replay.diverged(run_once(scenario, replay).schedule)


def test_equal_orders_are_one_class_and_others_are_not() -> None:
    scenario = parse("small", SMALL)
    runs = list(itertools.islice(explore.seeded(scenario, 1, 60), 60))
    by_class: dict[int, set[tuple[str, ...]]] = {}
    for result in runs:
        by_class.setdefault(order.class_of(result.steps), set()).add(tuple(result.schedule))
    assert 1 < len(by_class) < sum(len(schedules) for schedules in by_class.values())
