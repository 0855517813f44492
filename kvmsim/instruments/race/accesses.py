"""What a step touches, and which steps commute.

Two steps of different tasks are *dependent* when they touch one thing in ways that do not commute. Only the order of
dependent steps makes a difference; a schedule's equivalence class is the order of its dependent steps. The things:

    lock        taken, released            event       set, cleared, waited for
    queue       one direction of a connection: sent to, received from, shut
    process     read by each of its steps that others can see (a queue, a frame, a system call); a kill or a stop
                writes it. What dies with a process, or is stopped with it, needs no order to that
    frame       of a window: the guest's accesses, the punch that zeroes it
    folio       of the kernel's cache of a mapped file: locked, unlocked
    ept, tlb    each mapping, zap, fill, flush, lookup
    field       a field that is used without a lock (points.FIELDS)
"""

from enum import Enum

Key = tuple[str, str]
"""What kind of thing, and which."""


class Kind(Enum):
    """What a step does to a thing that other tasks may touch."""

    READ = "r"
    WRITE = "w"
    TAKE = "take"
    RELEASE = "release"
    LOOK = "look"
    """Taken for a section that only reads (points.LOOKS)."""
    UNLOOK = "unlook"
    SEND = "send"
    """Into a queue; also what sets an event, or ends a thread that others wait for."""
    RECEIVE = "receive"
    SHUT = "shut"

    __hash__ = object.__hash__


Access = tuple[Key, Kind]

_R, _W, _TAKE, _RELEASE, _LOOK, _UNLOOK, _SEND, _RECEIVE, _SHUT = Kind
_COMMUTE = {
    (_R, _R),
    (_SEND, _RECEIVE),
    (_RECEIVE, _SEND),
    *((one, other) for one in (_LOOK, _UNLOOK) for other in (_LOOK, _UNLOOK)),
}
_RACE = {
    *((_W, other) for other in (_R, _W)),
    (_R, _W),
    (_TAKE, _TAKE),
    (_TAKE, _LOOK),
    (_LOOK, _TAKE),
    (_SEND, _SEND),
    (_RECEIVE, _RECEIVE),
    *((_SHUT, other) for other in (_SEND, _RECEIVE, _SHUT)),
    (_SEND, _SHUT),
    (_RECEIVE, _SHUT),
    (_SEND, _R),
    (_R, _SEND),
}


def commute(one: Kind, other: Kind) -> bool:
    """Two accesses of one thing whose order makes no difference.

    Sending and receiving commute: when the queue is empty, only one of both is enabled.
    """
    return (one, other) in _COMMUTE


def can_race(one: Kind, other: Kind) -> bool:
    """They do not commute and there are states in which both could go first (a lock's release and its taking never)."""
    return (one, other) in _RACE


def independent(one: dict[Access, None], other: dict[Access, None]) -> bool:
    for key, kind in one:
        for key2, kind2 in other:
            if key == key2 and not commute(kind, kind2):
                return False
    return True
