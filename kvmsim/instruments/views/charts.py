"""Pictures of a report, as SVG to put into its page. Only this loads matplotlib."""

import io
import re
from collections.abc import Callable
from typing import Any

from memfsd.uapi.units import format_size

from .history import History

_PRIVATE, _SHARED, _TWICE = "#3465a4", "#4e9a06", "#cc0000"
_COLOURS = {
    "mapped": _PRIVATE,
    "granted": "#ad7fa8",
    "freed": "#888a85",
    "shared": _SHARED,
    "held twice": _TWICE,
}
_MOST_BANDS = 2000
_MOST_POINTS = 2000
_PARTS = (
    ("zap_us", "zap", "#3465a4"),
    ("flush_us", "flush", "#c17d11"),
    ("kick_us", "kick", "#f57900"),
    ("ack_us", "acknowledge", "#4e9a06"),
    ("free_us", "free", "#75507b"),
)
_MOST_BARS = 60


def slots(history: History) -> str:
    """Slots over GPAs as bands over time."""
    return _drawn(4.2, lambda axes: _slots(axes, history))


def memory(history: History) -> str:
    """Curves of what is mapped, held twice and so on."""
    return _drawn(3.2, lambda axes: _memory(axes, history))


def invalidations(history: History) -> str:
    """Each with its parts."""
    return _drawn(3.2, lambda axes: _invalidations(axes, history))


def lines(curves: dict[str, list[tuple[float, float]]], across: str, up: str) -> str:
    """Several curves of plain numbers."""

    def draw(axes: Any) -> None:
        for name, points in curves.items():
            marker = "o" if len(points) == 1 else None  # a line of one point is none
            axes.plot([x for x, _ in points], [y for _, y in points], label=name, marker=marker)
        axes.set_xlabel(across)
        axes.set_ylabel(up)
        axes.legend(fontsize="small")

    return _drawn(3.6, draw)


def _drawn(height: float, draw: Callable[[Any], None]) -> str:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "svg.hashsalt": "kvmsim"}):
        figure: Figure = Figure(figsize=(9, height), layout="constrained")
        axes = figure.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None}, transparent=True)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    return re.sub(
        r'<svg ([^>]*?)width="[^"]*"',
        r"<svg \1",
        re.sub(r'<svg ([^>]*?)height="[^"]*"', r"<svg \1", svg, count=1),
        count=1,
    )


def _slots(axes: Any, history: History) -> None:
    from matplotlib.collections import PolyCollection

    bands, seconds = history.bands[:_MOST_BANDS], history.seconds
    least = max(seconds, 1e-6) / 300
    for private, colour, name in ((True, _PRIVATE, "private"), (False, _SHARED, "shared")):
        shown = [band for band in bands if band.private is private]
        if not shown:
            continue
        shapes = [
            [
                (b.start, b.low),
                (max(b.end, b.start + least), b.low),
                (max(b.end, b.start + least), b.high),
                (b.start, b.high),
            ]
            for b in shown
        ]
        axes.add_collection(
            PolyCollection(shapes, facecolors=colour, edgecolors="white", linewidths=0.3, alpha=0.65, label=name)
        )
    axes.autoscale_view()
    axes.set_xlim(history.begin, max(seconds, history.begin + 1e-6))
    _binary_ticks(axes, max((band.high for band in bands), default=0))
    axes.set_xlabel("seconds")
    axes.set_ylabel("guest physical address")
    axes.yaxis.set_major_formatter(lambda value, _: f"{int(value):#x}" if value >= 0 else "")
    axes.legend(loc="upper right", fontsize="small")


def _binary_ticks(axes: Any, most: int) -> None:
    """At most eight, at multiples of a power of two."""
    from matplotlib.ticker import MultipleLocator

    axes.yaxis.set_major_locator(MultipleLocator(1 << max((most >> 3).bit_length(), 12)))


def _memory(axes: Any, history: History) -> None:
    for name, points in sorted(history.curves.items()):
        step = max(len(points) // _MOST_POINTS, 1)
        chosen = [(0.0, 0.0), *points[::step], points[-1], (history.seconds, points[-1][1])]
        axes.step(
            [x for x, _ in chosen],
            [y for _, y in chosen],
            where="post",
            label=name,
            color=_COLOURS.get(name),
            linewidth=2.2 if name == "held twice" else 1.2,
        )
    axes.set_xlabel("seconds")
    axes.set_ylim(bottom=0)
    axes.set_xlim(history.begin, max(history.seconds, history.begin + 1e-6))
    _binary_ticks(axes, int(max(y for points in history.curves.values() for _, y in points)))
    axes.yaxis.set_major_formatter(lambda value, _: format_size(int(value)))
    axes.legend(loc="upper left", fontsize="small")


def _invalidations(axes: Any, history: History) -> None:
    step = max(len(history.invalidations) // _MOST_BARS, 1)
    chosen = history.invalidations[::step]
    below = [0.0] * len(chosen)
    for part, name, colour in _PARTS:
        heights = [float(getattr(one, part) or 0) for one in chosen]
        axes.bar(range(len(chosen)), heights, bottom=below, label=name, color=colour, width=0.8)
        below = [low + height for low, height in zip(below, heights, strict=True)]
    axes.set_ylabel("microseconds")
    axes.set_xlabel("invalidations, in order" + (f", every {step}th" if step > 1 else ""))
    axes.set_xticks([])
    axes.legend(fontsize="small")
