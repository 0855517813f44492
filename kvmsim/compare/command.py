"""The command line of `kvmsim compare`."""

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from memfsd.common.quote import printable, quoted
from memfsd.uapi.errors import Refused, errno_name
from memfsd.uapi.units import format_size

from .plot import check_plot, draw
from .rig import DESIGNS, Rig
from .store import mounted
from .table import Row, facts, text
from .workloads import WORKLOADS


def compare(asked: argparse.Namespace, finish: Callable[[list[Row]], None] = lambda rows: None) -> int:
    """Exit status. finish gets the rows when all are measured."""
    try:
        if asked.plot:
            check_plot(asked.plot, asked.workloads or WORKLOADS)
        with _directory(asked.directory) as directory:
            rows = [_print(row, asked.json) for row in _rows(asked, directory)]
        if not asked.json:
            print(text(rows))
        if asked.plot:
            draw(rows, asked.plot)
        finish(rows)
    except Refused as refused:
        print(f"kvmsim: {printable(refused.reason)} ({errno_name(refused.errno)})", file=sys.stderr)
        return 1
    except BrokenPipeError:
        raise  # the reader of our output has gone: the command line knows what to do
    except OSError as error:
        where = f"{quoted(error.filename)}: " if error.filename else ""
        print(f"kvmsim: {where}{error.strerror or error}", file=sys.stderr)
        return 1
    return 0


def _rows(asked: argparse.Namespace, directory: Path) -> Iterator[Row]:
    for workload in asked.workloads or WORKLOADS:
        for page_bytes in asked.page_sizes:
            for design in asked.designs or DESIGNS:
                if sys.stderr.isatty():
                    print(f"\r\033[Kkvmsim: {workload}, {design}, {format_size(page_bytes)}", end="", file=sys.stderr)
                with contextlib.closing(Rig(directory, design, page_bytes, asked.max_slots)) as rig:
                    WORKLOADS[workload](rig)
                    yield Row(workload, design, page_bytes, rig.finish())
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)


def _print(row: Row, as_json: bool) -> Row:
    if as_json:
        print(json.dumps(facts(row)), flush=True)
    return row


@contextlib.contextmanager
def _directory(named: str | None) -> Iterator[Path]:
    if named is not None:
        yield Path(named)
        return
    with mounted() as directory:
        yield directory
