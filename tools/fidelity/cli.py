"""tools/record-kvm: record what a real KVM answers, or write docs/fidelity.md from what was recorded."""

import sys
from pathlib import Path

from memfsd.common.arguments import Parser

from . import kvm
from .cases import CASES
from .deviations import render
from .recording import load, record, save

ROOT = Path(__file__).parents[2]
RECORDING = ROOT / "tests" / "fidelity" / "kvm-memslots.json"
DOCUMENT = ROOT / "docs" / "fidelity.md"


def main(arguments: list[str] | None = None) -> int:
    """0 done, 1 this machine cannot be asked, 2 usage."""
    parser = Parser(
        prog="tools/record-kvm",
        description="Run the memslot cases on this machine's /dev/kvm and keep the answers.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--date", help="record, and note this as the day it was done")
    what.add_argument("--render", action="store_true", help="record nothing: write docs/fidelity.md from the recording")
    parser.add_argument("--output", type=Path, default=RECORDING, help="the recording (%(default)s)")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.render:
            DOCUMENT.write_text(render(load(chosen.output)))
            print(f"wrote {DOCUMENT}")
            return 0
        reason = kvm.unavailable()
        if reason is not None:
            print(f"tools/record-kvm: nothing recorded: {reason}", file=sys.stderr)
            return 1
        recording = record(CASES, chosen.date, _progress)
        save(recording, chosen.output)
    except (OSError, RuntimeError) as error:
        print(f"tools/record-kvm: {error}", file=sys.stderr)
        return 1
    op_count = sum(len(recorded.answers) for recorded in recording.cases)
    print(f"recorded {len(recording.cases)} cases with {op_count} ops in {chosen.output}")
    return 0


def _progress(name: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{name}", end="", file=sys.stderr, flush=True)
