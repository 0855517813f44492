"""What a frame of the pool is used for."""

from enum import IntEnum


class FrameState(IntEnum):
    """What a frame is used for, or waits for."""

    FREE = 0
    SHARED = 1
    """Data of an ordinary file."""
    PRIVATE = 2
    """Guest private memory, touched or allocated on purpose."""
    PENDING = 3
    """Granted ahead of the guest and never touched: the first to be given back."""
    CLOSING = 4
    """An invalidation is open, or the contents are being scrubbed."""
    QUARANTINED = 5
    """A peer that is alive but silent may still reach it."""
    POISONED = 6
    """Its memory failed: out of service."""
    DEVICE = 7
    """Memory of a device, outside the pool: never zeroed, moved or freed."""
    MOVING = 8
    """A page's contents are on the way into it: only the store and KVM know it."""
    LEAKED = 9
    """It could not be reclaimed: out of service."""
    OFFLINE = 10
    """Set aside: its node is offline, or the block around it is being emptied."""


SWAPPED = 256
"""What `memfs map` says of a page that has no frame, and its contents in the swap file."""


def state_name(number: int) -> str:
    """As shown to people; the number itself when it is of a newer store."""
    if number == SWAPPED:
        return "swapped"
    try:
        return FrameState(number).name.lower()
    except ValueError:
        return str(number)
