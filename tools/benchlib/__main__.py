"""tools/bench: measure the figures asked for, print them, say whether each holds.

Exit status: 0 measured (held or not), 1 a figure could not be measured, 2 usage.
"""

import argparse
import datetime
import json
import sys
from collections.abc import Callable

from benchlib import (
    blocked_stat,
    conversions,
    encrypted_touch,
    exploring,
    fault,
    first_touch,
    huge_file,
    page_move,
    page_tables,
    random_touch,
    repeated_stat,
    requests,
    starting,
    swapping,
    taking_back,
    throughput,
    trace_cost,
)
from benchlib.figure import Figure, Progress, table
from benchlib.machine import describe
from memfsd.common.arguments import Parser
from memfsd.common.stdio import fill_standard_fds
from memfsd.uapi.errors import PeerLost, Refused

Measure = Callable[[Progress], Figure]

FIGURES: dict[str, Measure] = {
    "P1": fault.measure,
    "P1b": fault.measure_allocated,
    "P2": first_touch.measure,
    "P3": page_tables.measure,
    "P4": taking_back.measure,
    "P5": requests.measure,
    "P5b": repeated_stat.measure,
    "P6": conversions.measure,
    "P7": huge_file.measure,
    "P8": exploring.measure,
    "P9": starting.measure,
    "P10": random_touch.measure,
    "P11": blocked_stat.measure,
    "E1": encrypted_touch.measure,
    "M1": page_move.measure,
    "W1": swapping.measure,
    "T1": throughput.measure,
    "S1": trace_cost.measure,
}
QUICK: dict[str, Measure] = {
    "P1": lambda progress: fault.measure(progress, starts=1, rounds=2, count=10),
    "P1b": lambda progress: fault.measure_allocated(progress, starts=1, rounds=2, count=10),
    "P2": lambda progress: first_touch.measure(progress, rounds=1, size_bytes=4 << 20),
    "P3": lambda progress: page_tables.measure(progress, rounds=1, count=1000),
    "P4": lambda progress: taking_back.measure(progress, rounds=1, size_bytes=4 << 20),
    "P5": lambda progress: requests.measure(progress, starts=1, rounds=1, count=20),
    "P5b": lambda progress: repeated_stat.measure(progress, rounds=1, count=20),
    "P6": lambda progress: conversions.measure(progress, rounds=1, live=(2, 4), count=2),
    "P7": lambda progress: huge_file.measure(progress, rounds=1, size_bytes=4 << 30),
    "P8": lambda progress: exploring.measure(progress, rounds=1, runs=8),
    "P9": lambda progress: starting.measure(progress, rounds=1),
    "P10": lambda progress: random_touch.measure(progress, rounds=1, size_bytes=4 << 20),
    "P11": lambda progress: blocked_stat.measure(progress, rounds=1, count=20, extents=64),
    "E1": lambda progress: encrypted_touch.measure(progress, rounds=1, size_bytes=4 << 20),
    "M1": lambda progress: page_move.measure(progress, rounds=1, count=10, bulk=16),
    "W1": lambda progress: swapping.measure(progress, rounds=1, size_bytes=4 << 20),
    "T1": lambda progress: throughput.measure(progress, rounds=1, count=2),
    "S1": lambda progress: trace_cost.measure(progress, rounds=1, fault_count=100),
}
"""So small that the values mean nothing: for tests of this program."""


def main() -> int:
    fill_standard_fds()
    asked = _parser().parse_args()
    measures = QUICK if asked.quick else FIGURES
    progress = Progress()
    figures: dict[str, Figure] = {}
    failures: dict[str, str] = {}
    for name in asked.only:
        progress.figure(name)
        try:
            figures[name] = measures[name](progress)
        except (OSError, RuntimeError, Refused, PeerLost) as error:
            failures[name] = str(error)
        finally:
            progress.clear()
    machine = describe(datetime.date.today().isoformat())
    if asked.json:
        shown: dict[str, object] = {name: figure.as_json() for name, figure in figures.items()}
        print(json.dumps(shown | {"machine": machine}))
    else:
        print(table(figures, machine))
    for name, why in failures.items():
        print(f"bench: {name} could not be measured: {why}", file=sys.stderr)
    return 1 if failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="tools/bench",
        description="Measure speed, each figure against its peer in the same run.",
        epilog="exit status: 0 measured (also when a figure does not hold), 1 one could not be measured, 2 usage",
    )
    names = ",".join(FIGURES)
    parser.add_argument("--only", type=_names, default=list(FIGURES), metavar="P1,P2", help=f"which of {names}")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--quick", action="store_true", help=argparse.SUPPRESS)
    return parser


def _names(text: str) -> list[str]:
    wanted = text.split(",")
    unknown = [name for name in wanted if name not in FIGURES]
    if unknown:
        raise argparse.ArgumentTypeError(f"'{unknown[0]}' is not a figure: choose from {', '.join(FIGURES)}")
    return [name for name in FIGURES if name in wanted]


if __name__ == "__main__":
    sys.exit(main())
