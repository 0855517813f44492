"""Which pages of a sealed file are bound at which GFNs, now and ever (R3, R4)."""

import errno
from collections.abc import Iterator
from dataclasses import dataclass

from memfsd.common.intervals import IntervalMap, IntervalSet
from memfsd.uapi.errors import Refused
from memfsd.uapi.limits import MAX_BINDINGS_PER_FILE
from memfsd.uapi.units import Gfn, Pgoff

_STEP_BINDINGS = 64
"""Unbound in one step: two milliseconds where there are as many as there may be."""


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


class Bindings:
    """Disjoint bindings of one file, by page, and the history that fixes GFNs."""

    def __init__(self, limit: int = MAX_BINDINGS_PER_FILE) -> None:
        """limit: of bindings at once; of GFNs that are remembered, four times as many."""
        self._limit = limit
        self._pages: IntervalMap[tuple[int, int]] = IntervalMap()
        """(slot, GFN - page) of bound pages. A hole of a slot that was filled again is one binding with what is around
        it, as it is one segment in the VM."""
        self._last_found = (0, 0)
        """Where the page lay that `bound_until` was asked for: as a rule the next one does, too."""
        self._gfns = IntervalSet()
        self._history: IntervalMap[int] = IntervalMap()
        """GFN - page of every page that was ever bound."""

    def copy(self) -> "Bindings":
        other = Bindings(self._limit)
        other._pages, other._gfns, other._history = self._pages.copy(), self._gfns.copy(), self._history.copy()
        return other

    def __len__(self) -> int:
        return len(self._pages)

    def __iter__(self) -> Iterator[Binding]:
        """By page."""
        return (_binding(*found) for found in self._pages)

    def find(self, pgoff: int) -> Binding | None:
        found = self._pages.find(pgoff)
        return None if found is None else _binding(*found)

    def bound_until(self, pgoff: int) -> int | None:
        """Where the binding of this page ends; None when it is not bound."""
        start, end = self._last_found
        if start <= pgoff < end:
            return end
        found = self._pages.find(pgoff)
        if found is None:
            return None
        self._last_found = found[0], found[1]
        return found[1]

    def next_start(self, pgoff: int) -> int | None:
        """Where the first binding after this page begins."""
        return self._pages.next_start(pgoff)

    def first(self, start: int, end: int) -> Binding | None:
        """The first binding with a page in [start, end), whole."""
        found = self._pages.first(start, end)
        return None if found is None else _binding(*found)

    def overlapping(self, start: int, end: int) -> list[Binding]:
        """Bindings with a page in [start, end), whole."""
        return [_binding(*found) for found in self._pages.overlapping(start, end)]

    def bind(self, binding: Binding, *, fixed_gfn: bool, bound_twice: int = errno.EEXIST) -> None:
        """bound_twice (an errno) when a page is bound already; EEXIST when a GFN maps another page; EINVAL when a
        page was bound at another GFN before (R4)."""
        start, end, delta = binding.start, binding.end, binding.gfn - binding.start
        taken = self.first(start, end)
        if taken is not None:
            raise Refused(
                bound_twice,
                f"file pages {start:#x}-{end:#x} overlap pages {taken.start:#x}-"
                f"{taken.end:#x} bound to slot {taken.slot}: delete that slot first",
            )
        mapped = self._gfns.first(binding.gfn, end + delta)
        if mapped is not None:
            raise Refused(
                errno.EEXIST,
                f"GFN {mapped[0]:#x} is bound to another page of this file already: delete that slot first",
            )
        if len(self._pages) >= self._limit:
            raise Refused(errno.ENOSPC, f"{self._limit} bindings of one file are the limit: delete slots of it")
        if fixed_gfn:
            self._fix(start, end, delta)
        self._pages.put(start, end, (binding.slot, delta))
        self._last_found = (0, 0)
        self._gfns.add(binding.gfn, end + delta)

    def reach(self, start: int, end: int) -> int:
        """Up to where of [start, end) one `unbind` goes."""
        return self._pages.reach(start, end, _STEP_BINDINGS)

    def unbind(self, start: int, end: int) -> int:
        """Take [start, end) out, up to its `reach`; what remains of a binding around it stays. EINVAL if any page of
        all of it is not bound."""
        if not self._pages.covers(start, end):
            raise Refused(errno.EINVAL, f"file pages {start:#x}-{end:#x} are not all bound")
        self._last_found = (0, 0)
        reached = self.reach(start, end)
        for low, high, (_, delta) in self._pages.cut(start, reached):
            self._gfns.discard(low + delta, high + delta)
        return reached

    def clear(self) -> None:
        self._pages.clear()
        self._last_found = (0, 0)
        self._gfns.clear()

    def moved(self) -> Binding | None:
        """A binding at another GFN than its pages had first; there is none where GFNs are fixed."""
        for binding in self:
            start, end = binding.start, binding.end
            if self._history.within(start, end) != [(start, end, binding.gfn - start)]:
                return binding
        return None

    def _fix(self, start: int, end: int, delta: int) -> None:
        """The pages keep their GFNs from now on."""
        other = self._history.first_other(start, end, delta)
        if other is not None:
            page, fixed = max(other[0], start), other[2]
            raise Refused(
                errno.EINVAL,
                f"file page {page:#x} was bound at GFN {page + fixed:#x} before and cannot be bound "
                f"at {page + delta:#x} (fixed_gfn): use a new file, or mount with fixed_gfn=off",
            )
        if len(self._history) >= 4 * self._limit and self._history.first(start - 1, end + 1) is None:
            raise Refused(errno.ENOSPC, "this file's GFN history is full: use a new file")
        self._history.put(start, end, delta)


def _binding(start: int, end: int, value: tuple[int, int]) -> Binding:
    slot, delta = value
    return Binding(slot, Pgoff(start), Pgoff(end), Gfn(start + delta))
