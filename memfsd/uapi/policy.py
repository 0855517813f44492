"""NUMA policies as they are written: POLICY[:NODES][@OFFSET+LENGTH], with the rules of mbind(2) (mm/mempolicy.c).

What they mean among the nodes of a pool: core.memory.placement.
"""

import enum
import errno
from collections.abc import Sequence
from dataclasses import dataclass

from .errors import Refused
from .limits import MAX_NODE_WEIGHT, MAX_NODES
from .units import PAGE_SHIFT, PAGE_SIZE, PGOFF_END, page_aligned


class Mode(enum.Enum):
    """MPOL_*, in the words of `mount -o mpol=` and set_mempolicy(2)."""

    DEFAULT = "default"
    LOCAL = "local"
    BIND = "bind"
    PREFERRED = "preferred"
    PREFERRED_MANY = "preferred-many"
    INTERLEAVE = "interleave"
    WEIGHTED_INTERLEAVE = "weighted-interleave"


_WITHOUT_NODES = (Mode.DEFAULT, Mode.LOCAL)


@dataclass(frozen=True, slots=True)
class Policy:
    """weights: of the nodes, for WEIGHTED_INTERLEAVE."""

    mode: Mode
    nodes: tuple[int, ...] = ()
    weights: tuple[int, ...] = ()

    def __str__(self) -> str:
        if not self.nodes:
            return self.mode.value
        if self.mode is Mode.WEIGHTED_INTERLEAVE:
            shares = ",".join(f"{node}={weight}" for node, weight in zip(self.nodes, self.weights, strict=True))
            return f"{self.mode.value}:{shares}"
        return f"{self.mode.value}:{format_nodes(self.nodes)}"


def parse_policy(text: str) -> Policy:
    """ "bind:0-1", "weighted-interleave:0=3,1=1". EINVAL: no such mode, or nodes that this mode does not take.

    preferred without nodes is local, and of several nodes the first, as in mbind(2).
    """
    word, colon, listed = text.partition(":")
    try:
        mode = Mode(word)
    except ValueError:
        modes = ", ".join(mode.value for mode in Mode)
        raise Refused(errno.EINVAL, f"'{word}' is not a policy: choose {modes}") from None
    if not listed:
        if mode in _WITHOUT_NODES and not colon:
            return Policy(mode)
        if mode is Mode.PREFERRED:
            return Policy(Mode.LOCAL)
        raise Refused(errno.EINVAL, f"policy {word} with an empty set of nodes: write {word}:0 or {word}:0-1")
    if mode in _WITHOUT_NODES:
        raise Refused(errno.EINVAL, f"policy {word} takes no nodes, and '{listed}' were given: leave them out")
    try:
        shares = _weighted(listed) if mode is Mode.WEIGHTED_INTERLEAVE else dict.fromkeys(parse_nodes(listed), 1)
    except ValueError as error:
        raise Refused(errno.EINVAL, str(error)) from None
    nodes = tuple(sorted(shares))
    if mode is Mode.PREFERRED:
        nodes = nodes[:1]
    weights = tuple(shares[node] for node in nodes) if mode is Mode.WEIGHTED_INTERLEAVE else ()
    return Policy(mode, nodes, weights)


def _weighted(text: str) -> dict[int, int]:
    """A weight of 1 need not be said. Nodes of one word share its weight."""
    shares: dict[int, int] = {}
    for word in text.split(","):
        nodes, equals, weight = word.partition("=")
        weight = weight if equals else "1"
        if not weight.isascii() or not weight.isdigit() or not 1 <= int(weight[:9]) <= MAX_NODE_WEIGHT:
            raise ValueError(f"'{word}': a weight is 1 to {MAX_NODE_WEIGHT}: write 0=3,1=1")
        shares.update(dict.fromkeys(parse_nodes(nodes), int(weight)))
    return shares


PolicyRange = tuple[int, int, Policy]
"""Pages [start, end)."""


def format_range(start: int, end: int, policy: Policy) -> str:
    """ "bind:0@0x1000+0x2000"; a policy of the whole file is said without its range."""
    if (start, end) == (0, PGOFF_END):
        return str(policy)
    return f"{policy}@{start << PAGE_SHIFT:#x}+{end - start << PAGE_SHIFT:#x}"


def parse_ranges(text: str, order: int) -> list[PolicyRange]:
    """POLICY[:NODES][@OFFSET+LENGTH] ..., in bytes, of a file with pages of this order; the last one wins.

    EINVAL as mbind(2): an offset that is not a page's. A length is rounded up to 4 KiB pages; 0 of them change nothing.
    """
    ranges: list[PolicyRange] = []
    for word in text.split():
        policy, at, where = word.partition("@")
        offset, plus, length = where.partition("+")
        start, size = (0, PGOFF_END << PAGE_SHIFT) if not at else (_number(offset, word), _number(length, word))
        end = start + (size + PAGE_SIZE - 1 & -PAGE_SIZE)
        if at and not plus:
            raise Refused(errno.EINVAL, f"'{word}': write a range as @OFFSET+LENGTH, in bytes")
        if not page_aligned(start, order) or not page_aligned(end, order):
            raise Refused(errno.EINVAL, f"'{word}': the range must begin and end at multiples of {PAGE_SIZE << order}")
        if end >> PAGE_SHIFT > PGOFF_END:
            raise Refused(errno.EINVAL, f"'{word}': the range ends past 2^63: give less")
        parsed = parse_policy(policy)
        if start < end:
            ranges.append((start >> PAGE_SHIFT, end >> PAGE_SHIFT, parsed))
    if not text.split():
        raise Refused(errno.EINVAL, "no policy was given: write default, or bind:0@0+2097152 and the like")
    return ranges


def old_spelling(text: str) -> str:
    """What user.memfsd.numa took before there were policies: any, or the number of a node that is preferred."""
    if text == "any":
        return Mode.DEFAULT.value
    return f"{Mode.PREFERRED.value}:{text}" if text.isascii() and text.isdigit() and int(text) < MAX_NODES else text


def _number(text: str, word: str) -> int:
    try:
        value = int(text, 0)
    except ValueError:
        value = -1
    if value < 0:
        raise Refused(errno.EINVAL, f"'{word}': '{text}' is not a number of bytes")
    return value


def parse_nodes(text: str) -> tuple[int, ...]:
    """ "0-2,5", as the kernel prints sets of nodes. ValueError when it is none."""
    nodes: set[int] = set()
    for part in text.split(","):
        low, dash, high = part.partition("-")
        high = high if dash else low
        if not (_is_number(low) and _is_number(high) and int(low) <= int(high)):
            raise ValueError(f"'{text}' is not a set of nodes: write 0, 0,2 or 0-3")
        nodes.update(range(int(low), int(high) + 1))
    return tuple(sorted(nodes))


def format_nodes(nodes: Sequence[int]) -> str:
    """As the kernel prints them: "0-2,5"."""
    parts: list[list[int]] = []
    for node in nodes:
        if parts and parts[-1][1] + 1 == node:
            parts[-1][1] = node
        else:
            parts.append([node, node])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in parts)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 3
