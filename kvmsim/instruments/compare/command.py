"""The command line of `kvmsim compare`."""

import argparse
import contextlib
import errno
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from memfsd.common.mounts import abi_of_mount
from memfsd.common.quote import printable, quoted
from memfsd.uapi.abi import Abi, abi_of
from memfsd.uapi.errors import PeerLost, Refused, errno_name
from memfsd.uapi.units import format_size

from .costs import POOL_BYTES, SIZE_BYTES, costs
from .plot import draw, plot_file
from .rig import DESIGNS, Design, Rig
from .store import mounted
from .table import Results, Row, cost_facts, cost_text, facts, text
from .workloads import COSTS, WORKLOADS

_DESIGN_OPTIONS = "size=4G,split=on,abi={abi}"
_COST_OPTIONS = f"size={POOL_BYTES},split=on,nodes=2"


def _abi_of(directory: str) -> Abi | None:
    """None: it is on no memfsd mount, which is said when a file is made there."""
    try:
        return abi_of(abi_of_mount(directory))
    except OSError:
        return None


def compare(asked: argparse.Namespace, finish: Callable[[Results], None] = lambda results: None) -> int:
    """Exit status. finish gets the results when all are measured."""
    results = Results()
    try:
        abi = None if asked.directory is None else _abi_of(asked.directory)
        has_seals = abi is None or not abi.is_sized_at_creation
        workloads = asked.workloads or [*WORKLOADS, *([COSTS] if has_seals else [])]
        designs = [name for name in workloads if name != COSTS]
        plot = None if asked.plot is None else plot_file(asked.plot, workloads)
        if designs:
            with contextlib.ExitStack() as mounts:
                for row in _rows(asked, designs, _Mounts(asked.directory, abi, mounts)):
                    results.rows.append(row)
                    if asked.json:
                        print(json.dumps(facts(row)), flush=True)
            if not asked.json:
                print(text(results.rows), end="\n\n" if COSTS in workloads else "\n", flush=True)
        if COSTS in workloads:
            _measure_costs(asked, results)
        if plot is not None:
            draw(results.rows, plot)
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


class _Mounts:
    """The directory that a person named, of this ABI, or a mount for each ABI, made when it is first needed."""

    def __init__(self, named: str | None, abi: Abi | None, mounts: contextlib.ExitStack) -> None:
        self._named = None if named is None else Path(named)
        self._abi = abi
        self._mounts = mounts
        self._made: dict[str, Path] = {}

    def designs(self, asked: list[Design] | None) -> list[Design]:
        """Those that were asked for, or all that there can be. EINVAL: the directory's ABI has not one of them."""
        abi = self._abi
        if abi is None:
            return asked or list(DESIGNS)
        for design in asked or ():
            if not design.fits(abi):
                way_out = f"name one with abi={design.abi.name}, or none"
                raise Refused(
                    errno.EINVAL, f"{self._named} is on a mount with abi={abi.name}, without {design}: {way_out}"
                )
        return asked or [design for design in DESIGNS if design.fits(abi)]

    def of(self, design: Design) -> tuple[Path, Abi]:
        """A directory where the design can be measured, and its ABI."""
        if self._named is not None:
            return self._named, self._abi or design.abi
        abi = design.abi
        if abi.name not in self._made:
            options = _DESIGN_OPTIONS.format(abi=abi.name)
            self._made[abi.name] = self._mounts.enter_context(mounted(options))
        return self._made[abi.name], abi


def _rows(asked: argparse.Namespace, workloads: list[str], mounts: _Mounts) -> Iterator[Row]:
    designs = mounts.designs(asked.designs)
    if not any(design.fits(design.abi, page_bytes) for design in designs for page_bytes in asked.page_sizes):
        names = ", ".join(map(str, designs))
        raise Refused(errno.EINVAL, f"{names}: a guest_memfd has pages of 4K only: add 4K to --page-sizes")
    for workload in workloads:
        for page_bytes in asked.page_sizes:
            for design in designs:
                if not design.fits(design.abi, page_bytes):
                    continue
                if sys.stderr.isatty():
                    print(f"\r\033[Kkvmsim: {workload}, {design}, {format_size(page_bytes)}", end="", file=sys.stderr)
                directory, abi = mounts.of(design)
                with contextlib.closing(Rig(directory, abi, design, page_bytes, asked.max_slots)) as rig:
                    WORKLOADS[workload](rig)
                    yield Row(workload, design, abi.name, page_bytes, rig.finish())
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)


@contextlib.contextmanager
def _directory(named: str | None, options: str, *, swap_bytes: int = 0) -> Iterator[Path]:
    if named is not None:
        yield Path(named)
        return
    with mounted(options, swap_bytes=swap_bytes) as directory:
        yield directory
