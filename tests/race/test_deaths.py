"""Where a process can die: nowhere that others could tell from another place is left out, and none of those twice."""

import itertools
import os

import pytest

from kvmsim.instruments.race import deaths, exhaustive, order
from kvmsim.instruments.race.accesses import Access, Kind
from kvmsim.instruments.race.scenario import load, parse
from kvmsim.instruments.race.scheduler import Step, Task

QUIET = """\
store frames=16
file mem 2
vm vm0 vcpus=2
vm vm1
before vmm: slot 0 mem 0 0 2
before vcpu0: write 0 "x"; write 1 "y"
vcpu0: read 0
vcpu1: read 1
outside: kill vm1
"""


def step(task: Task, *accesses: Access, killed: str = "") -> Step:
    made = Step(task, "step", [], False)
    made.accesses = dict.fromkeys(accesses)
    made.killed = killed
    return made


VICTIM, OTHER, KILLER = Task(1, "victim", "vm0"), Task(2, "other", "vm0"), Task(3, "outside", "outside")
LOCK: Access = (("lock", "vm0 lock"), Kind.TAKE)
SEEN: Access = (("process", "vm0"), Kind.READ)
KILL = step(KILLER, (("process", "vm0"), Kind.WRITE), killed="vm0")


def sends(task: Task, packet: bytes) -> Step:
    made = step(task, (("queue", "to the store"), Kind.SEND), SEEN)
    made.said = packet
    return made


def test_who_kills() -> None:
    assert deaths.killer(parse("quiet", QUIET)) == "outside"
    assert deaths.killer(load("fault-x-punch")) == ""
    assert deaths.killer(parse("stop", QUIET.replace("kill vm1", "stop vm1 9"))) == ""
    assert deaths.killer(parse("both", QUIET.replace("kill vm1", "kill vm1; kill vm0"))) == ""


def test_a_process_that_shows_nothing_dies_only_once() -> None:
    """Of the two vCPUs' reads nobody sees anything but by the windows: vm1's death has no order to them."""
    scenario = parse("quiet", QUIET)
    results = [result for result in exhaustive.every(scenario) if not result.cut_short]
    assert len({order.class_of(result.steps) for result in results}) == 1


def test_the_beginnings_of_a_run() -> None:
    """It can die before its first packet, between both, and after the second; the store's receipt makes one more."""
    receipt = step(Task(4, "session", "store"), (("queue", "to the store"), Kind.SHUT))
    unseen = step(OTHER, LOCK)
    found = dict(deaths.kill_prefixes([unseen, sends(VICTIM, b"1"), sends(VICTIM, b"2"), KILL, receipt]))
    assert sorted(found.values(), key=len) == [
        ["outside"],
        ["victim", "outside"],
        ["victim", "victim", "outside"],
    ]


@pytest.mark.parametrize("name", ["punch-x-death", "punch-x-death-of-the-store", "punch-x-death-two-vcpus"])
def test_a_beginning_has_the_class_of_its_schedule(name: str) -> None:
    """Found from the whole run, for all of them at once."""
    count = 0
    for result in itertools.islice(exhaustive.every(load(name)), 12):
        kill = next((step for step in result.steps if step.killed), None)
        for class_, schedule in deaths.kill_prefixes(result.steps):
            assert kill is not None
            steps = result.steps[: result.steps.index(kill) + 1]
            left = schedule[:-1]
            chosen = []
            for one in steps:
                if one.task is not kill.task and one.task.name in left:
                    chosen.append(one)
                    left.remove(one.task.name)
            chosen += [one for one in steps if one.task is kill.task]
            assert [one.task.name for one in chosen] == schedule
            assert class_ == order.class_of(chosen)
            count += 1
    assert count > 15


def test_a_run_without_a_kill_has_none() -> None:
    assert list(deaths.kill_prefixes([sends(VICTIM, b"1")])) == []


def test_what_the_dead_did_unseen_makes_no_difference() -> None:
    mine, other = step(VICTIM, LOCK), step(OTHER, LOCK)
    packet = sends(VICTIM, b"1")
    one, two = [mine, other, packet, KILL], [other, mine, packet, KILL]
    assert order.class_of(one) == order.class_of(two)
    assert order.class_of(one[:-1]) != order.class_of(two[:-1]), "while it lives it does"


def test_what_the_dead_said_and_in_which_order_makes_one() -> None:
    first, second = sends(VICTIM, b"1"), sends(OTHER, b"2")
    assert order.class_of([first, second, KILL]) != order.class_of([second, first, KILL])
    assert order.class_of([sends(VICTIM, b"1"), KILL]) != order.class_of([sends(VICTIM, b"2"), KILL])
    assert order.class_of([first, KILL]) != order.class_of([KILL])


NAMES = ["bind-x-death", "fault-x-death", "punch-x-death"]
if os.environ.get("RACE_LONG"):
    NAMES.append("punch-x-death-two-vcpus")


@pytest.mark.timeout(7200 if len(NAMES) > 3 else 120)
@pytest.mark.parametrize("name", NAMES)
def test_to_die_at_every_point_shows_no_more(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one of the kill prefixes that nobody can distinguish, but all of them. RACE_LONG=1 does it for two vCPUs
    too, in half an hour."""
    scenario = load(name)
    classes = {order.class_of(r.steps) for r in exhaustive.every(scenario) if not r.cut_short}
    monkeypatch.setattr(deaths, "as_seen", lambda step, dead: step)
    found = set()
    for result in exhaustive.every(scenario):
        assert result.failures == []
        if not result.cut_short:
            found.add(order.class_of(result.steps))
    assert found == classes
