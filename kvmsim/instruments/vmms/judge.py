"""Where the VMM's belief and the state of memory part.

What is believed, is what the guest was told: "done", all of the range is in the wanted alias, and the other side holds
nothing of it; anything else, nothing has changed.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from memfsd.uapi.units import Gfn

from .border import Snapshot


class Finding(NamedTuple):
    """kind: in words. page_count: how many pages it is about, 0 where it is about none. after: the call, or the reply
    that followed it, after which it is so and stays so; "" where it was so before any call."""

    kind: str
    page_count: int
    after: str


class Belief(NamedTuple):
    """shared: pages of RAM that are believed to be shared; the others are believed to be private."""

    ram: frozenset[Gfn]
    shared: frozenset[Gfn]
    has_device: bool


ATTRIBUTE = "attribute is not what the guest was told"
PRIVATE_LEFT = "private copy left beside the shared one"
SHARED_LEFT = "shared copy left beside the private one"
RECORD = "the VMM's own record is not the attribute"
RECORD_TOLD = "the VMM's own record is not what the guest was told"
MAPPED = "private, and still mapped for the device"
UNMAPPED = "shared, and not mapped for the device"
STALE = "the device has another page than the guest"
LOST = "data of the guest lost"
_BY_DEVICES = (MAPPED, SHARED_LEFT)
_TOLD = (ATTRIBUTE, RECORD_TOLD)
"""What no call has changed, and should have, parts at the reply."""


def disagreements(history: Sequence[Snapshot], belief: Belief) -> list[Finding]:
    """What is so at the end and was not so at the start. Two may have been so from the start: attributes that should
    have changed, and what a device holds of private pages."""
    facts = [_facts(snapshot, belief) for snapshot in history]
    since: dict[tuple[str, Gfn], int] = {}
    for kind, gfn in facts[-1]:
        first = len(facts) - 1
        while first and (kind, gfn) in facts[first - 1]:
            first -= 1
        if first or kind in _TOLD or (belief.has_device and kind in _BY_DEVICES):
            since[kind, gfn] = first
    reply = last_call(history)
    return grouped(
        (kind, reply if not first and kind in _TOLD else history[first].call) for (kind, _), first in since.items()
    )


def last_call(history: Sequence[Snapshot]) -> str:
    """What the reply follows."""
    return next((snapshot.call for snapshot in reversed(history[:-1]) if snapshot.call), "")


def grouped(found: Iterable[tuple[str, str]]) -> list[Finding]:
    """One for each kind and call."""
    counts: dict[tuple[str, str], int] = {}
    for kind, after in found:
        counts[kind, after] = counts.get((kind, after), 0) + 1
    return sorted(Finding(kind, count, after) for (kind, after), count in counts.items())


def _facts(now: Snapshot, belief: Belief) -> set[tuple[str, Gfn]]:
    """Copies and mappings are judged by the attribute, which says what the guest reaches."""
    shared = now.shared_attribute & belief.ram
    private = belief.ram - shared
    kinds = {
        ATTRIBUTE: shared ^ belief.shared,
        PRIVATE_LEFT: shared & now.held_private,
        SHARED_LEFT: private & (now.held_shared | now.stale),
        STALE: shared & now.stale,
    }
    if now.recorded_shared is not None:
        kinds[RECORD] = shared ^ now.recorded_shared
        kinds[RECORD_TOLD] = now.recorded_shared ^ belief.shared
    if belief.has_device:
        kinds[MAPPED] = private & now.mapped
        kinds[UNMAPPED] = shared - now.mapped
    return {(kind, gfn) for kind, pages in kinds.items() for gfn in pages}


def reached_meanwhile(history: Sequence[Snapshot], ram: frozenset[Gfn]) -> tuple[int, str]:
    """How many pages were private and still mapped for the device, for a moment of the conversion, and the call that
    ended it."""
    reached = [snapshot.mapped & ram - snapshot.shared_attribute for snapshot in history]
    pages, until = frozenset[Gfn](), ""
    for now, after in zip(range(1, len(history)), range(2, len(history)), strict=False):
        passing = reached[now] - reached[0] - reached[-1]
        if passing:
            pages, until = pages | passing, history[after].call
    return len(pages), until


def gone_after(history: Sequence[Snapshot], pages: Iterable[Gfn], kind: str) -> list[Finding]:
    """For private pages that should have stayed: the last call that took each while its attribute was private. It may
    have a frame again, of zeros."""
    found = []
    for gfn in pages:
        taken = [
            now.call
            for before, now in pairwise(history)
            if gfn in before.held_private - now.held_private and gfn not in now.shared_attribute
        ]
        found += [(kind, call) for call in taken[-1:]]
    return grouped(found)
