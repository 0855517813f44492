"""The death table: whoever dies, stops or is cut off, at whatever point, harms nobody else.

Each point with one fault at least, and each fault for each group of points. With MEMFSD_LONG=1 every cell: the stops
at every point, and each point the first time that it is reached, too.
"""

import os

import pytest

from .__main__ import describe, main
from .defects import DEFECTS
from .model import Cell, Fault
from .pool import Workers
from .report import SUMMARY
from .scenarios import SCENARIOS
from .table import UNREACHABLE, WITHOUT_CONNECTION, Census, cells, group_of, sampled, summary, unexplained
from .traps import NAMES

LONG = bool(os.environ.get("MEMFSD_LONG"))
TIMEOUT_S = 2 * 3600 if LONG else 3600

_ASKED = (
    # (point, side, fault, victim): where a fault of the guest is a message without page maps, too.
    ("vm down send GET_PFN", "vm", Fault.KILL, "store"),
    ("store down receive GET_PFN", "store", Fault.CUT, "store"),
    ("store down send answer to GET_PFN", "store", Fault.KILL, "vm"),
    ("vm down receive answer to GET_PFN", "vm", Fault.STOP, "vm"),
)

pytestmark = pytest.mark.minutes


@pytest.mark.parametrize(
    "words", ["--only NOSUCH", "--only BEGIN --docs", "--all --docs", "--no-page-map --docs", "--workers 0"]
)
def test_a_table_of_nothing_is_refused(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["tests.death", *words.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2


def test_a_wait_is_looked_for_where_threads_are_made_to_meet() -> None:
    """In the census it may have been reached by accident, too."""
    by_chance: Census = {"Mmu.ended waited for": {"convert": 3, "fault meets invalidation": 1}}
    assert {(cell.scenario, cell.nth) for cell in cells(by_chance, everything=False)} == {
        ("fault meets invalidation", 1)
    }


def test_the_normal_run_leaves_out_no_point_and_no_fault_of_a_group() -> None:
    reached: Census = {name: {SCENARIOS[0].name: 1} for name, _ in NAMES}
    every = cells(reached, everything=False)
    chosen = sampled(every)
    assert len(chosen) < 0.6 * len(every)
    assert {cell.point for cell in chosen} == {cell.point for cell in every}
    assert {(group_of(c.point), c.fault, c.victim) for c in chosen} == {
        (group_of(c.point), c.fault, c.victim) for c in every
    }


@pytest.fixture(scope="module")
def census() -> Census:
    return Workers().census()


@pytest.mark.timeout(TIMEOUT_S)
def test_every_point_is_reached_or_it_is_said_why_not(census: Census) -> None:
    assert unexplained(census, page_map=True) == []


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_mistake_breaks_a_cell(defect: str) -> None:
    _, cell = DEFECTS[defect]
    assert Workers(1).run([cell])[cell].ok
    assert not Workers(1, defect).run([cell])[cell].ok


@pytest.mark.timeout(TIMEOUT_S)
def test_every_cell_holds(census: Census) -> None:
    wanted = cells(census, everything=True) if LONG else sampled(cells(census, everything=False))
    assert {cell.point for cell in wanted} == set(census)
    assert len(census) >= len(NAMES) - len(UNREACHABLE)
    results = Workers().run(wanted)
    SUMMARY.append(summary(results))
    broken = [f"{describe(cell)}: {outcome.text}" for cell, outcome in results.items() if not outcome.ok]
    assert broken == [], "\n".join(broken)
    unharmed = {c.point for c, outcome in results.items() if not outcome.harmed and c.fault in (Fault.KILL, Fault.CUT)}
    assert LONG or unharmed <= WITHOUT_CONNECTION


@pytest.mark.timeout(TIMEOUT_S)
def test_cells_hold_without_page_maps() -> None:
    """A few; every cell with MEMFSD_LONG=1."""
    workers = Workers(page_map=False)
    if LONG:
        census = workers.census()
        assert unexplained(census, page_map=False) == []
        wanted = cells(census, everything=True)
    else:
        wanted = [Cell(point, side, "punch", 2, fault, victim) for point, side, fault, victim in _ASKED]
    results = workers.run(wanted)
    SUMMARY.append(f"{summary(results)}, without page maps")
    broken = [f"{describe(cell)}: {outcome.text}" for cell, outcome in results.items() if not outcome.ok]
    assert broken == [], "\n".join(broken)
    assert LONG or all(outcome.harmed for outcome in results.values())
