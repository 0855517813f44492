"""kvmsim race: run a scenario under chosen schedules, and show the shortest that breaks a rule."""

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from . import diagram, exhaustive, explore, minimise, order, points, record
from .runner import Result, run_once
from .scenario import VERBS, Scenario, ScenarioError, load, shipped

HELD, FAILED, USAGE = 0, 1, 2
_TELL_EVERY_S = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("scenario", nargs="?", metavar="SCENARIO", help="one that comes along (--list), or a file")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the random schedules (default 0)")
    parser.add_argument("--count", type=_positive, default=1000, metavar="K", help="random schedules (default 1000)")
    parser.add_argument("--exhaustive", action="store_true", help="every order of dependent steps, one schedule each")
    parser.add_argument(
        "--bound", type=_bound, metavar="N", help="with --exhaustive: every schedule with at most N preemptions instead"
    )
    parser.add_argument("--limit", type=_positive, metavar="K", help="with --exhaustive: end after K runs")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run a recorded schedule again")
    parser.add_argument("--record", type=Path, metavar="FILE", help="where a failure goes (default SCENARIO.replay)")
    parser.add_argument("--list", action="store_true", help="the scenarios that come along")
    parser.add_argument("--points", action="store_true", help="the named points")
    parser.add_argument("--show", action="store_true", help="draw the schedule of --replay also when it held")
    parser.add_argument("--json", action="store_true", help="one JSON object")


def epilog() -> str:
    lines = ["what the actors of a scenario do (numbers count pages):"]
    for role, verbs in VERBS.items():
        for verb, (parameters, least, what) in verbs.items():
            shown = [name if index < least else f"[{name}]" for index, (name, _) in enumerate(parameters)]
            lines.append(f"  {role:9}{' '.join([verb, *shown]):40}{what}")
    lines += [
        "",
        "exit status: 0 all held, 1 a failure was found, 2 usage",
        "docs/reliability.md tells what is explored, and what is not",
    ]
    return "\n".join(lines)


def main(asked: argparse.Namespace) -> int:
    """Exit status 0 held, 1 failure found, 2 usage."""
    try:
        if asked.points:
            return _tell([{"point": name, "side": side} for name, side in points.all_names()], asked.json)
        if asked.list:
            return _tell([{"scenario": name, "about": load(name).about} for name in shipped()], asked.json)
        if asked.replay is not None:
            return _replay(asked)
        if asked.scenario is None:
            raise ScenarioError(f"which scenario? One of: {', '.join(shipped())}; or a file")
        if (asked.bound is not None or asked.limit is not None) and not asked.exhaustive:
            raise ScenarioError("--bound and --limit belong to --exhaustive")
        return _explore(asked, load(asked.scenario))
    except ScenarioError as error:
        print(f"kvmsim: {error}", file=sys.stderr)
    except BrokenPipeError:
        raise  # the reader of our output has gone: the command line knows what to do
    except OSError as error:
        print(f"kvmsim: {error.filename}: {error.strerror}", file=sys.stderr)
    return USAGE


def _explore(asked: argparse.Namespace, scenario: Scenario) -> int:
    began = time.monotonic()
    runs, classes, complete = 0, set(), True
    next_told = began + _TELL_EVERY_S if sys.stderr.isatty() else math.inf
    failed: Result | None = None
    for result in _results(asked, scenario):
        runs += 1
        if result.failures:
            failed = result
            break
        if not result.cut_short:
            classes.add(order.class_of(result.steps))
        if time.monotonic() > next_told:
            print(f"{scenario.name}: {runs} runs, {len(classes)} different schedules so far", file=sys.stderr)
            next_told += _TELL_EVERY_S
        if asked.limit is not None and runs >= asked.limit:
            complete = False
            break
    report: dict[str, object] = {
        "scenario": scenario.name,
        "mode": _mode(asked),
        "runs": runs,
        "schedules": len(classes),
        "held": failed is None,
    }
    if asked.exhaustive:
        report["complete"] = complete and failed is None
    if failed is not None:
        shortest = minimise.minimise(scenario, failed)
        path = asked.record or Path(f"{scenario.name}.replay")
        record.save(path, scenario, shortest)
        report |= _failure(shortest) | {"replay": str(path)}
        if not asked.json:
            print(diagram.draw(shortest))
    if asked.json:
        print(json.dumps(report))
    else:
        took = time.monotonic() - began
        told = f"{scenario.name}: {runs} runs ({_mode(asked)}), {len(classes)} different schedules, {took:.1f} s: "
        end = "" if not asked.exhaustive else " (complete)" if complete else f" (ended at --limit {asked.limit})"
        if failed is None:
            print(f"{told}all held{end}")
        else:
            print(f"{told}FAILED, shortest schedule {report['steps']} steps: kvmsim race --replay {report['replay']}")
    return HELD if failed is None else FAILED


def _results(asked: argparse.Namespace, scenario: Scenario) -> Iterator[Result]:
    if not asked.exhaustive:
        return explore.seeded(scenario, asked.seed, asked.count)
    return exhaustive.every(scenario) if asked.bound is None else explore.bounded(scenario, asked.bound)


def _mode(asked: argparse.Namespace) -> str:
    if not asked.exhaustive:
        return f"random, seed {asked.seed}"
    return "exhaustive" if asked.bound is None else f"exhaustive, at most {asked.bound} preemptions"


def _replay(asked: argparse.Namespace) -> int:
    scenario, schedule = record.read(asked.replay)
    replay = explore.Replay(schedule, strict=True)
    result = run_once(scenario, replay)
    report = {"scenario": scenario.name, "mode": "replay", "held": not result.failures} | _failure(result)
    if replay.diverged:
        report["diverged"] = replay.diverged
    if asked.json:
        print(json.dumps(report))
    else:
        if result.failures or asked.show:
            print(diagram.draw(result))
        if replay.diverged:
            print(f"kvmsim: the code is not that of the record: {replay.diverged}", file=sys.stderr)
        print(f"{scenario.name}: {'FAILED' if result.failures else 'held'} in {len(result.steps)} steps")
    return FAILED if result.failures else HELD


def _failure(result: Result) -> dict[str, object]:
    return {
        "failures": result.failures,
        "steps": len(result.steps),
        "switches": minimise.switches(result.schedule),
        "schedule": [
            {"task": step.task.name, "process": step.task.process, "point": step.name, "note": step.note}
            for step in result.steps
        ],
    }


def _tell(rows: list[dict[str, str]], as_json: bool) -> int:
    if as_json:
        print(json.dumps(rows))
        return HELD
    for row in rows:
        first, second = row.values()
        print(f"{first:45}{second}")
    return HELD


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number above 0")
    return int(text)


def _bound(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 8:
        raise argparse.ArgumentTypeError(f"'{text}' is not 0 to 8")
    return int(text)
