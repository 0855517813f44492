"""Machine code under the scheduler: slices of so many instructions, and the same run again from its seed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvmsim.instruments.race import explore, points
from kvmsim.instruments.race.history import ONE_MORE, History
from kvmsim.instruments.race.runner import Result, run_once
from kvmsim.instruments.race.scenario import Scenario, load, parse
from tests.support.threads import DEADLINE_S

ROOT = Path(__file__).parents[2]
PAGE = ("mem", 2)
ALONE = """\
file mem 4
vm vm0 vcpus=2
before vmm: slot 0 mem 0 0 4
before vcpu0: place {program} 1; write 2 "x"
vcpu0: code {program} 1 2 {times} {slice}
after vcpu0: read 2
"""


def alone(program: str, times: int, slice_: int) -> Scenario:
    return parse("alone", ALONE.format(program=program, times=times, slice=slice_))


def trace_of(result: Result) -> list[tuple[str, str, str, object]]:
    return [(step.task.name, step.name, step.note, dict(step.accesses)) for step in result.steps]


@pytest.mark.parametrize("name", ["code-x-punch", "code-x-code", "code-x-move", "code-x-death"])
def test_a_seed_is_the_same_run_again_step_by_step(name: str) -> None:
    scenario = load(name)
    for number in (1, 2):
        first = run_once(scenario, explore.Random(7, number))
        assert any(step.name == points.MACHINE_CODE for step in first.steps)
        assert trace_of(run_once(scenario, explore.Random(7, number))) == trace_of(first)
        again = explore.Replay(first.schedule)
        assert trace_of(run_once(scenario, again)) == trace_of(first)


@pytest.mark.parametrize(("slice_", "points_reached"), [(1, 10), (2, 6), (4, 4), (100, 2)])
def test_each_slice_is_so_many_instructions_and_begins_with_a_point(slice_: int, points_reached: int) -> None:
    """Twice round a loop of four, and HLT: nine instructions. The first slice only finds which memory there is."""
    result = next(explore.seeded(alone("store", 2, slice_), 1, 1))
    assert result.failures == []
    faults = sum(step.name == "vm down send GET_PFN" for step in result.steps)
    assert faults == 0, "the pages are mapped: each slice does all that it may"
    assert sum(step.name == points.MACHINE_CODE for step in result.steps) == points_reached
    assert any(step.note.endswith("ran to its end") for step in result.steps)


def test_what_it_counted_is_read_afterwards() -> None:
    """The history knows the exact sum, and reports any other value."""
    assert next(explore.seeded(alone("count", 5, 2), 1, 1)).failures == []
    history = History()
    history.end(history.begin([PAGE], bytes(8)))
    for _ in range(2):
        history.end(history.begin([PAGE], ONE_MORE))
    running = history.begin([PAGE], ONE_MORE)
    for value, right in ((1, False), (2, True), (3, True), (4, False)):
        assert (history.check(PAGE, value.to_bytes(8, "little"), history.tick()) == "") is right
    history.end(running, happened=False)
    assert "0x03" in history.check(PAGE, (3).to_bytes(8, "little"), history.tick())
    history.end(history.begin([PAGE], bytes(8)))
    assert history.check(PAGE, bytes(8), history.tick()) == "", "taken back, and nothing was added since"


@pytest.mark.parametrize("slice_", [1, 2, 3, 100])
def test_port_io_leaves_the_guest_in_the_middle_of_a_slice(slice_: int) -> None:
    scenario = alone("print", 3, slice_)
    result = run_once(scenario, explore.Random(1, 1))
    assert result.failures == []
    assert any(step.note.endswith("ran to its end") for step in result.steps)
    assert sum(step.name == points.MACHINE_CODE for step in result.steps) >= 6, "each OUT ends a slice and a stay"
    assert trace_of(run_once(scenario, explore.Replay(result.schedule))) == trace_of(result)


HIDE = """
import importlib.abc, sys
class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "unicorn":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hidden())
from kvmsim.__main__ import main
sys.argv = ["kvmsim", *sys.argv[1:]]
main()
"""


@pytest.mark.parametrize(("arguments", "status"), [(["--list"], 0), (["code-x-punch"], 2)])
def test_without_the_extra_they_are_not_listed_and_refused_in_one_line(arguments: list[str], status: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HIDE, "race", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=DEADLINE_S,
    )
    assert done.returncode == status, done.stderr
    assert "code-x" not in done.stdout
    if status:
        assert done.stderr.count("\n") == 1
        assert "code-x-punch: machine code needs unicorn" in done.stderr
        assert "pip install 'memfsd[cpu]'" in done.stderr
