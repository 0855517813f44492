"""Which pages of a sealed file are bound at which GFNs, now and ever (R3, R4)."""

import errno
from bisect import bisect_left, bisect_right, insort
from dataclasses import dataclass, replace

from memfsd.uapi.errors import Refused
from memfsd.uapi.limits import MAX_BINDINGS_PER_FILE
from memfsd.uapi.units import Gfn, Pgoff


@dataclass(frozen=True, slots=True)
class Binding:
    """File pages [start, end) are GFNs [gfn, gfn + end - start) of memslot `slot`."""

    slot: int
    start: Pgoff
    end: Pgoff
    gfn: Gfn

    def gfn_of(self, pgoff: int) -> Gfn:
        assert self.start <= pgoff < self.end
        return Gfn(self.gfn + pgoff - self.start)


_LAST = 1 << 62
"""Above every page number."""


class Bindings:
    """Disjoint bindings of one file, sorted by page, and the history that fixes GFNs."""

    def __init__(self) -> None:
        self._sorted: list[Binding] = []
        self._starts: list[int] = []
        self._gfns: list[int] = []
        """First GFNs of the bindings, sorted, and in _gfn_ends where each ends: disjoint, one page a GFN (R4)."""
        self._gfn_ends: dict[int, int] = {}
        self._history = _History()

    def __len__(self) -> int:
        return len(self._sorted)

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(self._sorted)

    def find(self, pgoff: int) -> Binding | None:
        index = bisect_right(self._starts, pgoff) - 1
        if index >= 0:
            binding = self._sorted[index]
            if pgoff < binding.end:
                return binding
        return None

    def overlapping(self, start: int, end: int) -> list[Binding]:
        first = max(bisect_right(self._starts, start) - 1, 0)
        last = bisect_left(self._starts, end, lo=first)
        return [binding for binding in self._sorted[first:last] if binding.end > start]

    def bind(self, binding: Binding, *, fixed_gfn: bool) -> None:
        """EEXIST when a page is bound already, or a GFN stands for another page; EINVAL when a page was bound at
        another GFN before (R4)."""
        taken = self.overlapping(binding.start, binding.end)
        if taken:
            raise Refused(
                errno.EEXIST,
                f"file pages {binding.start:#x}-{binding.end:#x} overlap pages {taken[0].start:#x}-"
                f"{taken[0].end:#x} bound to slot {taken[0].slot}: delete that slot first",
            )
        gfn = self._taken_gfn(binding)
        if gfn is not None:
            raise Refused(
                errno.EEXIST, f"GFN {gfn:#x} stands for another page of this file already: delete that slot first"
            )
        if len(self._sorted) >= MAX_BINDINGS_PER_FILE:
            raise Refused(errno.ENOSPC, f"{MAX_BINDINGS_PER_FILE} bindings of one file are the limit")
        if fixed_gfn:
            self._history.fix(binding.start, binding.end, binding.gfn - binding.start)
        index = stop = bisect_right(self._starts, binding.start)
        if index and _continues(self._sorted[index - 1], binding):
            index -= 1
            binding = replace(self._sorted[index], end=binding.end)
        if stop < len(self._sorted) and _continues(binding, self._sorted[stop]):
            binding = replace(binding, end=self._sorted[stop].end)
            stop += 1
        self._replace(index, stop, [binding])

    def unbind(self, start: int, end: int) -> None:
        """Take [start, end) out; what remains of a binding around it stays. EINVAL if any page is not bound."""
        affected = self.overlapping(start, end)
        covered = sum(min(b.end, end) - max(b.start, start) for b in affected)
        if covered != end - start:
            raise Refused(errno.EINVAL, f"file pages {start:#x}-{end:#x} are not all bound")
        remains: list[Binding] = []
        for b in affected:
            if b.start < start:
                remains.append(Binding(b.slot, b.start, Pgoff(start), b.gfn))
            if b.end > end:
                remains.append(Binding(b.slot, Pgoff(end), b.end, b.gfn_of(end)))
        index = bisect_right(self._starts, affected[0].start) - 1
        self._replace(index, index + len(affected), remains)

    def clear(self) -> None:
        self._sorted.clear()
        self._starts.clear()
        self._gfns.clear()
        self._gfn_ends.clear()

    def moved(self) -> Binding | None:
        """A binding at another GFN than its pages had first; there is none where GFNs are fixed."""
        return next((b for b in self._sorted if not self._history.holds(b.start, b.end, b.gfn - b.start)), None)

    def _taken_gfn(self, binding: Binding) -> int | None:
        first, end = binding.gfn, binding.gfn + binding.end - binding.start
        index = bisect_right(self._gfns, first)
        if index and self._gfn_ends[self._gfns[index - 1]] > first:
            return first
        if index < len(self._gfns) and self._gfns[index] < end:
            return self._gfns[index]
        return None

    def _replace(self, index: int, stop: int, bindings: list[Binding]) -> None:
        for old in self._sorted[index:stop]:
            del self._gfns[bisect_left(self._gfns, old.gfn)], self._gfn_ends[old.gfn]
        for new in bindings:
            insort(self._gfns, new.gfn)
            self._gfn_ends[new.gfn] = new.gfn + new.end - new.start
        self._sorted[index:stop] = bindings
        self._starts[index:stop] = [b.start for b in bindings]


def _continues(first: Binding, second: Binding) -> bool:
    """A hole of a slot was filled again: its pieces are one binding, as they are one segment in the VM."""
    return first.slot == second.slot and first.end == second.start and first.gfn + first.end - first.start == second.gfn


class _History:
    """For each page that was ever bound: its GFN, kept as ranges of one distance GFN - page."""

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int, int]] = []

    def holds(self, start: int, end: int, distance: int) -> bool:
        """All of [start, end) is remembered at this distance."""
        index = bisect_right(self._ranges, (start, _LAST, 0)) - 1
        if index < 0:
            return False
        _, high, fixed = self._ranges[index]
        return end <= high and fixed == distance

    def fix(self, start: int, end: int, distance: int) -> None:
        index = max(bisect_right(self._ranges, (start, -1, 0)) - 1, 0)
        first = last = None
        for at in range(index, len(self._ranges)):
            low, high, fixed = self._ranges[at]
            if low > end:
                break
            if high < start:
                continue
            if fixed != distance:
                if low < end and high > start:
                    page = max(low, start)
                    raise Refused(
                        errno.EINVAL,
                        f"file page {page:#x} was bound at GFN {page + fixed:#x} before and can not be bound "
                        f"at {page + distance:#x} (fixed_gfn): use a new file, or mount with fixed_gfn=off",
                    )
                continue
            first = at if first is None else first
            last = at
            start, end = min(start, low), max(end, high)
        if first is None or last is None:
            at = bisect_right(self._ranges, (start, end, distance))
            if len(self._ranges) >= 4 * MAX_BINDINGS_PER_FILE:
                raise Refused(errno.ENOSPC, "this file's GFN history is full: use a new file")
            self._ranges.insert(at, (start, end, distance))
        else:
            self._ranges[first : last + 1] = [(start, end, distance)]
