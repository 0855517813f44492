"""The replay file: a scenario, a schedule, and what it led to."""

import errno
import json
import os
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from pathlib import Path
from typing import Any

from memfsd.common.quote import quoted

from .points import all_names
from .runner import Result
from .scenario import MAX_BYTES, Scenario, ScenarioError, parse
from .scheduler import MAX_STEPS

FORMAT = 1
_MAX_FILE_BYTES = 1 << 24


def save(path: Path, scenario: Scenario, result: Result) -> None:
    """The scenario's text is in it, so that the file is complete."""
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
    _write(path, json.dumps(report, indent=1) + "\n")


def refuse_unusable(path: Path) -> None:
    """ScenarioError when nothing can be saved there, before hours have gone into what is to be."""
    if path.is_dir():
        raise ScenarioError(f"{quoted(str(path))}: is a directory: name a file with --record")
    try:
        if not _is_device(path):
            beside = _beside(path)
            beside.touch()
            beside.unlink()
        elif not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        why = f"a record cannot be written there: {error.strerror}"
        raise ScenarioError(f"{quoted(str(path))}: {why}: name another file with --record") from None


def refuse_other_file(path: Path) -> None:
    """ScenarioError when somebody's file is there, which is no record."""
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as file:
            if b'"format"' not in file.read(64):
                raise ScenarioError(f"{quoted(str(path))}: exists and is not a record: name another file with --record")


def _is_device(path: Path) -> bool:
    """Or a pipe: what is written in place."""
    return path.exists() and not path.is_file()


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}")


def _write(path: Path, text: str) -> None:
    """Whole or not at all, unless it is a device or a pipe."""
    if _is_device(path):
        path.write_text(text)
        return
    beside = _beside(path)
    try:
        beside.write_text(text)
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise


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
