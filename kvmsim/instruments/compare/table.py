"""The results of a comparison, for people and for programs."""

from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from memfsd.uapi.units import PAGE_SIZE, format_size

from .costs import Cost
from .rig import Design, Measured
from .workloads import COSTS


class Row(NamedTuple):
    """A workload under one design."""

    workload: str
    design: Design
    abi: str
    page_bytes: int
    measured: Measured


@dataclass(slots=True)
class Results:
    """skipped: a line for each thing that could not be measured here."""

    rows: list[Row] = field(default_factory=list)
    costs: list[Cost] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


_COLUMNS = ("CONVERTED", "US EACH", "SLOTS", "ZAPPED", "FLUSHES", "MESSAGES", "EXITS", "LOST", "DOUBLED")
LEGEND = """\
CONVERTED conversions done; US EACH their median time; SLOTS the most memslots at once, of both spaces;
ZAPPED EPT entries; FLUSHES of TLBs; MESSAGES between user space, KVM and the store; LOST private pages whose
data was destroyed although nobody converted them; DOUBLED the most memory held twice, shared and private"""


def text(rows: list[Row]) -> str:
    """One line a row; a workload that was stopped says why below its line."""
    lines = [_line("WORKLOAD", "DESIGN", "PAGES", _COLUMNS)]
    for row in rows:
        m = row.measured
        doubled = format_size(m.doubled_bytes_peak)
        counts = (m.slots_peak, m.zapped, m.tlb_flushes, m.store_messages, m.exits, m.lost_pages)
        cells = (str(m.conversions), f"{m.conversion_us:.0f}", *map(str, counts), doubled)
        lines.append(_line(row.workload, str(row.design), format_size(row.page_bytes), cells))
        if m.stopped:
            lines.append(f"{'':10} stopped: {m.stopped}")
    return "\n".join([*lines, "", LEGEND])


COST_LEGEND = """\
US EACH the time of one page of that size, of COUNT that were done at once; X TOUCH compared with the first touch of
as much memory without encryption, in the same run"""


def cost_cells(cost: Cost) -> tuple[str, ...]:
    memory = "encrypted" if cost.encrypted else "plain"
    us_each, times = f"{cost.us_each:.1f}", f"{cost.times_touch:.2f}"
    return cost.operation, memory, format_size(cost.page_bytes), str(cost.page_count), us_each, times


def cost_text(costs: list[Cost]) -> str:
    lines = [("A PAGE'S", "MEMORY", "PAGES", "COUNT", "US EACH", "X TOUCH"), *map(cost_cells, costs)]
    shown = [
        f"{what:12} {memory:10} {size:5}" + "".join(f" {cell:>9}" for cell in cells)
        for what, memory, size, *cells in lines
    ]
    return "\n".join([*shown, "", COST_LEGEND])


def cost_facts(cost: Cost) -> dict[str, Any]:
    """For JSON; times in microseconds."""
    return {
        "workload": COSTS,
        "design": None,
        "operation": cost.operation,
        "memory_encryption": cost.encrypted,
        "page_size": cost.page_bytes,
        "pages": cost.page_count,
        "us_each": cost.us_each,
        "times_touch": cost.times_touch,
    }


def _line(workload: str, design: str, page_size: str, cells: tuple[str, ...]) -> str:
    return f"{workload:10} {design:14} {page_size:5}" + "".join(f" {cell:>9}" for cell in cells)


def facts(row: Row) -> dict[str, Any]:
    """The row for JSON: times in microseconds, memory in bytes, the rest counts."""
    return {
        "workload": row.workload,
        "design": row.design.policy,
        "under": row.design.under if row.design.policy == "overlay" else None,
        "abi": row.abi,
        "page_size": row.page_bytes,
        **asdict(row.measured),
        "lost_bytes": row.measured.lost_pages * PAGE_SIZE,
    }
