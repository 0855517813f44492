"""Large pages of a file, whole or split.

A page of 2 MiB or 1 GiB is *whole* while its frames lie together and aligned: then it may be one leaf. It is *split*
once a part of it was punched. Nothing else remembers that: holes of a split page are filled with single frames, in
their old places if these are free, and a page that is complete again in contiguous frames is whole.
"""

from memfsd.uapi.units import ORDER_2M, ORDER_4K, Pfn

from .page_table import FilePages


def whole_order(pages: FilePages, pgoff: int, order: int) -> int:
    """Of the largest whole page around this one, in a file with pages of `order`; 0 when it is in a split one."""
    while order:
        size = 1 << order
        run = pages.run_at(pgoff & -size, size)
        if run is not None and run[1] == size and run[0] & size - 1 == 0:
            return order
        order = ORDER_2M if order > ORDER_2M else ORDER_4K
    return ORDER_4K


def is_empty(pages: FilePages, pgoff: int, order: int) -> bool:
    """No part of the large page around this one has a frame."""
    first = pgoff & -(1 << order)
    return pages.count_mapped(first, first + (1 << order)) == 0


def place_of(pages: FilePages, pgoff: int, order: int) -> Pfn | None:
    """Where a hole of a split page would be if the page were whole: in line with what is left of it."""
    for size in (1 << ORDER_2M, 1 << order):
        first = pgoff & -size
        left = next(pages.extents(first, first + size), None)
        if left is not None:
            base = left[1] - (left[0] - first)
            return Pfn(base + pgoff - first) if base >= 0 and base & size - 1 == 0 else None
    return None


def count_cut(pages: FilePages, start: int, end: int, order: int) -> int:
    """Whole pages that [start, end) covers in part: they are split when that range goes."""
    cut = set()
    for at, inside in ((start, start), (end, end - 1)):
        found = whole_order(pages, inside, order)
        if at & (1 << found) - 1:
            cut.add((found, inside >> found))
    return len(cut)
