"""Flat or not: what the daemon holds when all guests are gone, against what it held after the first epoch."""

from soaklib.daemon import Levels

BOUNDS = Levels(rss_kib=16 * 1024, fds=0, threads=8)
"""How far above the first level the others may lie. Threads: a pool that ends its idle ones after ten seconds."""


class Curve:
    def __init__(self) -> None:
        self.levels: list[Levels] = []

    def add(self, levels: Levels) -> None:
        self.levels.append(levels)

    def fits(self, levels: Levels) -> bool:
        """No higher than the first level and its bounds."""
        return not self.levels or not self._above(levels)

    def rises(self) -> list[str]:
        """What is not flat: one line for each quantity that ended too high."""
        return self._above(self.levels[-1]) if self.levels else []

    def _above(self, levels: Levels) -> list[str]:
        first = self.levels[0]
        return [
            f"{name} rose from {low} to {high} in {len(self.levels)} epochs; {bound} more are allowed"
            for name, low, high, bound in zip(Levels._fields, first, levels, BOUNDS, strict=True)
            if high > low + bound
        ]
