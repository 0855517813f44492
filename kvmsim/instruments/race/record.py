"""The replay file: a scenario, a schedule, and what it led to."""

import json
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from pathlib import Path
from typing import Any

from kvmsim.instruments.outputfile import OutputFile
from memfsd.common.quote import quoted
from memfsd.uapi.errors import Refused

from .points import all_names
from .runner import Result
from .scenario import MAX_BYTES, Scenario, ScenarioError, parse
from .scheduler import MAX_STEPS

FORMAT = 1
_MAX_FILE_BYTES = 1 << 24


def save(to: OutputFile, scenario: Scenario, result: Result) -> None:
    """The scenario's text is in it, so that the file is complete. OSError; Refused."""
    turns = [[name, len(list(turn))] for name, turn in groupby(result.schedule)]
    report: dict[str, Any] = {
        "format": FORMAT,
        "version": _version(),
        "points": len(all_names()),
        "scenario": scenario.name,
        "text": scenario.text,
        "failures": result.failures,
        "turns": turns,
    }
    with to.opened() as file:
        file.write(f"{json.dumps(report, indent=1)}\n".encode())


def record_file(path: Path) -> OutputFile:
    """ScenarioError when what is there is no record, or nothing can be saved there, before hours have gone into what is
    to be."""
    file = OutputFile(str(path), "a record", lambda head: b'"format"' in head[:64])
    try:
        file.refuse_unusable()
    except Refused as refused:
        raise ScenarioError(f"{refused.reason} (--record)") from None
    return file


def read(path: Path) -> tuple[Scenario, list[str]]:
    """ScenarioError when it is no replay file, or of another format."""
    with path.open("rb") as file:
        data = file.read(_MAX_FILE_BYTES + 1)
    try:
        report = json.loads(data)
        if report["format"] != FORMAT:
            raise ScenarioError(
                f"{quoted(str(path))}: format {report['format']}, this kvmsim reads {FORMAT}: record the run again"
            )
        text = str(report["text"])
        if len(text) > MAX_BYTES:
            raise ScenarioError(f"{quoted(str(path))}: the scenario has more than {MAX_BYTES} bytes: shorten it")
        return parse(str(report["scenario"]), text), _schedule(report["turns"])
    except KeyError as error:
        raise ScenarioError(f"{quoted(str(path))} is not a replay file: it has no {error}") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise ScenarioError(
            f"{quoted(str(path))} is not a replay file, which is one JSON object: --record writes one"
        ) from None
    except (ValueError, TypeError, RecursionError) as error:
        raise ScenarioError(f"{quoted(str(path))} is not a replay file: {error}") from None


def _schedule(turns: Any) -> list[str]:
    schedule: list[str] = []
    for turn in turns if isinstance(turns, list) else [turns]:
        match turn:
            case [str(name), int(count)] if 0 < count <= MAX_STEPS - len(schedule):
                schedule += [name] * count
            case _:
                raise ValueError(f"its turns are [task, steps], {MAX_STEPS} steps at most, not {str(turn)[:60]}")
    return schedule


def _version() -> str:
    try:
        return version("memfsd")
    except PackageNotFoundError:
        return "unknown"
