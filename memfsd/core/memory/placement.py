"""Memory policies of ranges of a file, among the nodes of a pool.

    Placement   what one policy says: where each page may go, in order
    Policies    the placements of one file, by range; elsewhere the default holds

A policy decides where a page goes when it is allocated. What is allocated already stays where it is.
"""

import errno
from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import accumulate

from memfsd.common.intervals import IntervalMap
from memfsd.uapi.errors import Refused
from memfsd.uapi.limits import MAX_POLICIES_PER_FILE, MAX_POLICIES_TEXT
from memfsd.uapi.policy import Mode, Policy, PolicyRange, format_range

from .nodes import LOCAL_NODE, Distances, Zones

_INTERLEAVED = (Mode.INTERLEAVE, Mode.WEIGHTED_INTERLEAVE)


@dataclass(frozen=True, slots=True)
class Placement:
    """A policy among the nodes of a pool. EINVAL for a node that the pool has not."""

    policy: Policy
    distances: Distances = field(compare=False, repr=False)
    _pattern: tuple[Zones, ...] = field(init=False, compare=False, repr=False)
    """Of consecutive pages, from page 0 of the file on, again and again."""
    _ends: tuple[int, ...] = field(init=False, compare=False, repr=False)
    """Up to which page of the pattern each of them holds."""

    def __post_init__(self) -> None:
        count, policy = len(self.distances.rows), self.policy
        for node in policy.nodes:
            if node >= count:
                there_are = "only node 0 exists" if count == 1 else f"there are 0 to {count - 1}"
                raise Refused(errno.EINVAL, f"policy {policy}: node {node} does not exist: {there_are}")
        object.__setattr__(self, "_pattern", self._zones())
        object.__setattr__(self, "_ends", tuple(accumulate(policy.weights or (1,) * len(self._pattern))))

    def _zones(self) -> tuple[Zones, ...]:
        policy, distances = self.policy, self.distances
        everywhere = distances.zonelist(LOCAL_NODE)
        if policy.mode in _INTERLEAVED:
            return tuple(Zones(distances.zonelist(node), True) for node in policy.nodes)
        nearest = distances.nearest(LOCAL_NODE, policy.nodes)
        if policy.mode is Mode.BIND:
            return (Zones(nearest, policy=str(policy)),)
        if policy.mode is Mode.PREFERRED:
            return (Zones(distances.zonelist(policy.nodes[0])),)
        if policy.mode is Mode.PREFERRED_MANY:
            return (Zones((*nearest, *(node for node in everywhere if node not in nearest))),)
        return (Zones(everywhere),)

    def at(self, pgoff: int, order: int, limit: int) -> tuple[Zones, int]:
        """Where the page goes, and how many pages from it on, at most limit, go there too. Frames of 1 << order."""
        pattern, ends = self._pattern, self._ends
        if len(pattern) == 1:
            return pattern[0], limit
        index = pgoff >> order
        at = index % ends[-1]
        place = bisect_right(ends, at)
        return pattern[place], min(limit, (index + ends[place] - at << order) - pgoff)


class Policies:
    """Of one file. Where none is set the default holds: the local node, then the nearest."""

    __slots__ = ("_ranges",)

    def __init__(self) -> None:
        self._ranges: IntervalMap[Placement] = IntervalMap()

    def __str__(self) -> str:
        """Words that `parse_ranges` takes."""
        words = [format_range(start, end, placement.policy) for start, end, placement in self._ranges]
        return " ".join(words) or Mode.DEFAULT.value

    def __len__(self) -> int:
        return len(self._ranges)

    def set(self, ranges: list[PolicyRange], distances: Distances) -> "Policies":
        """Others, with these policies besides. EINVAL for unknown nodes; ENOMEM for more than one file may have."""
        changed = Policies()
        changed._ranges = self._ranges.copy()
        if len(ranges) > MAX_POLICIES_PER_FILE:
            raise _too_many()
        for start, end, policy in ranges:
            if policy.mode is Mode.DEFAULT:
                changed._ranges.cut(start, end)
            else:
                changed._ranges.put(start, end, Placement(policy, distances))
        if len(changed) > MAX_POLICIES_PER_FILE or len(str(changed)) > MAX_POLICIES_TEXT:
            raise _too_many()
        return changed

    def at(self, pgoff: int, order: int, limit: int) -> tuple[Zones | None, int]:
        """Where the page goes (None: as the default says), and for how many pages, at most limit, that is so."""
        found = self._ranges.find(pgoff)
        if found is None:
            following = self._ranges.next_start(pgoff)
            return None, limit if following is None else min(limit, following - pgoff)
        return found[2].at(pgoff, order, min(limit, found[1] - pgoff))


def _too_many() -> Refused:
    return Refused(errno.ENOMEM, f"a file has at most {MAX_POLICIES_PER_FILE} ranges with policies: join some of them")
