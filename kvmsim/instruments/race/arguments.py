"""The arguments of `kvmsim race`: what --help loads."""

import argparse
from pathlib import Path

from memfsd.common.arguments import whole

from .scenario import VERBS

RANDOM_RUNS = 1000
MAX_WORKERS = 64
_positive = whole(1, (1 << 63) - 1, "is not a number: choose 1 or more")
_workers = whole(1, MAX_WORKERS, f"is not a number of processes: choose 1 to {MAX_WORKERS}")
_bound = whole(0, 8, "is not a bound: choose 0 to 8")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Run the real code of both sides under chosen schedules and check R1 to R8."
    parser.epilog = _epilog()
    parser.add_argument("scenario", nargs="?", metavar="SCENARIO", help="a shipped scenario (--list), or a file")
    parser.add_argument("--seed", type=_seed, metavar="N", help="of the random schedules (default 0)")
    parser.add_argument("--count", type=_positive, metavar="K", help=f"random schedules (default {RANDOM_RUNS})")
    parser.add_argument("--exhaustive", action="store_true", help="every order of dependent steps, one schedule each")
    parser.add_argument(
        "--bound", type=_bound, metavar="N", help="with --exhaustive: every schedule with at most N preemptions instead"
    )
    parser.add_argument("--limit", type=_positive, metavar="K", help="with --exhaustive: end after K runs")
    parser.add_argument(
        "--page-map", choices=["on", "off"], help="every VM reads page maps, or none, whatever the scenario says"
    )
    parser.add_argument("--workers", type=_workers, metavar="N", help="explore in N processes: the same runs, sooner")
    parser.add_argument(
        "--cluster", type=_address, metavar="ADDRESS", help="explore on the workers of this Dask scheduler"
    )
    parser.add_argument("--replay", type=_path, metavar="FILE", help="run a recorded schedule again")
    parser.add_argument("--record", type=_path, metavar="FILE", help="where a failure goes (default SCENARIO.replay)")
    parser.add_argument("--list", action="store_true", help="the shipped scenarios")
    parser.add_argument("--points", action="store_true", help="the named points")
    parser.add_argument("--show", action="store_true", help="draw the schedule of --replay also when it held")
    parser.add_argument("--json", action="store_true", help="one JSON object")


def _epilog() -> str:
    lines = ["what the actors of a scenario do (numbers count pages):"]
    for role, verbs in VERBS.items():
        for verb, (parameters, least, what) in verbs.items():
            shown = [name if index < least else f"[{name}]" for index, (name, _) in enumerate(parameters)]
            lines.append(f"  {role:9}{' '.join([verb, *shown]):40}{what}")
    lines += [
        "",
        "exit status: 0 all held, 1 a failure was found, 2 usage, a scenario that cannot be run, workers that are lost",
        "or memory that is short, 3 nothing failed, but --replay could not follow its record, 130 interrupted (143 by",
        "SIGTERM), and all had held until then",
        "docs/reliability.md says what is explored, and what is not",
    ]
    return "\n".join(lines)


def _seed(text: str) -> int:
    if not text.isascii() or not text.removeprefix("-").isdigit() or len(text) > 20:
        raise argparse.ArgumentTypeError(f"'{text[:30]}' is not a number")
    return int(text)


def _address(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("the address is empty: give that of a Dask scheduler")
    return text


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("the name of the file is empty: give a path")
    return Path(text)
