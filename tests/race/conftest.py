"""The numbers of the race tests, at the end of a test run."""

import pytest

from tests.race.numbers import NUMBERS


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not NUMBERS.runs:
        return
    write = terminalreporter.write_line
    terminalreporter.section("controlled races")
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
