"""tools/soak: rounds until the time is over, then the verdict.

Exit status: 0 all held, 1 something did not, 2 usage.
"""

import argparse
import itertools
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from memfsd.common.arguments import Parser
from memfsd.common.stdio import fill_standard_fds
from soaklib.curve import BOUNDS
from soaklib.daemon import BIN, Failure

if TYPE_CHECKING:
    from soaklib.report import Report
    from soaklib.rounds import Soak

_HELP = """\
Each round starts VMMs, real processes with three vCPUs each, on new sealed files: policies none, punch, overlay (kept
and freed) and recreate, frames of 4K and 2M. While they write, convert and verify, the host punches, shrinks and grows,
allocates, moves pages to another node, swaps them out, lets frames fail, fills the pool (so that more leave), uses
ordinary files, stops and kills VMMs. Every third round memfsd itself is killed, and ended under running guests. A page
must hold what its guest wrote last, or zeros if the host took it since. One more VM runs guest programs: machine code,
two vCPUs (touch, convert, spinlock, ring, punched): each must do its work unless something was taken from it. After
each round no frame may be missing but those that failed, and `memfs check` must be clean; memory, fds and threads of
memfsd must stay where the first round left them.

A round depends on the seed and its number only: repeat one with --seed N --round K.

exit status: 0 all held, 1 something did not, 2 usage
"""


def main() -> int:
    fill_standard_fds()
    parser = _parser()
    asked = parser.parse_args()
    from soaklib import programs
    from soaklib.report import Progress, Report
    from soaklib.rounds import Soak

    code_vms: int = programs.are_there() if asked.code is None else asked.code
    if code_vms and not programs.are_there():
        parser.error("--code needs the guest programs and what runs them: pip install 'memfsd[cpu]', or leave it out")
    seed = asked.seed if asked.seed is not None else int.from_bytes(os.urandom(4))
    print(f"soak: --seed {seed}", file=sys.stderr, flush=True)
    report, failures = Report(), []
    base = Path(tempfile.mkdtemp(prefix="memfsd-soak.")).resolve()
    soak = Soak(base, seed, asked.memfsd, report, asked.settle, code_vms, asked.actions)
    progress = Progress(lambda: report.line(soak.levels()))
    begin = time.monotonic()
    try:
        for number in _rounds(asked, begin):
            soak.run_round(number)
        soak.close()
        failures += [f"not flat: {line}" for line in soak.curve.rises()]
    except Failure as failure:
        failures.append(f"round {soak.round} (--seed {seed} --round {soak.round}): {failure}")
    except KeyboardInterrupt:
        failures.append("interrupted")
    finally:
        progress.close()
        soak.remove()
    if failures:
        failures.append(f"logs are in {base}")
    else:
        shutil.rmtree(base)
    _show(asked.json, seed, time.monotonic() - begin, report, soak, failures)
    return 1 if failures else 0


def _rounds(asked: argparse.Namespace, begin: float) -> Iterator[int]:
    """Which to run: one, so many, or until the time is over, but one of each kind at least."""
    from soaklib.rounds import KINDS

    if asked.round is not None:
        yield asked.round
    elif asked.rounds is not None:
        yield from range(asked.rounds)
    else:
        for number in itertools.count():
            yield number
            if number >= KINDS - 1 and time.monotonic() > begin + asked.minutes * 60:
                return


def _show(as_json: bool, seed: int, seconds: float, report: "Report", soak: "Soak", failures: list[str]) -> None:
    levels = [level._asdict() for level in soak.curve.levels]
    if as_json:
        shown = {"seed": seed, "seconds": round(seconds), "holds": not failures, "failures": failures}
        print(json.dumps(shown | {"counts": report.totals(), "levels": levels, "bounds": BOUNDS._asdict()}))
        return
    for name, value in report.totals().items():
        print(f"{name:>16}  {value}")
    print(f"{'seconds':>16}  {seconds:.0f}")
    for name in ("rss_kib", "fds", "threads") if levels else ():
        print(f"{name:>16}  {' '.join(str(level[name]) for level in levels)}  (after each epoch)")
    print("\n".join(failures) if failures else f"all held (seed {seed})")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="tools/soak",
        description="Guests verify their memory while it is taken back and processes die, for as long as you like.",
        epilog=_HELP,
    )
    parser.add_argument(
        "--minutes",
        type=_minutes,
        default=2.0,
        metavar="N",
        help="go on so long, and for 3 rounds at least (default 2)",
    )
    parser.add_argument(
        "--seed", type=int, metavar="N", help="what is done, in which order (default: drawn, and printed)"
    )
    how_many = parser.add_mutually_exclusive_group()
    how_many.add_argument("--rounds", type=_positive, metavar="N", help="stop after so many rounds instead")
    how_many.add_argument("--round", type=_count, metavar="K", help="only this round (they count from 0)")
    parser.add_argument(
        "--settle",
        type=_seconds,
        default=60.0,
        metavar="SECONDS",
        help="how long memfsd has after a round to let go of what it holds (default 60)",
    )
    parser.add_argument(
        "--code",
        type=_count,
        metavar="N",
        help="VMs of each round whose vCPUs run guest programs, machine code (default 1; 0 without the extra cpu)",
    )
    parser.add_argument(
        "--actions",
        type=_positive,
        default=40,
        metavar="N",
        help="what the host does in a round that keeps its store (default 40: each of its actions at least once)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument(
        "--memfsd", type=Path, default=BIN / "memfsd", metavar="PROGRAM", help="which one to run (default: our own)"
    )
    return parser


def _minutes(text: str) -> float:
    return _time(text, "minutes")


def _seconds(text: str) -> float:
    return _time(text, "seconds")


def _time(text: str, unit: str) -> float:
    try:
        time_ = float(text)
    except ValueError:
        time_ = -1.0
    if not 0 < time_ <= 1e6:
        raise argparse.ArgumentTypeError(f"'{text}' is no time: choose {unit} above 0")
    return time_


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 1 << 20:
        raise argparse.ArgumentTypeError(f"'{text}' is not a count: choose 0 to {1 << 20}")
    return int(text)


def _positive(text: str) -> int:
    count = _count(text)
    if not count:
        raise argparse.ArgumentTypeError("0 shows nothing: choose 1 or more")
    return count


if __name__ == "__main__":
    sys.exit(main())
