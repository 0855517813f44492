"""Private pages that are unmapped and keep their contents, as TDH.MEM.RANGE.BLOCK leaves them."""

from memfsd.common.intervals import IntervalMap, IntervalSet
from memfsd.uapi.units import Gfn, GfnRange, HostPfn

from .runs import Run


class BlockedPages:
    """By GFN: the frame that holds the page, and whether the guest has touched it. A step takes log(n) and what it
    returns; n are the ranges that were blocked at once."""

    def __init__(self) -> None:
        self._index: IntervalMap[tuple[int, bool]] = IntervalMap()
        """(frame - GFN, touched) of ranges of GFNs."""
        self._deltas: IntervalMap[int] = IntervalMap()
        """The same by frame: frame - GFN. A frame holds one page."""

    def __len__(self) -> int:
        """Ranges."""
        return len(self._index)

    def add(self, run: Run, touched: list[GfnRange]) -> None:
        """touched: GFN ranges. What was touched when it was blocked before stays touched."""
        gfn, pfn, count = run
        end, delta = gfn + count, int(pfn) - gfn
        marks = IntervalSet([*touched, *(_span(was) for was, was_touched in self.take(gfn, end) if was_touched)])
        self.claim(gfn, pfn, count)
        self._deltas.put(pfn, pfn + count, delta)
        self._index.put(gfn, end, (delta, False))
        for low, high in marks.within(gfn, end):
            self._index.put(low, high, (delta, True))

    def take(self, start: Gfn, end: Gfn) -> list[tuple[Run, bool]]:
        """Take the pages of [start, end) out: runs, and whether they were touched."""
        taken = []
        for low, high, (delta, touched) in self._index.cut(start, end):
            self._deltas.cut(low + delta, high + delta)
            taken.append(((low, HostPfn(low + delta), high - low), touched))
        return taken

    def claim(self, gfn: Gfn, pfn: HostPfn, count: int) -> None:
        """These frames hold these pages from now on. The store takes back without a call what is not bound: whatever
        else was blocked in them is theirs no more, and they must not be destroyed for it."""
        wanted = int(pfn) - gfn
        for low, high, delta in self._deltas.within(pfn, pfn + count):
            if delta != wanted:
                self.take(Gfn(low - delta), Gfn(high - delta))

    def take_untouched(self, start: Gfn, end: Gfn) -> list[GfnRange]:
        """Take out what nobody touched; the ranges that stay."""
        stay = []
        for run, touched in self.take(start, end):
            if touched:
                self.add(run, [_span(run)])
                stay.append(_span(run))
        return stay

    def runs(self, start: Gfn, end: Gfn) -> list[Run]:
        """What of [start, end) is blocked, with its frames."""
        return [(low, HostPfn(low + delta), high - low) for low, high, (delta, _) in self._index.within(start, end)]

    def ranges(self, start: Gfn, end: Gfn) -> list[GfnRange]:
        """What of [start, end) is blocked."""
        return [(low, high) for low, high, _ in self._index.within(start, end)]


def _span(run: Run) -> GfnRange:
    return run[0], run[0] + run[2]
