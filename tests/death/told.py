"""The number of cells, in the summary of the test run."""

import pytest

SUMMARY: list[str] = []


def told() -> list[str]:
    return SUMMARY


def hear(told: list[str]) -> None:
    SUMMARY.extend(told)


def show(reporter: pytest.TerminalReporter) -> None:
    for line in SUMMARY:
        reporter.write_line(line)
