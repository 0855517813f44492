"""The command line of `kvmsim compare`."""

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from memfsd.common.quote import printable, quoted
from memfsd.uapi.errors import PeerLost, Refused, errno_name
from memfsd.uapi.units import format_size

from .costs import POOL_BYTES, SIZE_BYTES, costs
from .plot import check_plot, draw
from .rig import DESIGNS, Rig
from .store import mounted
from .table import Results, Row, cost_facts, cost_text, facts, text
from .workloads import COSTS, WORKLOADS

_DESIGN_OPTIONS = "size=4G,split=on"
_COST_OPTIONS = f"size={POOL_BYTES},split=on,nodes=2"


def compare(asked: argparse.Namespace, finish: Callable[[Results], None] = lambda results: None) -> int:
    """Exit status. finish gets the results when all are measured."""
    results = Results()
    workloads = asked.workloads or [*WORKLOADS, COSTS]
    designs = [name for name in workloads if name != COSTS]
    try:
        if asked.plot:
            check_plot(asked.plot, workloads)
        if designs:
            with _directory(asked.directory, _DESIGN_OPTIONS) as directory:
                for row in _rows(asked, designs, directory):
                    results.rows.append(row)
                    if asked.json:
                        print(json.dumps(facts(row)), flush=True)
            if not asked.json:
                print(text(results.rows), end="\n\n" if COSTS in workloads else "\n", flush=True)
        if COSTS in workloads:
            _measure_costs(asked, results)
        if asked.plot:
            draw(results.rows, asked.plot)
        finish(results)
    except Refused as refused:
        print(f"kvmsim: {printable(refused.reason)} ({errno_name(refused.errno)})", file=sys.stderr)
        return 1
    except PeerLost as lost:
        print(f"kvmsim: {printable(str(lost))}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        raise  # the reader of our output has gone: the command line knows what to do
    except OSError as error:
        where = f"{quoted(error.filename)}: " if error.filename else ""
        print(f"kvmsim: {where}{error.strerror or error}", file=sys.stderr)
        return 1
    return 0


def _measure_costs(asked: argparse.Namespace, results: Results) -> None:
    def skip(line: str) -> None:
        results.skipped.append(line)
        print(f"kvmsim: {printable(line)}", file=sys.stderr, flush=True)

    with _directory(asked.directory, _COST_OPTIONS, swap_bytes=2 * SIZE_BYTES) as directory:
        for cost in costs(directory, asked.page_sizes, skip):
            results.costs.append(cost)
            if asked.json:
                print(json.dumps(cost_facts(cost)), flush=True)
    if not asked.json and results.costs:
        print(cost_text(results.costs))


def _rows(asked: argparse.Namespace, workloads: list[str], directory: Path) -> Iterator[Row]:
    for workload in workloads:
        for page_bytes in asked.page_sizes:
            for design in asked.designs or DESIGNS:
                if sys.stderr.isatty():
                    print(f"\r\033[Kkvmsim: {workload}, {design}, {format_size(page_bytes)}", end="", file=sys.stderr)
                with contextlib.closing(Rig(directory, design, page_bytes, asked.max_slots)) as rig:
                    WORKLOADS[workload](rig)
                    yield Row(workload, design, page_bytes, rig.finish())
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)


@contextlib.contextmanager
def _directory(named: str | None, options: str, *, swap_bytes: int = 0) -> Iterator[Path]:
    if named is not None:
        yield Path(named)
        return
    with mounted(options, swap_bytes=swap_bytes) as directory:
        yield directory
