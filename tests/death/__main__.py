"""python -m tests.death: run the death table and print it.

python -m tests.death                 the cells of the normal tests, one row a point
python -m tests.death --all           every cell: the stops at every point, and each point the first time, too
python -m tests.death --short         one row a class of points
python -m tests.death --only WORD     points whose name has the word
python -m tests.death --no-page-map   memfsd has --no-op page-map: each fault on a page is a message
python -m tests.death --docs          the short table into docs/reliability.md
"""

import argparse
import sys
from pathlib import Path

from memfsd.common.stdio import fill_standard_fds

from .model import Cell, Outcome
from .pool import Workers
from .table import cells, render, summary, unexplained, unreachable
from .traps import NAMES

DOCUMENT = Path(__file__).parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- death table: begin -->\n", "<!-- death table: end -->"


def main() -> int:
    fill_standard_fds()
    parser = argparse.ArgumentParser(prog="python -m tests.death", description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="every cell (ten minutes)")
    parser.add_argument("--short", action="store_true", help="one row a class of points")
    parser.add_argument("--only", default="", metavar="WORD", help="points whose name has the word")
    parser.add_argument("--no-page-map", action="store_true", help="of memfsd with --no-op page-map")
    parser.add_argument("--docs", action="store_true", help="write the short table into docs/reliability.md")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="mounts side by side (default 2)")
    asked = parser.parse_args()
    if asked.workers < 1:
        parser.error("--workers: one at least")
    if asked.docs and (asked.only or asked.all or asked.no_page_map):
        parser.error("--docs writes the table of the normal tests: not with --only, --all or --no-page-map")
    if not any(asked.only in name for name, _ in NAMES):
        parser.error(f"--only: no point has '{asked.only}' in its name (kvmsim race --points)")

    page_map = not asked.no_page_map
    workers = Workers(asked.workers, page_map=page_map)
    census = workers.census()
    wanted = [cell for cell in cells(census, everything=asked.all) if asked.only in cell.point]
    done = 0

    def progress(cell: Cell, outcome: Outcome) -> None:
        nonlocal done
        done += 1
        if sys.stderr.isatty():
            print(f"\r{done}/{len(wanted)} ", end="", file=sys.stderr, flush=True)
        if not outcome.ok:
            print(f"{describe(cell)}: {outcome.text}", file=sys.stderr, flush=True)

    results = workers.run(wanted, progress)
    print(render(results, short=asked.short or asked.docs))
    print()
    for name, why in unreachable(page_map=page_map).items():
        print(f"not reached: {name} ({why})")
    for name in (missed := unexplained(census, page_map=page_map)):
        print(f"not reached, or reached in spite of its reason: {name}")
    print(summary(results))
    if asked.docs:
        text = DOCUMENT.read_text()
        head, _, rest = text.partition(BEGIN)
        _, _, tail = rest.partition(END)
        DOCUMENT.write_text(f"{head}{BEGIN}{render(results, short=True)}\n\n{summary(results)}.\n{END}{tail}")
    return 1 if missed or any(not outcome.ok for outcome in results.values()) else 0


def describe(cell: Cell) -> str:
    return f"{cell.point} [{cell.scenario}, time {cell.nth}], {cell.fault.value} of {cell.victim}"


if __name__ == "__main__":
    sys.exit(main())
