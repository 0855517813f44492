"""The number of cells, in the summary of the test run."""

import pytest

SUMMARY: list[str] = []


def report() -> list[str]:
    return SUMMARY


def hear(report: list[str]) -> None:
    SUMMARY.extend(report)


def show(reporter: pytest.TerminalReporter) -> None:
    for line in SUMMARY:
        reporter.write_line(line)
