"""Slots and cost against live conversions, as a picture."""

import errno
from typing import TYPE_CHECKING

from memfsd.uapi.errors import Refused
from memfsd.uapi.units import format_size

from .table import Row

if TYPE_CHECKING:
    pass


_STYLES = ("-", "--", ":", "-.")


def check_plot() -> None:
    """EOPNOTSUPP where matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401 - takes half a second, and only this needs it
    except ImportError:
        raise Refused(errno.EOPNOTSUPP, "--plot needs matplotlib: pip install 'memfsd[plot]'") from None


def draw(rows: list[Row], path: str) -> None:
    """Two panels of the misbehaving guest, one line for each design and page size. OSError, or EINVAL for a format
    that does not exist."""
    from matplotlib.figure import Figure

    figure: Figure = Figure(figsize=(9, 8), layout="constrained")
    slots, cost = figure.subplots(2, 1, sharex=True)
    for index, row in enumerate(row for row in rows if row.workload == "misbehave"):
        samples = row.measured.samples
        style = {
            "label": f"{row.design}, {format_size(row.page_bytes)} pages",
            "linestyle": ("-", "--", ":")[index % 3],
        }
        slots.plot([s.live for s in samples], [s.slots for s in samples], **style)
        cost.plot([s.live for s in samples], [s.conversion_us for s in samples], **style)
    slots.set_ylabel("memslots in use")
    slots.set_title("A guest that shares every second page")
    slots.legend(fontsize="small")
    cost.set_ylabel("one conversion (microseconds)")
    cost.set_xlabel("conversions that are live")
    cost.set_ylim(bottom=0)
    try:
        figure.savefig(path, dpi=120)
    except ValueError as error:
        raise Refused(errno.EINVAL, f"{path}: {error}") from None
