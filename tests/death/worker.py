"""One bench in its own process, which forks memfsd and kvmsim: it has one thread. Requests and results as JSON
lines: {"census": SCENARIO} or {"cell": [...]}."""

import ctypes
import json
import os
import sys
from pathlib import Path

from . import deadlines as deadlines  # isort: skip - before anything that uses them
from .bench import SETTLE_S, Bench
from .cell import NOT_REACHED, census, run_cell
from .defects import DEFECTS
from .launcher import TooLate, until
from .model import PAGE_MAP, Cell, Fault

_PR_SET_CHILD_SUBREAPER = 36
NEVER_S = 10.0
"""How long to wait for what a defect keeps from happening."""

_TRIES = 3
"""Of a cell whose point was not reached. Nobody was harmed then, so it shows nothing: the threads met in another order
than in the census, and the second time of a point did not come."""


def main(base: Path, defect: str, *, page_map: bool) -> None:
    if defect:
        DEFECTS[defect][0]()
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    (base / "tools").mkdir()
    bench = Bench(base, page_map=page_map)
    if defect:
        bench.settle_s = NEVER_S
    for line in sys.stdin:
        request = json.loads(line)
        answer: object
        if "census" in request:
            answer = census(bench, request["census"])
        else:
            point, side, scenario, nth, fault, victim = request["cell"]
            cell = Cell(point, side, scenario, nth, Fault(fault), victim)
            for _ in range(_TRIES):
                outcome = run_cell(bench, cell)
                if not outcome.ok:
                    start_over(bench)
                if outcome.text != NOT_REACHED:
                    break
            answer = [outcome.ok, outcome.text]
        print(json.dumps(answer), flush=True)
    if bench.store is None or bench.ended():
        bench.start()  # which clears away what a killed one left
    bench.stop()
    bench.check_processes()


def start_over(bench: Bench) -> None:
    """After a cell that broke something: its store goes, and the next cell has a new one."""
    if bench.store is None:
        return
    bench.store.kill()
    try:
        until(bench.ended, "memfsd dies", SETTLE_S)
    except TooLate:
        os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], page_map=sys.argv[3] == PAGE_MAP)
