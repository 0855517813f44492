"""What the tests of this directory explored: printed at their end, and written in docs/reliability.md."""

from dataclasses import dataclass, field
from typing import Any

import pytest


@dataclass(slots=True)
class Numbers:
    runs: int = 0
    schedules: int = 0
    """Different ones: no two have the same order of dependent steps."""
    scenarios: set[str] = field(default_factory=set)
    complete: set[str] = field(default_factory=set)
    """Scenarios of which every order was run."""
    two_vcpus: tuple[int, int] = (0, 0)
    """Of two vCPUs, one punch and one death: all schedules, and the runs that it took."""
    caught: dict[str, str] = field(default_factory=dict)
    mutants: int = 0


NUMBERS = Numbers()


def report() -> dict[str, Any]:
    return {
        "runs": NUMBERS.runs,
        "schedules": NUMBERS.schedules,
        "scenarios": NUMBERS.scenarios,
        "complete": NUMBERS.complete,
        "two_vcpus": NUMBERS.two_vcpus,
        "caught": NUMBERS.caught,
        "mutants": NUMBERS.mutants,
    }


def hear(report: dict[str, Any]) -> None:
    NUMBERS.runs += report["runs"]
    NUMBERS.schedules += report["schedules"]
    NUMBERS.scenarios |= report["scenarios"]
    NUMBERS.complete |= report["complete"]
    NUMBERS.two_vcpus = max(NUMBERS.two_vcpus, report["two_vcpus"])
    NUMBERS.caught |= report["caught"]
    NUMBERS.mutants += report["mutants"]


def show(reporter: pytest.TerminalReporter) -> None:
    if not NUMBERS.runs:
        return
    write = reporter.write_line
    reporter.section("controlled races")
    write(
        f"{NUMBERS.schedules} different schedules in {NUMBERS.runs} runs of {len(NUMBERS.scenarios)} scenarios, "
        f"{len(NUMBERS.complete)} of them complete"
    )
    if NUMBERS.two_vcpus[0]:
        write("two vCPUs, one punch, one death: all {} schedules, in {} runs".format(*NUMBERS.two_vcpus))
    if NUMBERS.mutants:
        write(f"{len(NUMBERS.caught)} of {NUMBERS.mutants} mutants caught")
        for name, how in NUMBERS.caught.items():
            write(f"  {name:58} {how}")
