"""What is measured, how it is judged, and how it is shown."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Part = float | int | str
Parts = Mapping[str, Part]


def spread(ratios: Sequence[float]) -> Parts:
    """The parts of a figure that is the median of these."""
    return {"ratio_lowest": min(ratios), "ratio_highest": max(ratios)}


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table. at_most: the target is an upper bound; a target of None demands nothing. value is None,
    with a reason, when it cannot be had here; parts are what it was made of, then as far as they could be measured."""

    what: str
    unit: str
    target: float | None
    at_most: bool
    value: float | None
    parts: Parts = field(default_factory=dict)
    reason: str = ""

    @property
    def holds(self) -> bool | None:
        if self.value is None or self.target is None:
            return None
        return self.value <= self.target if self.at_most else self.value >= self.target

    def as_json(self) -> dict[str, object]:
        shown: dict[str, object] = {
            "what": self.what,
            "value": None if self.value is None else _rounded(self.value),
            "target": self.target,
            "holds": self.holds,
            "unit": self.unit,
            "parts": {name: _rounded(part) for name, part in self.parts.items()},
        }
        return shown | {"reason": self.reason} if self.reason else shown


def table(figures: Mapping[str, Figure], machine: Mapping[str, object]) -> str:
    """The figures as text, each with its parts below it, and the machine at the end."""
    lines = []
    for name, figure in figures.items():
        value = "-" if figure.value is None else f"{figure.value:.2f}"
        target = "-" if figure.target is None else f"{'<=' if figure.at_most else '>='} {figure.target:g}"
        unjudged = "not measured" if figure.value is None else "no target"
        verdict = {True: "holds", False: "DOES NOT HOLD", None: unjudged}[figure.holds]
        lines.append(f"{name}  {value:>6}  {target:<6}  {verdict:<13}  {figure.what} ({figure.unit})")
        if figure.reason:
            lines.append(f"    {figure.reason}")
        lines += [f"    {part:<28} {_rounded(amount)}" for part, amount in figure.parts.items()]
    lines.append("machine: " + ", ".join(f"{name} {value}" for name, value in machine.items()))
    return "\n".join(lines)


def _rounded(part: Part) -> Part:
    if not isinstance(part, float):
        return part
    return round(part, 3) if abs(part) < 1000 else round(part)


class Progress:
    """One line on stderr: rewritten on a terminal, else one a figure."""

    def __init__(self) -> None:
        self._rewrites = sys.stderr.isatty()
        self._figure = ""

    def figure(self, name: str) -> None:
        self._figure = name
        if not self._rewrites:
            print(f"bench: measuring {name}", file=sys.stderr, flush=True)

    def round(self, number: int, count: int) -> None:
        if self._rewrites:
            print(f"\r\033[Kbench: {self._figure}, round {number} of {count}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        if self._rewrites:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
