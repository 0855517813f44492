"""kvmsim race: run a scenario under chosen schedules, and show the shortest that breaks a rule."""

import argparse
import contextlib
import json
import math
import sys
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kvmsim.instruments.outputfile import OutputFile
from memfsd.common.quote import printable, quoted
from memfsd.uapi.errors import Refused

from . import diagram, exhaustive, explore, minimise, order, points, record, spread, workers
from .arguments import RANDOM_RUNS
from .interrupts import Interrupts
from .runner import Result, run_once
from .scenario import Scenario, ScenarioError, load, shipped, with_page_maps

HELD, FAILED, USAGE, DIVERGED = 0, 1, 2, 3
_TELL_EVERY_S = 5.0


def main(asked: argparse.Namespace) -> int:
    """Exit status: see the epilog of --help."""
    try:
        _refuse_beside_a_list(asked)
        if asked.points:
            return _tell([{"point": name, "side": side} for name, side in points.all_names()], asked.json)
        if asked.list:
            return _tell([{"scenario": name, "about": load(name).about} for name in shipped()], asked.json)
        _refuse_what_does_not_fit(asked)
        if asked.replay is not None:
            return _replay(asked)
        scenario = load(asked.scenario)
        if asked.page_map is not None:
            scenario = with_page_maps(scenario, on=asked.page_map == "on")
        return _explore(asked, scenario)
    except (ScenarioError, workers.WorkersLost) as error:
        return _unable(str(error))
    except OSError as error:
        if error.filename is None:
            raise  # of our output, or of a run: the command line knows what to do
        return _unable(f"{quoted(error.filename)}: {error.strerror}")


def _unable(why: str) -> int:
    print(f"kvmsim: {printable(why)}", file=sys.stderr)
    return USAGE


def _refuse_beside_a_list(asked: argparse.Namespace) -> None:
    """An option that would be ignored is a misunderstanding."""
    lists = [name for name, given in (("--points", asked.points), ("--list", asked.list)) if given]
    if not lists:
        return
    unfit = lists[1:] + [name for name, given in _given(asked).items() if given]
    if unfit:
        raise ScenarioError(f"{unfit[0]} does not go with {lists[0]}, which runs nothing")


def _given(asked: argparse.Namespace) -> dict[str, bool]:
    return {
        "SCENARIO": asked.scenario is not None,
        "--seed": asked.seed is not None,
        "--count": asked.count is not None,
        "--exhaustive": asked.exhaustive,
        "--bound": asked.bound is not None,
        "--limit": asked.limit is not None,
        "--page-map": asked.page_map is not None,
        "--workers": asked.workers is not None,
        "--cluster": asked.cluster is not None,
        "--record": asked.record is not None,
        "--show": asked.show,
        "--replay": asked.replay is not None,
    }


def _refuse_what_does_not_fit(asked: argparse.Namespace) -> None:
    given = _given(asked)
    if asked.replay is not None:
        unfit, why = given.keys() - {"--show", "--replay"}, "does not go with --replay, which has it all"
    elif asked.show:
        unfit, why = {"--show"}, "belongs to --replay"
    elif asked.exhaustive:
        unfit, why = {"--seed", "--count"}, "belongs to random schedules, not to --exhaustive"
    else:
        unfit, why = {"--bound", "--limit"}, "belongs to --exhaustive"
    for name in given:
        if given[name] and name in unfit:
            raise ScenarioError(f"{name} {why}")
    if given["--workers"] and given["--cluster"]:
        raise ScenarioError("--workers does not go with --cluster, which has its own workers")
    if given["--bound"] and (given["--workers"] or given["--cluster"]):
        raise ScenarioError("--bound runs in one process: what it leaves out depends on every run before")
    if asked.replay is None and not asked.scenario:
        raise ScenarioError(f"which scenario? One of: {', '.join(shipped())}; or a file")


@dataclass(slots=True)
class _Found:
    """What became of the runs."""

    runs: int = 0
    classes: set[int] = field(default_factory=set)
    end: str = "complete"
    """Or "limit", "interrupted"."""
    failed: Result | None = None
    ahead: list[str] | None = None
    """A schedule that failed on a worker, and whose turn has not come."""


def _search(asked: argparse.Namespace, scenario: Scenario, found: _Found, interrupts: Interrupts) -> None:
    next_told = time.monotonic() + _TELL_EVERY_S if sys.stderr.isatty() else math.inf
    with contextlib.closing(_results(asked, scenario, found)) as results:
        for class_, failed in results:
            interrupts.raise_lost()
            if found.runs == asked.limit:
                found.end = "limit"
                return
            found.runs += 1
            if failed is not None:
                found.failed = failed
                break
            if class_ is not None:
                found.classes.add(class_)
            if time.monotonic() > next_told:
                so_far = f"{found.runs} runs, {len(found.classes)} different so far"
                print(f"{quoted(scenario.name)}: {so_far}", file=sys.stderr)
                next_told += _TELL_EVERY_S
    if found.failed is not None:
        found.failed = minimise.minimise(scenario, found.failed)


def _explore(asked: argparse.Namespace, scenario: Scenario) -> int:
    where = record.record_file(asked.record or Path(f"{scenario.name}.replay"))
    began = time.monotonic()
    found, interrupts, path = _Found(), Interrupts(), None
    with interrupts.taken():
        _search_to_an_end(asked, scenario, found, interrupts)
        if found.failed is not None:
            path = _saved(where, scenario, found.failed)
    failed = found.failed
    try:
        if asked.json:
            print(json.dumps(_report(asked, scenario, found) | ({} if failed is None else {"replay": path})))
        else:
            if failed is not None:
                print(diagram.draw(failed))
            report = f"{quoted(scenario.name)}: {found.runs} runs ({_mode(asked)}), {len(found.classes)} different"
            print(f"{report} schedules, {time.monotonic() - began:.1f} s: {_verdict(asked, found, path)}")
        sys.stdout.flush()
    except (OSError, KeyboardInterrupt) as error:
        if failed is None:
            raise
        print(f"kvmsim: {quoted(scenario.name)}: {_verdict(asked, found, path)}", file=sys.stderr)
        if isinstance(error, OSError):
            raise
    if failed is not None:
        return FAILED
    return interrupts.status if found.end == "interrupted" else HELD


def _search_to_an_end(asked: argparse.Namespace, scenario: Scenario, found: _Found, interrupts: Interrupts) -> None:
    """Whatever ends the search, a failure that is known is not lost."""
    try:
        _search(asked, scenario, found, interrupts)
        interrupts.over()
    except KeyboardInterrupt:
        interrupts.over()
        found.end = "interrupted"
    except (MemoryError, workers.WorkersLost) as error:
        interrupts.over()
        if found.failed is None and found.ahead is None:
            raise
        _unable(str(error) or "out of memory")
    if found.end != "limit" and found.failed is None and found.ahead is not None:
        found.failed = spread.again(scenario, found.ahead)


def _report(asked: argparse.Namespace, scenario: Scenario, found: _Found) -> dict[str, object]:
    failed = found.failed
    report: dict[str, object] = {
        "scenario": scenario.name,
        "mode": _mode(asked),
        "runs": found.runs,
        "schedules": len(found.classes),
        "held": failed is None,
    }
    if asked.exhaustive:
        report["complete"] = found.end == "complete" and failed is None
    if found.end == "interrupted":
        report["interrupted"] = True
    return report if failed is None else report | _failure(failed)


def _verdict(asked: argparse.Namespace, found: _Found, path: str | None) -> str:
    if found.failed is not None:
        again = f": kvmsim race --replay {quoted(path)}" if path else ""
        return f"FAILED, in {len(found.failed.steps)} steps{again}"
    if found.end == "interrupted":
        return "all held until it was interrupted"
    if not asked.exhaustive:
        return "all held"
    return "all held (complete)" if found.end == "complete" else f"all held (ended at --limit {asked.limit})"


def _saved(to: OutputFile, scenario: Scenario, failed: Result) -> str | None:
    """Where; None when it could not be, which must not hide the failure."""
    try:
        record.save(to, scenario, failed)
    except (OSError, Refused) as error:
        why = error.reason if isinstance(error, Refused) else f"{quoted(to.path)}: {error.strerror}"
        print(f"kvmsim: the failure is not recorded: {why}", file=sys.stderr)
        return None
    return f"./{to.path}" if to.path.startswith("-") else to.path


def _results(
    asked: argparse.Namespace, scenario: Scenario, found: _Found
) -> Generator[tuple[int | None, Result | None]]:
    """Of each run its class, if it was not cut short; or what failed."""
    if asked.workers is None and asked.cluster is None:
        for result in _alone(asked, scenario):
            if not result.failures:
                yield None if result.cut_short else order.class_of(result.steps), None
            else:
                yield None, spread.again(scenario, result.schedule) if result.cut_short else result
        return

    def ahead(schedule: list[str]) -> None:
        found.ahead = found.ahead or schedule

    with workers.of_a_cluster(asked.cluster) if asked.cluster else workers.of_this_machine(asked.workers) as pool:
        if asked.exhaustive:
            runs = spread.every(scenario, pool, ahead=ahead)
        else:
            runs = spread.seeded(scenario, pool, asked.seed or 0, asked.count or RANDOM_RUNS, ahead)
        for class_, schedule in runs:
            yield class_, None if schedule is None else spread.again(scenario, schedule)


def _alone(asked: argparse.Namespace, scenario: Scenario) -> Iterator[Result]:
    if not asked.exhaustive:
        return explore.seeded(scenario, asked.seed or 0, asked.count or RANDOM_RUNS)
    return exhaustive.every(scenario) if asked.bound is None else explore.bounded(scenario, asked.bound)


def _mode(asked: argparse.Namespace) -> str:
    if not asked.exhaustive:
        return f"random, seed {asked.seed or 0}"
    return "exhaustive" if asked.bound is None else f"exhaustive, at most {asked.bound} preemptions"


def _replay(asked: argparse.Namespace) -> int:
    scenario, schedule = record.read(asked.replay)
    replay = explore.Replay(schedule)
    result = run_once(scenario, replay)
    diverged = replay.diverged(result.schedule)
    report = {"scenario": scenario.name, "mode": "replay", "held": not result.failures} | _failure(result)
    if diverged:
        report["diverged"] = diverged
    if asked.json:
        print(json.dumps(report))
    else:
        if result.failures or asked.show:
            print(diagram.draw(result))
        if diverged:
            print(
                "kvmsim: the record cannot be replayed, since the code has changed:"
                f" {printable(diverged)}: record it again",
                file=sys.stderr,
            )
        print(f"{quoted(scenario.name)}: {'FAILED' if result.failures else 'held'} in {len(result.steps)} steps")
    if result.failures:
        return FAILED
    return DIVERGED if diverged else HELD


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
