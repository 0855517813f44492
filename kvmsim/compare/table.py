"""The results of a comparison, for people and for programs."""

from dataclasses import asdict
from typing import Any, NamedTuple

from memfsd.uapi.units import PAGE_SIZE, format_size

from .rig import Design, Measured


class Row(NamedTuple):
    """A workload under one design."""

    workload: str
    design: Design
    page_bytes: int
    measured: Measured


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


def _line(workload: str, design: str, page_size: str, cells: tuple[str, ...]) -> str:
    return f"{workload:10} {design:14} {page_size:5}" + "".join(f" {cell:>9}" for cell in cells)


def facts(row: Row) -> dict[str, Any]:
    """The row for JSON: times in microseconds, memory in bytes, the rest counts."""
    return {
        "workload": row.workload,
        "design": row.design.policy,
        "under": row.design.under if row.design.policy == "overlay" else None,
        "page_size": row.page_bytes,
        **asdict(row.measured),
        "lost_bytes": row.measured.lost_pages * PAGE_SIZE,
    }
