"""The page map of a paired file: what its VM may read instead of asking by GET_PFN. Words of 8 bytes, little endian.

    word 0                      the gate
    word 1                      not 0: there are, or were, entries that cover more than one page
    word FIRST_WORD + page      an entry; 0 is a hole

An entry covers one page, or a contiguous run of 2 MiB or 1 GiB of the file, from the page that it is at, which is
aligned. A page is covered by one entry at most. A page without one has no frame, or one that takes more than reading to
get: it is asked for by GET_PFN.

The gate is twice the file's sequence number, plus one while an invalidation is open: entries count only while it is
twice the number that the last INVALIDATE_END, or PAIR, said.
"""

from .units import ORDER_1G, ORDER_2M, PAGE_SIZE

WORD_BYTES = 8
HEADER_BYTES = PAGE_SIZE
FIRST_WORD = HEADER_BYTES // WORD_BYTES
"""The gate has a separate page."""
GATE, HAS_BLOCKS = 0, 1
"""Words of the header."""
PRESENT = 1 << 63
"""State of an entry: granted."""
ORDER_SHIFT = 32
FRAME_MASK = (1 << ORDER_SHIFT) - 1
ORDER_MASK = 0xFF
CLOSED_FOR_GOOD = (1 << 64) - 1
"""A gate that no sequence number opens."""
ORDERS_DOWN = (ORDER_1G, ORDER_2M)
"""Of entries that cover more than a page, the largest first."""


def map_bytes(page_count: int) -> int:
    """Of the map of a file of so many pages."""
    return HEADER_BYTES + page_count * WORD_BYTES


def entry(pfn: int, order: int) -> int:
    return PRESENT | order << ORDER_SHIFT | pfn


def gate(seq: int, *, is_open: bool) -> int:
    """is_open: an invalidation is."""
    return seq << 1 | is_open
