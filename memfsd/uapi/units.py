"""Pages, orders, sizes, and the integer types that must not be mixed."""

import re
from typing import NewType

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT

ORDER_4K = 0
ORDER_2M = 9
ORDER_1G = 18
ORDERS = (ORDER_4K, ORDER_2M, ORDER_1G)

Ino = NewType("Ino", int)
"""Inode number."""
Pgoff = NewType("Pgoff", int)
"""Page index in a file (pages)."""
Pfn = NewType("Pfn", int)
"""Frame number in the store's pool: the EPFN of the thread (frames)."""
Gfn = NewType("Gfn", int)
"""Guest frame number, without the SHARED bit (pages)."""
Seq = NewType("Seq", int)
"""Invalidation sequence number of one file; grows by one at each INVALIDATE_END."""

_SUFFIX = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"(0[xX][0-9a-fA-F]+|[0-9]+)(?:([KMGTkmgt])(?:i?[bB])?)?")


FILE_SIZE_BITS = 63
"""off_t is signed."""
PGOFF_END = Pgoff(1 << FILE_SIZE_BITS - PAGE_SHIFT)
"""No file has pages from here on."""


def parse_size(text: str, bits: int = FILE_SIZE_BITS) -> int:
    """Bytes of "4096", "0x1000", "64M", "2GiB". ValueError names what is wrong."""
    match = _SIZE.fullmatch(text)
    if not match:
        raise ValueError(f"'{text}' is not a size: write bytes, or a number with K, M, G or T, or hex with 0x")
    digits, suffix = match.groups()
    base = 16 if digits[:2] in ("0x", "0X") else 10
    size = int(digits, base) * _SUFFIX[(suffix or "").upper()]
    if size >> bits:
        limit = "is larger than any file (2^63 - 1 bytes)" if bits == FILE_SIZE_BITS else f"does not fit in {bits} bits"
        raise ValueError(f"'{text}' {limit}")
    return size


def format_size(size_bytes: int) -> str:
    """The shortest exact spelling: 4096 -> "4K", 4097 -> "4097"."""
    for suffix in "TGMK":
        unit = _SUFFIX[suffix]
        if size_bytes >= unit and size_bytes % unit == 0:
            return f"{size_bytes // unit}{suffix}"
    return str(size_bytes)


def order_of_page_size(size_bytes: int) -> int:
    """Order of a page size; ValueError names the sizes that exist."""
    for order in ORDERS:
        if size_bytes == PAGE_SIZE << order:
            return order
    raise ValueError(f"page size {format_size(size_bytes)} does not exist: choose 4K, 2M or 1G")


def page_aligned(value_bytes: int, order: int = ORDER_4K) -> bool:
    return value_bytes & ((PAGE_SIZE << order) - 1) == 0
