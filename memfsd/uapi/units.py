"""Pages, orders, sizes, and the integer types that must not be mixed."""

import re
from typing import TYPE_CHECKING, NewType, Self, overload

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT

ORDER_4K = 0
ORDER_2M = 9
ORDER_1G = 18
ORDERS = (ORDER_4K, ORDER_2M, ORDER_1G)

Ino = NewType("Ino", int)
"""Inode number."""
Seq = NewType("Seq", int)
"""Invalidation sequence number of one file; grows by one at each INVALIDATE_END."""

if TYPE_CHECKING:

    class _PageIndex(int):
        """For mypy alone: an index moved by a count, or masked, is an index; the distance of two is a count. At run
        time these are plain ints, and the path of a fault need not pay for calls that convert them."""

        def __add__(self, count: int, /) -> Self: ...
        @overload
        def __sub__(self, other: Self, /) -> int: ...  # type: ignore[overload-overlap]
        @overload
        def __sub__(self, count: int, /) -> Self: ...
        def __sub__(self, other: int, /) -> int: ...
        def __and__(self, mask: int, /) -> Self: ...
        def __or__(self, mask: int, /) -> Self: ...

    class Pgoff(_PageIndex):
        """Page index in a file (pages)."""

    class Pfn(_PageIndex):
        """Frame number in the store's pool: the EPFN of the thread (frames)."""

    class HostPfn(_PageIndex):
        """Frame number in the host of one VM, as its EPTs hold it: KVM's kvm_pfn_t. Those of a window are the store's
        Pfn plus the window's base."""

    class Gfn(_PageIndex):
        """Guest frame number, without the SHARED bit (pages)."""

else:
    Pgoff = NewType("Pgoff", int)
    Pfn = NewType("Pfn", int)
    HostPfn = NewType("HostPfn", int)
    Gfn = NewType("Gfn", int)

PgoffRange = tuple[Pgoff, Pgoff]
"""[start, end)."""
GfnRange = tuple[Gfn, Gfn]
"""[start, end)."""

_SUFFIX = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_MAX_SIZE_CHARS = 40
"""Far more digits than fit in any size."""
_SIZE = re.compile(r"(0[xX][0-9a-fA-F]+|[0-9]+)(?:([KMGTkmgt])(?:i?[bB])?)?")


FILE_SIZE_BITS = 63
"""off_t is signed."""
PGOFF_END = Pgoff(1 << FILE_SIZE_BITS - PAGE_SHIFT)
"""No file has pages from here on."""


def parse_size(text: str, bits: int = FILE_SIZE_BITS) -> int:
    """Bytes of "4096", "0x1000", "64M", "2GiB". ValueError names what is wrong."""
    match, shown = _SIZE.fullmatch(text), text[:_MAX_SIZE_CHARS]
    if not match:
        raise ValueError(f"'{shown}' is not a size: write bytes, or a number with K, M, G or T, or hex with 0x")
    digits, suffix = match.groups()
    base = 16 if digits[:2] in ("0x", "0X") else 10
    size = int(digits[:_MAX_SIZE_CHARS], base) * _SUFFIX[(suffix or "").upper()]
    if size >> bits:
        limit = "is larger than any file (2^63 - 1 bytes)" if bits == FILE_SIZE_BITS else f"does not fit in {bits} bits"
        raise ValueError(f"'{shown}' {limit}")
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
