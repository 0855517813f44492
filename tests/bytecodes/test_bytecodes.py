"""A second opinion: an explorer that knows none of our named points finds nothing in the use cases, and can find.

A few executions of each race; thousands with MEMFSD_LONG=1.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.threads import DEADLINE_S

ROOT = Path(__file__).parents[2]
LONG = bool(os.environ.get("MEMFSD_LONG"))
EXECUTIONS = 5000 if LONG else 12
BOTH_WAYS: dict[str, list[object]] = {
    "fault x punch": ["EAGAIN", 0],
    "pair x pair": ["vm0", "EPERM"],
    "answer x its deadline": [None, "ETIMEDOUT"],
    "invalidate_lock x its deadline": [None, "EBUSY"],
}
"""What both comes of the first thread, if all that matters is explored."""
FAULTY = ["flush without a kick", *(["two grants without the lock"] if LONG else [])]


def explored(*arguments: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [Path(sys.executable).with_name("frontrun"), sys.executable, "-m", "tests.bytecodes.scenarios", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=3600 if LONG else 4 * DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def reports() -> list[dict[str, Any]]:
    return explored(f"--executions={EXECUTIONS}")


@pytest.mark.timeout(3600)
def test_every_race_holds_at_every_bytecode(reports: list[dict[str, Any]]) -> None:
    assert [report for report in reports if not report["holds"] and report["race"] not in FAULTY] == []
    assert len(reports) > len(BOTH_WAYS)


@pytest.mark.parametrize("race", BOTH_WAYS)
def test_whoever_is_first_is_explored(race: str, reports: list[dict[str, Any]]) -> None:
    found = [json.loads(text) for report in reports if report["race"] == race for text in report["came_to"]]
    first = {"pair x pair": "vm0"}.get(race, "fault" if race.startswith("fault") else "punch")
    assert {came_to[first] for came_to in found} == set(BOTH_WAYS[race])


@pytest.mark.parametrize("race", FAULTY)
def test_a_mistake_is_found(race: str, reports: list[dict[str, Any]]) -> None:
    assert not all(report["holds"] for report in reports if report["race"] == race)
