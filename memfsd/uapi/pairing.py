"""The table of states and legal messages of both channels.

It does not know which role it plays and does no I/O: memfsd steps it with what arrives, kvmsim with what it
sends, and docs/wire.md is rendered from it.
"""

from enum import Enum

from .messages import Kind


class State(Enum):
    """Of a channel."""

    # A member is equal to itself alone; Enum's own hash is Python code, on the path of every fault.
    __hash__ = object.__hash__

    CONNECTED = "connected"
    """Down channel open, nothing said yet."""
    GREETED = "greeted"
    """HELLO exchanged as a guest; the token is due before the greeting deadline."""
    PAIRED = "paired"
    """The file belongs to this VM, for life: also after BYE, when it alone may pair again, on another connection.
    If it never bound a page, BYE makes the file nobody's again."""
    OBSERVING = "observing"
    """HELLO exchanged as an observer."""
    UP_OPEN = "up: open"
    """Up channel, no invalidation open."""
    UP_CLOSING = "up: closing"
    """Up channel between INVALIDATE_BEGIN, or MOVE, and INVALIDATE_END."""
    ENDED = "ended"


LEGAL: dict[State, dict[Kind, State]] = {
    # HELLO moves on to OBSERVING instead of GREETED when its role is OBSERVER.
    State.CONNECTED: {Kind.HELLO: State.GREETED},
    State.GREETED: {
        Kind.PAIR: State.PAIRED,
        Kind.PING: State.GREETED,
        Kind.BYE: State.ENDED,
    },
    State.PAIRED: {
        Kind.BIND: State.PAIRED,
        Kind.UNBIND: State.PAIRED,
        Kind.GET_PFN: State.PAIRED,
        Kind.STAT: State.PAIRED,
        Kind.ATTRIBUTES: State.PAIRED,
        Kind.PING: State.PAIRED,
        Kind.BYE: State.ENDED,
    },
    State.OBSERVING: {
        Kind.CHECK: State.OBSERVING,
        Kind.MAP: State.OBSERVING,
        Kind.LIST: State.OBSERVING,
        Kind.KCORE: State.OBSERVING,
        Kind.MEMORY_FAILURE: State.OBSERVING,
        Kind.DEVICE_ADD: State.OBSERVING,
        Kind.DEVICE_REMOVE: State.OBSERVING,
        Kind.PAGE_OUT: State.OBSERVING,
        Kind.SWAP_OFF: State.OBSERVING,
        Kind.SET_NODE: State.OBSERVING,
        Kind.COMPACT: State.OBSERVING,
        Kind.PING: State.OBSERVING,
        Kind.BYE: State.ENDED,
    },
    State.UP_OPEN: {
        Kind.INVALIDATE_BEGIN: State.UP_CLOSING,
        Kind.MOVE: State.UP_CLOSING,
        Kind.SWAP_IN: State.UP_OPEN,
        Kind.REPORT: State.UP_OPEN,
        Kind.REVOKE: State.ENDED,
    },
    State.UP_CLOSING: {
        Kind.INVALIDATE_END: State.UP_OPEN,
        Kind.SWAP_OUT: State.UP_CLOSING,
        Kind.SWAP_IN: State.UP_CLOSING,
        Kind.REPORT: State.UP_CLOSING,
        Kind.REVOKE: State.ENDED,
    },
    State.ENDED: {},
}


def next_state(state: State, kind: Kind) -> State | None:
    """The state after a message of this kind was answered well, or None when it is not legal."""
    return LEGAL[state].get(kind)
