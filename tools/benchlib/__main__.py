"""tools/bench: measure the figures asked for, print them, say whether each holds.

Exit status: 0 measured (held or not), 1 a figure could not be measured, 2 usage, 130 interrupted: what was measured
until then is printed.
"""

import argparse
import datetime
import importlib
import json
import sys

from benchlib.figure import Figure, Progress, table
from benchlib.machine import describe
from memfsd.common.arguments import Parser
from memfsd.common.stdio import fill_standard_fds
from memfsd.uapi.errors import PeerLost, Refused

FIGURES: dict[str, tuple[str, dict[str, object]]] = {
    "P1": ("fault.measure", {"starts": 1, "rounds": 2, "count": 10}),
    "P1b": ("fault.measure_allocated", {"starts": 1, "rounds": 2, "count": 10}),
    "P2": ("first_touch.measure", {"rounds": 1, "size_bytes": 4 << 20}),
    "P3": ("page_tables.measure", {"rounds": 1, "count": 1000}),
    "P4": ("taking_back.measure", {"rounds": 1, "size_bytes": 4 << 20}),
    "P5": ("requests.measure", {"starts": 1, "rounds": 1, "count": 20}),
    "P5b": ("repeated_stat.measure", {"rounds": 1, "count": 20}),
    "P6": ("conversions.measure", {"rounds": 1, "live": (2, 4), "count": 2}),
    "P7": ("huge_file.measure", {"rounds": 1, "size_bytes": 4 << 30}),
    "P8": ("exploring.measure", {"rounds": 1, "runs": 8}),
    "P9": ("starting.measure", {"rounds": 1}),
    "P10": ("random_touch.measure", {"rounds": 1, "size_bytes": 4 << 20}),
    "P11": ("blocked_stat.measure", {"rounds": 1, "count": 20, "extents": 64}),
    "C1": ("code_speed.registers", {"rounds": 1, "count": 1000}),
    "C2": ("code_speed.memory", {"rounds": 1, "count": 1000}),
    "C3": ("code_speed.chase", {"rounds": 1, "size_bytes": 4 << 20}),
    "C4": ("code_exits.faults", {"rounds": 1, "count": 16}),
    "C5": ("code_exits.conversions", {"rounds": 1, "count": 4}),
    "E1": ("encrypted_touch.measure", {"rounds": 1, "size_bytes": 4 << 20}),
    "M1": ("page_move.measure", {"rounds": 1, "count": 10, "bulk": 16}),
    "W1": ("swapping.measure", {"rounds": 1, "size_bytes": 4 << 20}),
    "T1": ("throughput.measure", {"rounds": 1, "count": 2}),
    "S1": ("trace_cost.measure", {"rounds": 1, "fault_count": 100}),
    "S2": ("sinks.measure_statistics", {"rounds": 1, "count": 10}),
    "S3": ("sinks.measure_trace", {"rounds": 1, "count": 10}),
    "S4": ("sinks.measure_journal", {"rounds": 1, "count": 10}),
    "P12": ("lock_holds.measure", {"extents": 64, "names": 64, "vms": 4, "tib_pages": 1 << 20}),
}
"""The module's function, loaded when it is wanted; and what makes it so small that the value means nothing, for tests
of this program."""


def measure(name: str, progress: Progress, *, quick: bool = False) -> Figure:
    place, small = FIGURES[name]
    module, _, function = place.rpartition(".")
    figure = getattr(importlib.import_module(f"benchlib.{module}"), function)(progress, **(small if quick else {}))
    assert isinstance(figure, Figure)
    return figure


def main() -> int:
    fill_standard_fds()
    asked = _parser().parse_args()
    progress = Progress()
    figures: dict[str, Figure] = {}
    failures: dict[str, str] = {}
    interrupted = False
    for name in asked.only:
        progress.figure(name)
        try:
            figures[name] = measure(name, progress, quick=asked.quick)
        except (OSError, RuntimeError, Refused, PeerLost) as error:
            failures[name] = str(error)
        except KeyboardInterrupt:
            interrupted = True
            break
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
    return 130 if interrupted else 1 if failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="tools/bench",
        description="Measure speed, each figure against its peer in the same run.",
        epilog="exit status: 0 measured (also when a figure does not hold), 1 one could not be measured, "
        "2 usage, 130 interrupted: what was measured until then is printed",
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
