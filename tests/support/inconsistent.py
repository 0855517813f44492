"""States that no call produces, for tests of what finds them."""

from memfsd.core.private.bindings import Bindings


def overlap_last(bindings: Bindings, start: int, end: int, value: tuple[int, int]) -> None:
    """Appends file pages [start, end) as (slot, GFN - page), although an earlier binding holds some of them."""
    bindings._pages._starts.append(start)
    bindings._pages._ends.append(end)
    bindings._pages._values.append(value)
