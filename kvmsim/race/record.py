"""The replay file: a scenario, a schedule, and what it led to."""

import json
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from pathlib import Path
from typing import Any

from .points import all_names
from .runner import Result
from .scenario import MAX_BYTES, Scenario, ScenarioError, parse

FORMAT = 1
_MAX_FILE_BYTES = 1 << 24


def save(path: Path, scenario: Scenario, result: Result) -> None:
    """The scenario's text is in it, so that the file stands alone."""
    turns = [[name, len(list(turn))] for name, turn in groupby(result.schedule)]
    told: dict[str, Any] = {
        "format": FORMAT,
        "version": _version(),
        "points": len(all_names()),
        "scenario": scenario.name,
        "text": scenario.text,
        "failures": result.failures,
        "turns": turns,
    }
    path.write_text(json.dumps(told, indent=1) + "\n")


def read(path: Path) -> tuple[Scenario, list[str]]:
    """ScenarioError when it is no replay file, or of another format."""
    with path.open("rb") as file:
        data = file.read(_MAX_FILE_BYTES + 1)
    try:
        told = json.loads(data)
        if told["format"] != FORMAT:
            raise ScenarioError(f"{path}: format {told['format']}, this kvmsim reads {FORMAT}")
        text = str(told["text"])
        if len(text) > MAX_BYTES:
            raise ScenarioError(f"{path}: the scenario has more than {MAX_BYTES} bytes")
        schedule = [str(name) for name, count in told["turns"] for _ in range(int(count))]
        return parse(str(told["scenario"]), text), schedule
    except (ValueError, KeyError, TypeError) as error:
        raise ScenarioError(f"{path} is not a replay file: {error}") from None


def _version() -> str:
    try:
        return version("memfsd")
    except PackageNotFoundError:
        return "unknown"
