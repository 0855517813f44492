"""Private pages that are unmapped and keep their contents, as TDH.MEM.RANGE.BLOCK leaves them."""

from .ranges import RangeSet
from .runs import Run
from .segments import SegmentIndex

Range = tuple[int, int]


class BlockedPages:
    """By GFN: the frame that holds the page, and whether the guest has touched it. A step takes log(n) and what it
    returns; n are the ranges that were blocked at once."""

    def __init__(self) -> None:
        self._index: SegmentIndex[tuple[int, bool]] = SegmentIndex()
        """(frame - GFN, touched) of ranges of GFNs."""

    def __len__(self) -> int:
        """Ranges."""
        return len(self._index)

    def add(self, run: Run, touched: list[Range]) -> None:
        """touched: GFN ranges. What was touched when it was blocked before stays touched."""
        gfn, pfn, count = run
        marks = RangeSet()
        for low, high in touched + [(start, start + size) for (start, _, size), was in self.take(*_span(run)) if was]:
            marks.add(low, high)
        at, end, apart = gfn, gfn + count, pfn - gfn
        for low, high in [*marks.ranges(gfn, end), (end, end)]:
            if at < low:
                self._index.add((apart, False), at, low)
            if low < high:
                self._index.add((apart, True), low, high)
            at = high

    def take(self, start: int, end: int) -> list[tuple[Run, bool]]:
        """Take the pages of [start, end) out: runs, and whether they were touched."""
        taken = []
        for mark, low, high in list(self._index.overlapping(start, end)):
            self._index.remove(low)
            for first, last in ((low, start), (end, high)):
                if first < last:
                    self._index.add(mark, first, last)
            first, last = max(low, start), min(high, end)
            taken.append(((first, first + mark[0], last - first), mark[1]))
        return taken

    def take_untouched(self, start: int, end: int) -> list[Range]:
        """Take out what nobody touched; the ranges that stay."""
        stay = []
        for run, touched in self.take(start, end):
            if touched:
                self.add(run, [_span(run)])
                stay.append(_span(run))
        return stay

    def runs(self, start: int, end: int) -> list[Run]:
        """What of [start, end) is blocked, with its frames."""
        found = []
        for (apart, _), low, high in self._index.overlapping(start, end):
            first, last = max(low, start), min(high, end)
            found.append((first, first + apart, last - first))
        return found

    def ranges(self, start: int, end: int) -> list[Range]:
        """What of [start, end) is blocked."""
        return [(max(low, start), min(high, end)) for _, low, high in self._index.overlapping(start, end)]


def _span(run: Run) -> Range:
    return run[0], run[0] + run[2]
