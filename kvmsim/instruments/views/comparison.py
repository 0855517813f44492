"""`kvmsim compare --html`: the results as a page."""

from collections.abc import Callable

from kvmsim.instruments.compare.table import COST_LEGEND, LEGEND, Results, Row, cost_cells
from memfsd.uapi.units import format_size

from . import charts
from .page import Fact, Page, Section, measured_to_page

_COLUMNS = (
    "workload", "design", "pages", "converted", "us each", "slots", "zapped", "flushes", "messages", "exits",
    "lost", "held twice", "stopped",
)  # fmt: skip
_COST_COLUMNS = ("operation", "memory", "pages", "count", "us each", "x touch")
_DRAWN = "misbehave"


def compared(path: str, plot: str | None, compare: Callable[[Callable[[Results], None]], int]) -> int:
    """Compare, and write the page when all is measured. plot: where the picture goes. Exit status."""
    return measured_to_page(path, (plot,), compare, _page)


def _page(results: Results) -> Page:
    rows = results.rows
    page = Page("kvmsim: designs of conversion compared", "The same guests over all designs and page sizes.")
    lost = sum(row.measured.lost_pages for row in rows)
    doubled = max((row.measured.doubled_bytes_peak for row in rows), default=0)
    page.facts = [
        Fact("rows", str(len(rows))),
        Fact("pages lost", str(lost), bad=lost > 0),
        Fact("held twice, at the worst", format_size(doubled), bad=doubled > 0),
    ]
    page.warnings = [f"{row.workload}, {row.design}: {row.measured.stopped}" for row in rows if row.measured.stopped]
    page.warnings += results.skipped
    cost = {
        f"{row.design}, {format_size(row.page_bytes)} pages": [
            (float(s.live), s.conversion_us) for s in row.measured.samples
        ]
        for row in rows
        if row.workload == _DRAWN
    }
    drawn = charts.lines(cost, "conversions that are live", "one conversion (us)") if any(cost.values()) else ""
    page.sections = [
        Section("Results", LEGEND, "", _COLUMNS, [_cells(row) for row in rows], (0, 1, 2, 12)),
        Section("A guest that shares every second page", "What one conversion costs, as more are live.", drawn),
        Section("A private page", COST_LEGEND, "", _COST_COLUMNS, [*map(cost_cells, results.costs)], (0, 1, 2)),
    ]
    return page


def _cells(row: Row) -> tuple[str, ...]:
    m = row.measured
    counts = (m.slots_peak, m.zapped, m.tlb_flushes, m.store_messages, m.exits, m.lost_pages)
    return (
        row.workload,
        str(row.design),
        format_size(row.page_bytes),
        str(m.conversions),
        f"{m.conversion_us:.0f}",
        *map(str, counts),
        format_size(m.doubled_bytes_peak),
        m.stopped or "",
    )
