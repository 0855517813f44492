"""Every named point is in the code, every place that needs one has one, and without a race there is nothing."""

import inspect
import re
from pathlib import Path

import pytest

from kvmsim.instruments.race import explore, points
from kvmsim.instruments.race.scenario import load, shipped
from memfsd.common import trace
from memfsd.uapi.messages import KVM_OPERATIONS, STORE_OPERATIONS, WITHOUT_MESSAGE

ROOT = Path(__file__).parents[2]
NAMES = [name for name, _ in points.all_names()]


def test_names_are_unique() -> None:
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize("point", [*points.POINTS, points.RETRY], ids=lambda point: point.name)
def test_a_point_is_a_trace_point_of_its_side(point: points.Point) -> None:
    """The code calls it, on that side and nowhere else."""
    assert point.at.__name__ in trace.POINTS
    package = {"store": "memfsd", "vm": "kvmsim"}
    for side, name in package.items():
        calls = re.compile(rf"(trace\.{side}|\bto)\.{point.at.__name__}\(")
        found = [path for path in (ROOT / name).glob("**/*.py") if calls.search(path.read_text())]
        assert bool(found) is (side == point.side), (side, found)


@pytest.mark.parametrize("field", points.FIELDS, ids=lambda field: field.shown)
def test_a_field_is_one_that_the_code_uses(field: points.Field) -> None:
    module = inspect.getsource(inspect.getmodule(field.owner))  # type: ignore[arg-type]
    assert re.search(rf"\b(self\.)?{field.name}\b", module)


def test_each_message_of_a_pairing_is_sent_received_and_acknowledged_at_a_point() -> None:
    for kind in (STORE_OPERATIONS | KVM_OPERATIONS) - WITHOUT_MESSAGE:
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
    of_the_harness = re.compile(
        r"starts$|system call returns$|folio locked$|.* (killed|has ended|stopped|continued|cut)$|.* joined$"
    )
    refusals = re.compile(r"refusal of")
    for name in shipped():
        for result in explore.seeded(load(name), 2, 2):
            for step in result.steps:
                shown = refusals.sub("answer to", step.name)
                assert shown in known or of_the_harness.match(shown), step.name


def test_without_a_race_there_is_nothing() -> None:
    before = [vars(owner)[method.__name__] for owner, method in points.LOOKS]
    next(explore.seeded(load("fault-x-punch"), 1, 1))
    assert (trace.store, trace.vm) == (None, None)
    assert [vars(owner)[method.__name__] for owner, method in points.LOOKS] == before
    assert before == [method for _, method in points.LOOKS], "the plain ones"
    for field in points.FIELDS:
        assert type(vars(field.owner).get(field.name)).__name__ in ("NoneType", "member_descriptor")
