"""What the soak did, in the summary of the test run."""

from typing import Any

import pytest

SOAKS: list[dict[str, Any]] = []
"""As `tools/soak --json` prints it."""


def report() -> list[dict[str, Any]]:
    return SOAKS


def hear(report: list[dict[str, Any]]) -> None:
    SOAKS.extend(report)


def show(reporter: pytest.TerminalReporter) -> None:
    for soak in SOAKS:
        reporter.section("soak")
        reporter.line(_line(soak))


def _line(soak: dict[str, Any]) -> str:
    counts, levels = soak["counts"], soak["levels"]
    shown = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items())
    rss = " ".join(f"{level['rss_kib'] / 1024:.1f}" for level in levels)
    fds = " ".join(str(level["fds"]) for level in levels)
    return f"seed {soak['seed']}, {soak['seconds']} s: {shown}; memfsd after each epoch: {rss} MiB, {fds} fds"
