"""The package of tools/soak; what the soak did is shown at the end of the test run."""

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for report in [*terminalreporter.stats.get("passed", []), *terminalreporter.stats.get("failed", [])]:
        for name, told in getattr(report, "user_properties", []):
            if name == "soak":
                terminalreporter.section("soak")
                terminalreporter.line(_line(told))


def _line(told: dict[str, Any]) -> str:
    counts, levels = told["counts"], told["levels"]
    shown = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items())
    rss = " ".join(f"{level['rss_kib'] / 1024:.1f}" for level in levels)
    fds = " ".join(str(level["fds"]) for level in levels)
    return f"seed {told['seed']}, {told['seconds']} s: {shown}; memfsd after each epoch: {rss} MiB, {fds} fds"
