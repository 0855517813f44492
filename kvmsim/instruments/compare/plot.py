"""Slots and cost against live conversions, as a picture."""

import errno
from collections.abc import Collection
from pathlib import Path

from kvmsim.instruments.outputfile import OutputFile
from memfsd.common.quote import quoted
from memfsd.uapi.errors import Refused
from memfsd.uapi.units import format_size

from .table import Row

DRAWN = "misbehave"
"""The workload that is drawn: the others have few conversions live."""
_TITLE = "kvmsim compare"
"""In a picture that may be replaced."""
_TITLED = ("png", "svg")
"""Formats that have a title, and have it first."""


def plot_file(path: str, workloads: Collection[str]) -> OutputFile:
    """Before anything is measured. EOPNOTSUPP (Refused) where matplotlib is not installed; EINVAL for a format that
    does not exist, or nothing to draw; what OutputFile says of the place."""
    try:
        from matplotlib.figure import Figure  # takes half a second, and only this needs it
    except ImportError:
        way_out = "install it (pip install matplotlib), or leave --plot out"
        raise Refused(errno.EOPNOTSUPP, f"--plot needs matplotlib: {way_out}") from None
    formats = Figure().canvas.get_supported_filetypes()
    suffix, shown = _suffix(path), quoted(path)
    if suffix not in formats:
        raise Refused(errno.EINVAL, f"--plot {shown}: '{suffix}' is not a format: choose {', '.join(sorted(formats))}")
    file = OutputFile(path, "a picture of kvmsim compare", lambda head: _TITLE.encode() in head)
    file.refuse_unusable()
    if DRAWN not in workloads:
        raise Refused(errno.EINVAL, f"--plot draws workload {DRAWN}, which --workloads leaves out: add it there")
    return file


def _suffix(path: str) -> str:
    return Path(path).suffix[1:].lower()


def draw(rows: list[Row], to: OutputFile) -> None:
    """Two panels of the misbehaving guest, one line for each design and page size. OSError; Refused."""
    from matplotlib.figure import Figure

    figure: Figure = Figure(figsize=(9, 8), layout="constrained")
    slots, cost = figure.subplots(2, 1, sharex=True)
    for index, row in enumerate(row for row in rows if row.workload == DRAWN):
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
    kind = _suffix(to.path)
    with to.opened() as file:
        figure.savefig(file, format=kind, dpi=120, metadata={"Title": _TITLE} if kind in _TITLED else None)
