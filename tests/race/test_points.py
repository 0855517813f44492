"""Every named point is in the code, every place that needs one has one, and without a race there is nothing."""

import re
from pathlib import Path

import pytest

from kvmsim.race import explore, points
from kvmsim.race.scenario import load, shipped
from memfsd.uapi.messages import KVM_OPERATIONS, STORE_OPERATIONS

ROOT = Path(__file__).parents[2]
NAMES = [name for name, _ in points.all_names()]


def test_names_are_unique() -> None:
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize("point", [*points.POINTS, points.RETRY], ids=lambda point: point.name)
def test_a_point_is_a_method_that_exists(point: points.Point) -> None:
    owner, name = points.resolve(point.where)
    assert callable(owner.__dict__[name])


@pytest.mark.parametrize("field", points.FIELDS, ids=lambda field: field.where)
def test_a_field_is_one_that_the_code_uses(field: points.Field) -> None:
    owner, name = points.resolve(field.where)
    module = Path(ROOT / (owner.__module__.replace(".", "/") + ".py"))
    assert re.search(rf"\b(self\.)?{name}\b", module.read_text())


def test_each_message_of_a_pairing_is_sent_received_and_acknowledged_at_a_point() -> None:
    for kind in (*STORE_OPERATIONS, *KVM_OPERATIONS):
        found = [name for name in NAMES if name.endswith(f" {kind.name}")]
        assert len(found) == 4, (kind, found)


def test_each_lock_of_the_code_is_a_point() -> None:
    made = set()
    for package in ("memfsd", "kvmsim"):
        for path in (ROOT / package).glob("**/*.py"):
            if path.parent.name != "race":
                made |= set(re.findall(r'sync\.lock\("([^"]+)"\)', path.read_text()))
    assert made == {lock for lock, _ in points.LOCKS}
    assert all(f"{lock} taken" in NAMES for lock in made)


def test_frames_and_entries_have_points() -> None:
    for needed in ("frames freed", "frames zeroed", "entry mapped", "run mapped", "range zapped", "TLB flushed"):
        assert needed in NAMES


def test_every_step_of_the_shipped_scenarios_has_a_name_of_the_list() -> None:
    known = set(NAMES)
    of_the_harness = re.compile(r"starts$|system call returns$|.* (killed|has ended|stopped|continued|cut)$|.* joined$")
    refusals = re.compile(r"refusal of")
    for name in shipped():
        for result in explore.seeded(load(name), 2, 2):
            for step in result.steps:
                shown = refusals.sub("answer to", step.name)
                assert shown in known or of_the_harness.match(shown), step.name


def test_the_methods_are_the_plain_ones_without_a_race() -> None:
    before = {point.where: _method(point.where) for point in points.POINTS}
    next(explore.seeded(load("fault-x-punch"), 1, 1))
    assert {point.where: _method(point.where) for point in points.POINTS} == before
    for point in points.POINTS:
        assert not hasattr(_method(point.where), "__wrapped__")
    for field in points.FIELDS:
        owner, name = points.resolve(field.where)
        assert type(owner.__dict__.get(name)).__name__ in ("NoneType", "member_descriptor")


def _method(where: str) -> object:
    owner, name = points.resolve(where)
    return owner.__dict__[name]
